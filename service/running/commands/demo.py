"""`quickstudy demo`: adapt and predict on a temporary embedded service."""

import sys

import click


@click.command()
def demo() -> None:
    """Adapt to a support desk's intents, predict and compare with baselines, on a temporary service."""
    from service.running.demo import run

    sys.exit(run())
