"""Run one worker process, configured by environment variables: `python -m worker`."""

import logging
import os
import sys

from quickstudy.one_line import one_line

from metatrain.errors import MetatrainError
from worker.collection import pause_collection
from worker.errors import SettingsError
from worker.logs import configure
from worker.settings import WorkerSettings, check_folders, read_settings


def main() -> None:
    try:
        settings = read_settings(WorkerSettings)
    except SettingsError as error:
        sys.exit(f"error: {one_line(error)}")
    # OpenMP threads that busy-wait longer would halve the speed of the service and the worker, which share the CPU cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    pause_collection()
    configure("worker", settings.log_level, settings.log_format)  # before torch is imported, so that its warnings are log lines
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    try:
        check_folders(settings)
        from worker.process import run_worker  # imports torch, which takes seconds, so the checks above come first

        run_worker(settings)
    except (MetatrainError, SettingsError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
