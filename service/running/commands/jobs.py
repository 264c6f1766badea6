"""`quickstudy jobs`: list, retry and drop dead jobs, which have used up their attempts.

The commands access the records in Redis directly, not through the HTTP service.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from service.running.find_records import exit_on_redis_error, on_data_dir, open_records_and_weights
from worker.ledger.record import Record
from worker.ledger.records import Records


@click.group()
@on_data_dir
@click.pass_context
def jobs(context: click.Context, data_dir: Path) -> None:
    """List, retry and drop jobs that no worker could finish."""
    context.obj = data_dir.expanduser()


@jobs.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
@click.pass_obj
def dead(data_dir: Path, as_json: bool) -> None:
    """List dead jobs, latest first, each with the reason of its failure. Examples are not shown."""
    with exit_on_redis_error("the jobs were not listed"):
        dead_jobs = open_records_and_weights(data_dir)[0].dead_jobs.latest()
    if as_json:
        click.echo(json.dumps([_description(record) for record in dead_jobs], indent=2))
        return
    for record in dead_jobs:
        job = _description(record)
        click.echo(
            f"{job['job']}  attempts {job['attempts']}  {job['examples']} examples of {job['labels']} labels  {job['reason']}"
        )
    if not dead_jobs:
        click.echo("no dead jobs")


def _names_jobs(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments JOB… and the option --all to a command."""
    everything = click.option("--all", "everything", is_flag=True, help="All dead jobs.")
    return click.argument("names", nargs=-1, metavar="[JOB]…")(everything(command))


@jobs.command()
@_names_jobs
@click.pass_obj
def retry(data_dir: Path, names: tuple[str, ...], everything: bool) -> None:
    """Queue dead jobs again. Their attempts are counted from zero."""
    _check_selection(names, everything)
    records, _ = open_records_and_weights(data_dir)
    _with_each(records, names, everything, records.dead_jobs.revive, "waits again")


@jobs.command()
@_names_jobs
@click.pass_obj
def drop(data_dir: Path, names: tuple[str, ...], everything: bool) -> None:
    """Delete dead jobs, including their examples."""
    _check_selection(names, everything)
    records, store = open_records_and_weights(data_dir)

    def delete(tenant: str, identity: str) -> bool:
        fence = records.delete(tenant, identity, only="dead")
        if fence is not None:
            store.remove(tenant, identity, fence)
        return fence is not None

    _with_each(records, names, everything, delete, "deleted")


def _check_selection(names: tuple[str, ...], everything: bool) -> None:
    """Raise UsageError unless jobs are given as TENANT/ADAPTER, or all are selected."""
    if everything == bool(names):
        raise click.UsageError("expected either jobs, as `quickstudy jobs dead` names them, or --all")
    wrong = next((name for name in names if name.count("/") != 1), None)
    if wrong is not None:
        raise click.UsageError(f"JOB: expected TENANT/ADAPTER as `quickstudy jobs dead` names it, got {wrong!r}")


def _with_each(records: Records, names: tuple[str, ...], everything: bool, act: Callable[[str, str], bool], done: str) -> None:
    """Call `act(tenant, adapter id)` for each selected job, and print `done` after the name of the job.

    `names` selects jobs as TENANT/ADAPTER, `everything` selects all dead jobs. Exits with a one-line message and status 1 if `act`
    returns False, which means that the job is not dead.
    """
    for tenant, identity in _select(records, names, everything):
        if not act(tenant, identity):
            sys.exit(f"error: {tenant}/{identity} is not a dead job")
        click.echo(f"{tenant}/{identity} {done}")


def _select(records: Records, names: tuple[str, ...], everything: bool) -> list[tuple[str, str]]:
    if everything:
        with exit_on_redis_error("the jobs were not listed"):
            selected = [(record.tenant, record.adapter_id) for record in records.dead_jobs.latest()]
        if not selected:
            click.echo("no dead jobs")
        return selected
    return [(tenant, identity) for tenant, _, identity in (name.partition("/") for name in names)]


def _description(record: Record) -> dict[str, object]:
    return {
        "job": f"{record.tenant}/{record.adapter_id}",
        "attempts": record.attempt,
        "initialization": record.summary.initialization,
        "examples": record.summary.examples,
        "labels": len(record.summary.labels),
        "reason": record.error,
        "created_at": record.created_at / 1000,
    }
