"""`quickstudy jobs`: the jobs that used up their attempts, read and changed beside the records, whether a service runs or not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from service.running.find_records import on_data_dir, reach
from worker.ledger.record import Record
from worker.ledger.records import Records


@click.group()
@on_data_dir
@click.pass_context
def jobs(context: click.Context, data_dir: Path) -> None:
    """Jobs that no worker could finish."""
    context.obj = data_dir.expanduser()


@jobs.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@click.pass_obj
def dead(data_dir: Path, as_json: bool) -> None:
    """List them, the latest first, with the reason. Nothing of their examples is shown."""
    found = reach(data_dir)[0].dead_jobs.latest()
    if as_json:
        click.echo(json.dumps([_described(record) for record in found], indent=2))
        return
    for record in found:
        own = _described(record)
        click.echo(
            f"{own['job']}  attempts {own['attempts']}  {own['examples']} examples of {own['labels']} labels  {own['reason']}"
        )
    if not found:
        click.echo("no dead jobs")


def _names_jobs(command: Callable[..., None]) -> Callable[..., None]:
    """Takes jobs by name, or --all of them."""
    everything = click.option("--all", "everything", is_flag=True, help="All of them.")
    return click.argument("names", nargs=-1, metavar="[JOB]…")(everything(command))


@jobs.command()
@_names_jobs
@click.pass_obj
def retry(data_dir: Path, names: tuple[str, ...], everything: bool) -> None:
    """Let them wait again, with all their attempts."""
    records, _ = reach(data_dir)
    _with_each(records, names, everything, records.dead_jobs.revive, "waits again")


@jobs.command()
@_names_jobs
@click.pass_obj
def drop(data_dir: Path, names: tuple[str, ...], everything: bool) -> None:
    """Delete them, examples and all."""
    records, store = reach(data_dir)

    def delete(tenant: str, identity: str) -> bool:
        fence = records.delete(tenant, identity, only="dead")
        if fence is not None:
            store.remove(tenant, identity, fence)
        return fence is not None

    _with_each(records, names, everything, delete, "deleted")


def _with_each(records: Records, names: tuple[str, ...], everything: bool, act: Callable[[str, str], bool], done: str) -> None:
    """`act` on (tenant, adapter id) says whether it was a dead job."""
    for tenant, identity in _chosen(records, names, everything):
        if not act(tenant, identity):
            sys.exit(f"error: {tenant}/{identity} is not a dead job")
        click.echo(f"{tenant}/{identity} {done}")


def _chosen(records: Records, names: tuple[str, ...], everything: bool) -> list[tuple[str, str]]:
    if everything == bool(names):
        sys.exit("error: expected either jobs, as `quickstudy jobs dead` names them, or --all")
    if everything:
        found = [(record.tenant, record.adapter_id) for record in records.dead_jobs.latest()]
        if not found:
            click.echo("no dead jobs")
        return found
    wrong = next((name for name in names if name.count("/") != 1), None)
    if wrong is not None:
        sys.exit(f"error: JOB: expected TENANT/ADAPTER as `quickstudy jobs dead` names it, got {wrong!r}")
    return [(tenant, identity) for tenant, _, identity in (name.partition("/") for name in names)]


def _described(record: Record) -> dict[str, object]:
    return {
        "job": f"{record.tenant}/{record.adapter_id}",
        "attempts": record.attempt,
        "initialization": record.summary.initialization,
        "examples": record.summary.examples,
        "labels": len(record.summary.labels),
        "reason": record.error,
        "created_at": record.created_at / 1000,
    }
