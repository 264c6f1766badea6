"""`quickstudy initializations`: list stored initializations, move names, forget unneeded ones.

The commands access the records in Redis directly, not through the HTTP service.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from quickstudy.one_line import one_line, shown

from service.running.find_records import exit_on_redis_error, on_data_dir, open_records_and_weights
from worker.ledger.initializations import Initializations
from worker.settings import WorkerSettings, read_settings

if TYPE_CHECKING:
    from metatrain.models.description import BaseDescription


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
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def check(folder: Path | None) -> None:
    """Show what a service would take from FOLDER, and why not the rest. Default: INITIALIZATIONS_DIR.

    Exit with code 1 if something would not be taken. The base models are those of BASE_MODEL; their weights are not loaded.
    """
    from metatrain.artifacts.catalog import find_initializations
    from metatrain.errors import ArtifactError
    from metatrain.models.loading import describe_base
    from metatrain.models.source import Hub

    settings = read_settings(WorkerSettings)
    if (parent := folder or settings.initializations_dir) is None:
        raise click.UsageError("FOLDER: expected a folder, because INITIALIZATIONS_DIR is not set")
    hub = Hub(reachable=not settings.air_gapped, token=settings.hub_token)
    folders, not_taken = find_initializations(parent)
    bases = [describe_base(name, precision=settings.precision, hub=hub) for name in settings.base_models]
    for path in folders:
        try:
            click.echo(f"{shown(path.name)} is taken, for {_base_of(path, bases)}")
        except ArtifactError as error:
            not_taken[path.name] = str(error)
    for name, reason in not_taken.items():
        click.echo(one_line(f"{shown(name)} is not taken: {reason}"))
    if not_taken:
        sys.exit(1)
    if not folders:
        click.echo("no initializations there")


def _base_of(folder: Path, bases: "Sequence[BaseDescription]") -> str:
    """Return the name of the base model that an initialization loads on. Raises ArtifactError."""
    from metatrain.artifacts.initialization import load_initialization, read_description

    identity = read_description(folder).base.identity
    base = next((base for base in bases if base.spec.identity == identity), bases[0])
    load_initialization(folder, base)  # if no base model fits, this names the difference
    return base.spec.model


def _checked_digest(_context: click.Context, _parameter: click.Parameter, digest: str | None) -> str | None:
    if digest is not None and not re.fullmatch("[0-9a-f]{8,64}", digest):
        raise click.UsageError(f"DIGEST: expected 8 to 64 hexadecimal digits, got {digest!r}")
    return digest


@initializations.command()
@click.argument("name")
@click.argument("digest", required=False, callback=_checked_digest)
@click.option("--reset", is_flag=True, help="Remove the pointer: the name again means what the services have loaded under it.")
@click.pass_obj
def move(data_dir: Path, name: str, digest: str | None, reset: bool) -> None:
    """Point NAME at the stored initialization DIGEST, or at the one whose digest begins with DIGEST.

    Requests to adapt that use NAME then start from that initialization. Existing adapters do not change. The name belongs to the
    base model of the initialization.
    """
    if reset == (digest is not None):
        raise click.UsageError("expected either DIGEST or --reset")
    with exit_on_redis_error("the name was not moved"):
        store = open_records_and_weights(data_dir)[0].initializations
        if digest is None:
            bases = [base for base, pointer in store.pointers() if pointer == name]
            for base in bases:
                store.point(base, name, None)
            sys.exit(None if bases else f"error: NAME: expected one with a pointer, got {name!r}")
        if not re.fullmatch(r"[\w.:/ -]{1,100}", name) or name != name.strip():
            raise click.UsageError(f"NAME: expected 1 to 100 letters, digits, spaces and . : / _ -, got {name!r}")
        full = _full_digest(store, digest)
        if (stored := store.read(full)) is None:
            sys.exit(f"error: {full[:16]} was forgotten meanwhile")
        store.point(stored.base, name, full)
    click.echo(f"{name} now means {full[:16]} on {stored.base_model}")


@initializations.command()
@click.argument("digest", callback=_checked_digest)
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
