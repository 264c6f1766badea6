"""`quickstudy worker`: the same as `python -m worker`."""

import click


@click.command()
def worker() -> None:
    """Run one worker on REDIS_URL."""
    from worker.__main__ import main

    main()
