"""`quickstudy initializations`: list stored initializations, move names, forget unneeded ones.

The commands access the records in Redis directly, not through the HTTP service.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from service.running.find_records import exit_on_redis_error, on_data_dir, open_records_and_weights
from worker.ledger.initializations import Initializations


@click.group()
@on_data_dir
@click.pass_context
def initializations(context: click.Context, data_dir: Path) -> None:
    """List the initializations that adapters were made from, move their names, and forget unneeded ones."""
    context.obj = data_dir.expanduser()


@initializations.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
@click.pass_obj
def list_(data_dir: Path, as_json: bool) -> None:
    """List stored initializations: how many records need each one, and which names point at it.

    An initialization is stored as soon as a request to adapt uses it.
    """
    with exit_on_redis_error("the initializations were not listed"):
        store = open_records_and_weights(data_dir)[0].initializations
        rows = _descriptions(store)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        names = "".join(f"  ← {name}" for name in row["names"])
        click.echo(
            f"{row['digest'][:16]}  {row['name']}  {row['base_model']}  {row['bytes']} bytes  {row['records']} records{names}"
        )
    if not rows:
        click.echo("no stored initializations")


@initializations.command()
@click.argument("name")
@click.argument("digest", required=False)
@click.option("--reset", is_flag=True, help="Remove the pointer: the name again means what the services have loaded under it.")
@click.pass_obj
def move(data_dir: Path, name: str, digest: str | None, reset: bool) -> None:
    """Point NAME at the stored initialization DIGEST, or at the one whose digest begins with DIGEST.

    Requests to adapt that use NAME then start from that initialization. Existing adapters do not change. The name belongs to the
    base model of the initialization.
    """
    if reset == (digest is not None):
        sys.exit("error: expected either DIGEST or --reset")
    with exit_on_redis_error("the name was not moved"):
        store = open_records_and_weights(data_dir)[0].initializations
        if digest is None:
            bases = [base for base, pointer in store.pointers() if pointer == name]
            for base in bases:
                store.point(base, name, None)
            sys.exit(None if bases else f"error: NAME: expected one with a pointer, got {name!r}")
        if not re.fullmatch(r"[\w.:/ -]{1,100}", name) or name != name.strip():
            sys.exit(f"error: NAME: expected 1 to 100 letters, digits, spaces and . : / _ -, got {name!r}")
        full = _full_digest(store, digest)
        if (stored := store.read(full)) is None:
            sys.exit(f"error: {full[:16]} was forgotten meanwhile")
        store.point(stored.base, name, full)
    click.echo(f"{name} now means {full[:16]} on {stored.base_model}")


@initializations.command()
@click.argument("digest")
@click.pass_obj
def forget(data_dir: Path, digest: str) -> None:
    """Remove the stored initialization DIGEST, unless a record needs it or a name points at it."""
    with exit_on_redis_error("the initialization was not forgotten"):
        store = open_records_and_weights(data_dir)[0].initializations
        full = _full_digest(store, digest)
        if pointing := [name for (_, name), target in store.pointers().items() if target == full]:
            sys.exit(f"error: {full[:16]}: the name {pointing[0]} points at it; move the name first")
        if needed := store.forget(full):
            sys.exit(f"error: {full[:16]}: {needed} records need it; their adapters could not be made again")
    click.echo(f"{full[:16]} forgotten")


def _full_digest(store: Initializations, beginning: str) -> str:
    """Return the stored digest that begins with `beginning`.

    Exits with a one-line message unless there is exactly one.
    """
    if not re.fullmatch("[0-9a-f]{8,64}", beginning):
        sys.exit(f"error: DIGEST: expected at least 8 hexadecimal digits, got {beginning!r}")
    matching = [digest for digest in store.digests() if digest.startswith(beginning)]
    if len(matching) != 1:
        found = "none" if not matching else f"{len(matching)} of them"
        sys.exit(f"error: DIGEST: expected the beginning of one stored digest, {found} begin with {beginning!r}")
    return matching[0]


def _descriptions(store: Initializations) -> list[dict[str, Any]]:
    needed, pointers = store.needed(), store.pointers()
    stored = {digest: found for digest in store.digests() if (found := store.read(digest)) is not None}
    return [
        {
            "digest": digest,
            "name": found.name,
            "base_model": found.base_model,
            "readout": found.readout,
            "bytes": len(found.content),
            "records": needed.get(digest, 0),
            "names": [name for (_, name), target in pointers.items() if target == digest],
        }
        for digest, found in stored.items()
    ]
