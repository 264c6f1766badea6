"""`quickstudy`: the commands that run a service, and by name those that are in modules of their own."""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from service.running.standalone import DEFAULT_DATA_DIR, StandaloneError, standalone
from service.running.tether import tie_to_parent
from worker.errors import SettingsError
from worker.logs import configure


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Where only the client is installed, the other commands say what is missing."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("service", "worker", "metatrain"):
                raise
            raise click.ClickException(f"{error.name} is not installed; this command needs quickstudy[embedded]") from None


@click.group(cls=Commands)
def main() -> None:
    """Few-shot adaptation as a service."""


@main.command()
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


@main.command()
def worker() -> None:
    """Run one worker on REDIS_URL."""
    from worker.__main__ import main as run_worker

    run_worker()


@main.command()
@click.option("--listen", required=True, metavar="URL", help="unix:///path or tcp://host:port; PREDICTOR_URL of the services.")
def predictor(listen: str) -> None:
    """Run the predictor as a process of its own, on CACHE_URL (or REDIS_URL)."""
    from service.settings import ServiceSettings, predictor_address
    from worker.settings import read_settings

    try:
        predictor_address(listen)
        settings = read_settings(ServiceSettings)
        configure("predictor", settings.log_level, settings.log_format)
        from service.running.serving import run_predictor

        run_predictor(settings, listen)
    except ValueError as error:
        sys.exit(f"error: --listen: {error}, got {listen!r}")
    except SettingsError as error:
        sys.exit(f"error: {error}")


@main.command()
def demo() -> None:
    """Adapt to a support desk's intents and predict, next to two baselines, on an embedded service of its own."""
    from service.running.demo import run

    sys.exit(run())


class Elsewhere(click.Command):
    """A command whose module is loaded when it runs, so that `--help` and the others do not wait for what it needs, nor need it."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    @property
    def itself(self) -> click.Command:
        command: click.Command = getattr(importlib.import_module(self.module), str(self.name))
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self.itself.make_context(info_name, args, parent, **extra)


for command in (
    Elsewhere("adapt", "service.running.commands.adapt", "Learn from the labelled rows of a file."),
    Elsewhere("predict", "service.running.commands.predict", "Label the rows of a file."),
    Elsewhere("adapters", "service.running.commands.adapters", "What the service has, and what becomes of it."),
    Elsewhere("alias", "service.running.commands.alias", "Names that point at adapters, and may be moved."),
    Elsewhere("status", "service.running.commands.status", "Whether the service is ready, and what it has."),
    Elsewhere("jobs", "service.running.job_commands", "Jobs that no worker could finish."),
    Elsewhere("keys", "service.running.key_commands", "API keys: who may ask, as whom, for what and until when."),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
