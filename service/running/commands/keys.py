"""`quickstudy keys`: create, list, rotate and revoke API keys.

The commands access the records in Redis directly, not through the HTTP service.
"""

import json
import re
import sys
from pathlib import Path

import click

from service.running.commands.durations import milliseconds, shown_time
from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir
from worker.errors import InvalidKey, UnknownKey
from worker.ledger.api_keys import DEFAULT_TENANT, KEY_CACHE_SECONDS, SCOPES, Key, Keys, Scope
from worker.ledger.key_uses import KeyUses


@click.group()
@on_data_dir
@click.pass_context
def keys(context: click.Context, data_dir: Path) -> None:
    """Create, list, rotate and revoke API keys.

    Once the first key exists, the service always requires a key.
    """
    context.obj = data_dir.expanduser()


@keys.command()
@click.option(
    "--tenant",
    default=DEFAULT_TENANT,
    show_default=True,
    help="Tenant whose data the key gives access to; its first key creates it.",
)
@click.option("--name", default="", help="Purpose of the key, for `keys list`.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=("adapt", "predict"),
    show_default=True,
    help="Repeatable. `adapt` and `predict` include `read`; `admin` includes all others.",
)
@click.option(
    "--expires",
    metavar="TIME",
    help="Time from now until the key expires: 90s, 15m, 12h, 30d. Without it, the key does not expire.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def create(data_dir: Path, tenant: str, name: str, scopes: tuple[Scope, ...], expires: str | None, as_json: bool) -> None:
    """Create a key and print it. It cannot be shown again: only its hash is stored."""
    lives_ms = None if expires is None else milliseconds("--expires", expires)
    store = _keys(data_dir)
    try:
        with exit_on_redis_error("the key was not created"):
            first = not store.any()
            identity, secret_key, key = store.create(tenant, name, scopes, lives_ms=lives_ms)
    except InvalidKey as error:
        raise click.UsageError(f"--{error}") from None
    _show_new_key(identity, secret_key, key, as_json=as_json)
    if first:
        closed = f"this is the first key: within {KEY_CACHE_SECONDS:g} s, and from then on, every request needs a key"
        others = "" if tenant == DEFAULT_TENANT else f"; what was made without a key belongs to tenant {DEFAULT_TENANT}"
        click.echo(closed + others, err=True)


def _show_new_key(identity: str, secret_key: str, key: Key, *, as_json: bool) -> None:
    click.echo(json.dumps({"key": secret_key, **_description(identity, key, key.created_at)}, indent=2) if as_json else secret_key)
    if not as_json:
        until = "" if key.expires_at is None else f", until {shown_time(key.expires_at)}"
        scopes = " ".join(key.scopes)
        click.echo(f"key {identity} of tenant {key.tenant} ({scopes}{until}); store it now, it cannot be shown again", err=True)


@keys.command("list")
@click.option(
    "--unused-for",
    metavar="TIME",
    help="Only valid keys that were not used for so long: 90d, 12h. A key that was never used counts from its creation, or from "
    "when the services began to record uses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
@click.pass_obj
def list_keys(data_dir: Path, unused_for: str | None, as_json: bool) -> None:
    """List all keys, oldest first, including revoked and expired keys, with their last use.

    Secrets are not shown. A service records the use of a key within a second if it is the first one, and at most once a minute
    after that.
    """
    unused_ms = None if unused_for is None else milliseconds("--unused-for", unused_for)
    client = connect_to_records(data_dir)[0]
    store, key_uses = Keys(client), KeyUses(client)
    with exit_on_redis_error("the keys were not listed"):
        listed, now, used, since = store.list(), store.now(), key_uses.latest(), key_uses.since()
    shown = listed
    if unused_ms is not None:
        before = now - unused_ms

        def is_unused(identity: str, key: Key) -> bool:
            last = used.get(identity) or max(key.created_at, now if since is None else since)
            return key.holds(now) and last <= before

        shown = [(identity, key) for identity, key in listed if is_unused(identity, key)]
    if as_json:
        click.echo(json.dumps([_description(identity, key, now, used.get(identity)) for identity, key in shown], indent=2))
        return
    _print_table([_row(identity, key, now, used.get(identity)) for identity, key in shown])
    if not listed:
        click.echo("no keys: the service is open")


def _row(identity: str, key: Key, now: int, used: int | None) -> list[str]:
    until = "" if key.expires_at is None else f"until {shown_time(key.expires_at)}"
    last = "" if used is None else f"used {shown_time(used)}"
    return [identity, key.tenant, _state(key, now), " ".join(key.scopes), until, last, key.name]


def _print_table(rows: list[list[str]]) -> None:
    """Print rows with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("identity", metavar="ID")
@click.option(
    "--grace", metavar="TIME", default="24h", show_default=True, help="How long the old key still works: 0, 90s, 15m, 12h, 30d."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def rotate(data_dir: Path, identity: str, grace: str, as_json: bool) -> None:
    """Create a key in place of the key ID, with the same tenant, scopes and name, and print it.

    The old key stops working after the grace time. If it was created with --expires, the new one lives as long from now on.
    """
    _check_id(identity)
    grace_ms = 0 if grace in ("0", "0s") else milliseconds("--grace", grace)
    store = _keys(data_dir)
    try:
        with exit_on_redis_error("the key was not rotated"):
            new_identity, secret_key, key = store.rotate(identity, grace_ms)
    except UnknownKey:
        sys.exit(f"error: ID: no key {identity}; `quickstudy keys list` shows all keys")
    except InvalidKey as error:
        sys.exit(f"error: {error}")
    _show_new_key(new_identity, secret_key, key, as_json=as_json)
    if not as_json:
        stops = f"within {KEY_CACHE_SECONDS:g} s" if grace_ms == 0 else f"after {grace}"
        click.echo(f"key {identity} stops working {stops}", err=True)


@keys.command()
@click.argument("identity", metavar="ID")
@click.pass_obj
def revoke(data_dir: Path, identity: str) -> None:
    """Revoke a key by its id, which `keys list` shows."""
    _check_id(identity)
    store = _keys(data_dir)
    with exit_on_redis_error("the key was not revoked"):
        known = store.revoke(identity)
    if not known:
        sys.exit(f"error: ID: no key {identity}; `quickstudy keys list` shows all keys")
    click.echo(f"{identity} is revoked; it stops working within {KEY_CACHE_SECONDS:g} s")


def _keys(data_dir: Path) -> Keys:
    return Keys(connect_to_records(data_dir)[0])


def _check_id(identity: str) -> None:
    """Raise UsageError unless `identity` has the form of a key's id."""
    if not re.fullmatch(r"[0-9a-f]{12}", identity):
        # The value is not shown, because it may be a whole key.
        raise click.UsageError("ID: expected the 12 characters that `quickstudy keys list` shows")


def _state(key: Key, now: int) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if key.holds(now) else "expired"


def _description(identity: str, key: Key, now: int, used: int | None = None) -> dict[str, object]:
    """Return the description of a key that `--json` prints, with times in Unix seconds.

    `used`: its last use, in ms.
    """
    times = {"created_at": key.created_at, "expires_at": key.expires_at, "revoked_at": key.revoked_at, "last_used_at": used}
    return {
        "id": identity,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": list(key.scopes),
        "state": _state(key, now),
        "replaced_by": key.replaced_by,
        **{name: None if ms is None else ms / 1000 for name, ms in times.items()},
    }
