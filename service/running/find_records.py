"""How commands reach what a service works with, whether one runs or not."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import redis

from service.running.standalone import DEFAULT_DATA_DIR, url_of
from worker.errors import SettingsError
from worker.ledger.records import Records
from worker.ledger.servers import records_client, weights_client
from worker.ledger.weights_cache import WeightStore
from worker.settings import WorkerSettings, read_settings


def on_data_dir(command: Callable[..., Any]) -> Callable[..., Any]:
    """A group's option `--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DEFAULT_DATA_DIR,
        show_default=True,
        help="Of the embedded server, where REDIS_URL is unset.",
    )(command)


def reach_redis(data_dir: Path) -> "tuple[redis.Redis, str]":
    """The server of the records that the environment names, or the embedded one that runs on `data_dir`, and the cache's URL. Exits
    with one line where it does not answer."""
    try:
        settings = read_settings(WorkerSettings)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    embedded = not os.environ.get("REDIS_URL")
    nowhere = f"error: REDIS_URL is not set, and no quickstudy runs on --data-dir {data_dir}"
    url = url_of(data_dir) if embedded else settings.redis_url
    if url is None:
        sys.exit(nowhere)
    client = records_client(url)
    try:
        client.ping()
    except redis.RedisError as error:
        sys.exit(nowhere if embedded else f"error: the records are out of reach: {type(error).__name__}")
    return client, settings.cache_url or url


def reach(data_dir: Path) -> tuple[Records, WeightStore]:
    """Records and weights. Exits as `reach_redis` does."""
    client, cache_url = reach_redis(data_dir)
    return Records(client), WeightStore(weights_client(cache_url))
