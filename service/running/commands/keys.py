"""`quickstudy keys`: create, list and revoke API keys.

The commands access the records in Redis directly, not through the HTTP service.
"""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir
from worker.errors import InvalidKey
from worker.ledger.api_keys import DEFAULT_TENANT, KEY_CACHE_SECONDS, SCOPES, Key, Keys, Scope

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@click.group()
@on_data_dir
@click.pass_context
def keys(context: click.Context, data_dir: Path) -> None:
    """Create, list and revoke API keys. Once the first key exists, the service always requires a key."""
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
    help="Repeatable. `admin` includes the others.",
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
    lives_ms = None if expires is None else _milliseconds(expires)
    store = _keys(data_dir)
    try:
        with exit_on_redis_error("the key was not created"):
            first = not store.any()
            identity, secret_key, key = store.create(tenant, name, scopes, lives_ms=lives_ms)
    except InvalidKey as error:
        sys.exit(f"error: --{error}")
    click.echo(json.dumps({"key": secret_key, **_description(identity, key, key.created_at)}, indent=2) if as_json else secret_key)
    if not as_json:
        until = "" if key.expires_at is None else f", until {_day(key.expires_at)}"
        click.echo(
            f"key {identity} of tenant {tenant} ({' '.join(key.scopes)}{until}); store it now, it cannot be shown again", err=True
        )
    if first:
        closed = f"this is the first key: within {KEY_CACHE_SECONDS:g} s, and from then on, every request needs a key"
        others = "" if tenant == DEFAULT_TENANT else f"; what was made without a key belongs to tenant {DEFAULT_TENANT}"
        click.echo(closed + others, err=True)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
@click.pass_obj
def list_keys(data_dir: Path, as_json: bool) -> None:
    """List all keys, oldest first, including revoked and expired keys. Secrets are not shown."""
    store = _keys(data_dir)
    with exit_on_redis_error("the keys were not listed"):
        listed, now = store.list(), store.now()
    if as_json:
        click.echo(json.dumps([_description(identity, key, now) for identity, key in listed], indent=2))
        return
    width = max((len(key.tenant) for _, key in listed), default=0)
    for identity, key in listed:
        until = "" if key.expires_at is None else f"until {_day(key.expires_at)}"
        line = f"{identity}  {key.tenant:<{width}}  {_state(key, now):<7}  {' '.join(key.scopes):<19}  {until:<22}  {key.name}"
        click.echo(line.rstrip())
    if not listed:
        click.echo("no keys: the service is open")


@keys.command()
@click.argument("identity", metavar="ID")
@click.pass_obj
def revoke(data_dir: Path, identity: str) -> None:
    """Revoke a key by its id, which `keys list` shows."""
    if not re.fullmatch(r"[0-9a-f]{12}", identity):
        sys.exit(
            "error: ID: expected the 12 characters that `quickstudy keys list` shows"
        )  # the value is not shown: it may be a whole key
    store = _keys(data_dir)
    with exit_on_redis_error("the key was not revoked"):
        known = store.revoke(identity)
    if not known:
        sys.exit(f"error: ID: no key {identity}; `quickstudy keys list` shows all keys")
    click.echo(f"{identity} is revoked; it stops working within {KEY_CACHE_SECONDS:g} s")


def _keys(data_dir: Path) -> Keys:
    return Keys(connect_to_records(data_dir)[0])


def _milliseconds(time: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", time)
    if match is None:
        sys.exit(f"error: --expires: expected a number and s, m, h or d, got {time!r}")
    return int(match[1]) * _UNITS[match[2]]


def _state(key: Key, now: int) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if key.holds(now) else "expired"


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")


def _description(identity: str, key: Key, now: int) -> dict[str, object]:
    """Return the description of a key that `--json` prints, with times in Unix seconds."""
    times = {"created_at": key.created_at, "expires_at": key.expires_at, "revoked_at": key.revoked_at}
    return {
        "id": identity,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": list(key.scopes),
        "state": _state(key, now),
        **{name: None if ms is None else ms / 1000 for name, ms in times.items()},
    }
