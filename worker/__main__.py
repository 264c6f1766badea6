"""`python -m worker`: one worker process, configured by the environment."""

import os
import sys

from worker.app import run_worker
from worker.errors import SettingsError
from worker.settings import WorkerSettings, read_settings


def main() -> None:
    try:
        settings = read_settings(WorkerSettings)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # service and worker share the cores; longer spinning costs both half
    from metatrain.errors import MetatrainError

    try:
        run_worker(settings)
    except (MetatrainError, SettingsError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
