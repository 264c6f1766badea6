"""`quickstudy demo`: the main job end to end, on a service of its own."""

import sys

import click


@click.command()
def demo() -> None:
    """Adapt to a support desk's intents and predict, next to two baselines, on an embedded service of its own."""
    from service.running.demo import run

    sys.exit(run())
