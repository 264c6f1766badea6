"""Connect commands to a service's records and weights, at REDIS_URL or in the embedded Redis server."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import redis

from service.running.standalone import DEFAULT_DATA_DIR, url_of
from worker.errors import EncryptionKeyMissing, SealBroken, SettingsError
from worker.ledger.audit import acting, command_line
from worker.ledger.encryption import Cipher
from worker.ledger.records import Records
from worker.ledger.servers import records_client, weights_client
from worker.ledger.weights_cache import WeightStore
from worker.settings import WorkerSettings, read_settings


def on_data_dir(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--data-dir` to a command or group.

    The audit log records its changes as made by the user who runs it.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        click.get_current_context().with_resource(acting(command_line()))
        return command(*arguments, **named)

    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DEFAULT_DATA_DIR,
        show_default=True,
        help="Folder of the embedded server; used if REDIS_URL is unset.",
    )(run)


def connect_to_records(data_dir: Path) -> "tuple[redis.Redis, str]":
    """Return a client for the Redis server that has the records, and the URL of the weights cache.

    The server is the one at REDIS_URL or, if that is unset, the embedded one that runs on `data_dir`. Exits with a one-line
    message if the settings are invalid or the server does not answer.
    """
    try:
        settings = read_settings(WorkerSettings)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    embedded = not os.environ.get("REDIS_URL")
    not_running = f"error: REDIS_URL is not set, and no quickstudy runs on --data-dir {data_dir}"
    url = url_of(data_dir) if embedded else settings.redis_url
    if url is None:
        sys.exit(not_running)
    client = records_client(url)
    try:
        client.ping()
    except redis.RedisError as error:
        sys.exit(not_running if embedded else f"error: the records cannot be reached: {type(error).__name__}; check REDIS_URL")
    return client, settings.cache_url or url


def open_records_and_weights(data_dir: Path) -> tuple[Records, WeightStore]:
    """Return the records and the weights cache of a service.

    Exits with a one-line message if the settings are invalid or the records' server does not answer.
    """
    cipher = read_cipher()
    client, cache_url = connect_to_records(data_dir)
    return Records(client, cipher=cipher), WeightStore(weights_client(cache_url), cipher)


def read_cipher() -> Cipher:
    """Return a cipher with the keys in ENCRYPTION_KEY_FILE.

    Exits with a one-line message if the settings are invalid.
    """
    try:
        return read_settings(WorkerSettings).cipher
    except SettingsError as error:
        sys.exit(f"error: {error}")


@contextmanager
def exit_on_redis_error(outcome: str) -> Iterator[None]:
    """Exit with a one-line message if a Redis command in the block fails or a value does not open.

    The message has `outcome`, which says what was not done, and the type of the error.
    """
    try:
        yield
    except redis.RedisError as error:
        sys.exit(f"error: {outcome}: {type(error).__name__}")
    except (EncryptionKeyMissing, SealBroken) as error:
        sys.exit(f"error: {outcome}: {error}")
