"""`quickstudy predictor`: run the predictor as a separate process for services with PREDICTOR_URL."""

import sys

import click

from worker.collection import pause_collection
from worker.errors import SettingsError
from worker.logs import configure


@click.command()
@click.option(
    "--listen",
    required=True,
    metavar="URL",
    help="Address to listen on, unix:///path or tcp://host:port; set PREDICTOR_URL of the services to it.",
)
def predictor(listen: str) -> None:
    """Run the predictor as a separate process.

    It reads stored initializations at REDIS_URL, and adapter weights at CACHE_URL or, if that is unset, at REDIS_URL.
    """
    from service.settings import ServiceSettings, predictor_address
    from worker.settings import read_settings

    try:
        predictor_address(listen)
    except ValueError as error:
        raise click.UsageError(f"--listen: {error}, got {listen!r}") from None
    try:
        settings = read_settings(ServiceSettings)
        configure("predictor", settings.log_level, settings.log_format)
        pause_collection()
        from service.running.serving import run_predictor

        run_predictor(settings, listen)
    except SettingsError as error:
        sys.exit(f"error: {error}")
