"""`quickstudy serve`: the HTTP service, and with REDIS_URL unset all that it needs."""

import os
import signal
import sys
from pathlib import Path

import click

from service.running.end_with_parent import tie_to_parent
from service.running.standalone import DEFAULT_DATA_DIR, StandaloneError, standalone
from worker.errors import SettingsError
from worker.logs import configure


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=DEFAULT_DATA_DIR, show_default=True, help="Of the embedded server."
)
@click.option("--without-keys", is_flag=True, help="Be open on any --host until the first API key is made.")
@click.option("--tied", type=int, metavar="PID", help="Stop when process PID, which started this one, is gone.")
def serve(host: str, port: int, data_dir: Path, without_keys: bool, tied: int | None) -> None:
    """Serve HTTP. With REDIS_URL unset, also run an embedded Redis-compatible server and one worker."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # service and worker share the cores; longer spinning costs both half
    if tied is not None:
        tie_to_parent(tied, signal.SIGTERM)
    from service.settings import ServiceSettings
    from worker.settings import read_settings

    try:
        settings = read_settings(ServiceSettings)
        settings = settings.model_copy(update={"allow_without_keys": True}) if without_keys else settings
        configure("service", settings.log_level, settings.log_format)
        from service.running.binding import listen

        listening = listen(host, port)
        if os.environ.get("REDIS_URL"):
            from service.running.serving import run  # brings torch in, which takes seconds: what is wrong so far is told before

            run(settings, listening)
            return
        # SIGTERM between here and uvicorn's own handlers must unwind the block below too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with standalone(data_dir.expanduser()) as url:
            from service.running.serving import run  # while the worker, too, loads what it needs

            run(settings.model_copy(update={"redis_url": url}), listening)
    except (SettingsError, StandaloneError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
