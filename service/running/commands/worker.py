"""`quickstudy worker`: the same as `python -m worker`."""

import click


@click.command()
def worker() -> None:
    """Run one worker, which takes its jobs from the queue at REDIS_URL."""
    from worker.__main__ import main

    main()
