"""`quickstudy alias`: names that point at adapters."""

import dataclasses
from datetime import datetime

import click

from quickstudy import Client
from quickstudy.calls import AliasCondition
from quickstudy.commands.service_options import as_json, asks, print_json, print_table


@click.group()
def alias() -> None:
    """Names that point at adapters, and may be moved."""


@alias.command("set")
@click.argument("name", metavar="ALIAS")
@click.argument("adapter")
@click.option("--expected", metavar="ADAPTER", help="Only if it points there now.")
@click.option("--new", is_flag=True, help="Only if it points nowhere yet.")
@as_json
@asks
def set_one(client: Client, name: str, adapter: str, expected: str | None, new: bool, as_json: bool) -> None:
    """Have ALIAS point at ADAPTER."""
    if new and expected is not None:
        raise click.UsageError("expected either --expected or --new")
    condition: AliasCondition = {"expected": expected} if new or expected is not None else {}
    moved = client.set_alias(name, adapter, **condition)
    if as_json:
        print_json(dataclasses.asdict(moved))
    else:
        click.echo(f"{moved.alias} → {moved.adapter_id}" + (f", before {moved.previous}" if moved.previous else ""))


@alias.command("list")
@as_json
@asks
def list_all(client: Client, as_json: bool) -> None:
    """All of them."""
    found = list(client.aliases())
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in found])
        return
    rows = [
        (entry.alias, entry.adapter_id, datetime.fromtimestamp(entry.updated_at).astimezone().isoformat(" ", "seconds"))
        for entry in found
    ]
    print_table(("alias", "adapter", "moved"), rows)


@alias.command()
@click.argument("name", metavar="ALIAS")
@asks
def delete(client: Client, name: str) -> None:
    """Delete an alias; the adapter stays."""
    client.delete_alias(name)
    click.echo(f"{name} deleted")
