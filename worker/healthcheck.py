"""The health check of a worker's container: `python -m worker.healthcheck`.

It exits with 0 if a worker on this host announced itself lately, and otherwise with 1 and a message of one line. A worker
announces itself every second, once it has loaded its base models. Torch-free, so that it takes a fraction of a second.
"""

import sys

import redis

from worker.errors import SettingsError
from worker.ledger.servers import records_client
from worker.ledger.workers import Workers
from worker.name import on_this_host
from worker.settings import WorkerSettings, read_settings


def problem(settings: WorkerSettings) -> str | None:
    """Return what is wrong with the worker on this host, or None if it is healthy."""
    client = records_client(settings.redis_url, timeout=2, connect_timeout=2)
    try:
        names = Workers(client).names()
    except redis.RedisError as error:
        return f"the records cannot be reached: {type(error).__name__}"
    finally:
        client.close()
    return None if on_this_host(names) else f"no worker on this host announced itself lately ({len(names)} elsewhere did)"


def main() -> None:
    try:
        found = problem(read_settings(WorkerSettings))
    except SettingsError as error:
        found = str(error)
    sys.exit(None if found is None else f"error: {found}")


if __name__ == "__main__":
    main()
