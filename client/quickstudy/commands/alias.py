"""`quickstudy alias`: set, show, roll back, list and delete names that point at adapters."""

import dataclasses
from datetime import datetime

import click

from quickstudy import Client
from quickstudy.calls import AliasCondition
from quickstudy.commands.service_options import as_json, print_json, print_table, with_client


@click.group()
def alias() -> None:
    """Set, show, roll back, list and delete names that point at adapters."""


@alias.command("set")
@click.argument("name", metavar="ALIAS")
@click.argument("adapter")
@click.option("--expected", metavar="ADAPTER", help="Set it only if it points at this adapter now.")
@click.option("--new", is_flag=True, help="Set it only if there is no such alias yet.")
@as_json
@with_client
def set_one(client: Client, name: str, adapter: str, expected: str | None, new: bool, as_json: bool) -> None:
    """Point ALIAS at ADAPTER."""
    if new and expected is not None:
        raise click.UsageError("expected at most one of --expected and --new, got both")
    condition: AliasCondition = {"expected": expected} if new or expected is not None else {}
    moved = client.set_alias(name, adapter, **condition)
    if as_json:
        print_json(dataclasses.asdict(moved))
    else:
        click.echo(f"{moved.alias} → {moved.adapter_id}" + (f", before {moved.previous}" if moved.previous else ""))


@alias.command()
@click.argument("name", metavar="ALIAS")
@as_json
@with_client
def show(client: Client, name: str, as_json: bool) -> None:
    """Show where ALIAS points and where it pointed before."""
    found = client.alias(name)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    rows = [(found.adapter_id, _time(found.updated_at)), *((entry.adapter_id, _time(entry.since)) for entry in found.history)]
    print_table(("adapter", "since"), rows)


@alias.command()
@click.argument("name", metavar="ALIAS")
@as_json
@with_client
def rollback(client: Client, name: str, as_json: bool) -> None:
    """Point ALIAS at the adapter that it pointed at before."""
    moved = client.roll_back_alias(name)
    if as_json:
        print_json(dataclasses.asdict(moved))
    else:
        click.echo(f"{moved.alias} → {moved.adapter_id}, before {moved.previous}")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


@alias.command("list")
@as_json
@with_client
def list_all(client: Client, as_json: bool) -> None:
    """List aliases."""
    listed = list(client.aliases())
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in listed])
        return
    print_table(("alias", "adapter", "moved"), [(entry.alias, entry.adapter_id, _time(entry.updated_at)) for entry in listed])


@alias.command()
@click.argument("name", metavar="ALIAS")
@with_client
def delete(client: Client, name: str) -> None:
    """Delete ALIAS. The adapter stays."""
    client.delete_alias(name)
    click.echo(f"{name} deleted")
