"""`quickstudy serve`: the HTTP service and, without REDIS_URL, an embedded Redis server and worker."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from service.running.end_with_parent import tie_to_parent
from service.running.standalone import DEFAULT_DATA_DIR, StandaloneError, standalone
from worker.collection import pause_collection
from worker.errors import SettingsError
from worker.logs import configure

_EXIT_STATUS = {signal.SIGTERM: 0, signal.SIGINT: 130}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: any free one.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Folder of the embedded server's data.",
)
@click.option(
    "--without-keys", is_flag=True, help="Accept requests without a key on any --host until the first API key is created."
)
@click.option("--tied", type=int, metavar="PID", help="Stop when process PID, which must be the parent of this one, ends.")
def serve(host: str, port: int, data_dir: Path, without_keys: bool, tied: int | None) -> None:
    """Run the HTTP service. If REDIS_URL is unset, also run an embedded Redis server and one worker."""
    # Service and worker share the cores, so threads that spin longer while they wait would halve the speed of both.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if tied is not None:
        tie_to_parent(tied, signal.SIGTERM)
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(_EXIT_STATUS[signal.Signals(number)])
        sys.exit(stopped[0])

    from metatrain.errors import MetatrainError
    from service.settings import ServiceSettings
    from worker.settings import check_folders, read_settings

    try:
        settings = read_settings(ServiceSettings)
        settings = settings.model_copy(update={"allow_without_keys": True}) if without_keys else settings
        configure("service", settings.log_level, settings.log_format)
        from service.running.binding import bind

        listening = bind(host, port)
        check_folders(settings)
        pause_collection()
        if os.environ.get("REDIS_URL"):
            from service.running.serving import run  # imported late: torch takes seconds, and the errors above must not wait for it

            run(settings, listening)
            return
        if settings.redis_password_file is not None:
            raise SettingsError("REDIS_PASSWORD_FILE: expected REDIS_URL beside it: the embedded server has no password")
        for number in _EXIT_STATUS:  # until uvicorn installs its handlers, which stop the children too
            signal.signal(number, stop)
        with standalone(data_dir.expanduser(), listening) as (url, supervise):
            from service.running.serving import run

            if stopped:  # the exception of `stop` was lost in the import of a library
                sys.exit(stopped[0])
            run(settings.model_copy(update={"redis_url": url}), listening, loaded=supervise)
    except (SettingsError, StandaloneError, MetatrainError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        if stopped:  # a library turned the exception of `stop` into another one
            sys.exit(stopped[0])
        raise
