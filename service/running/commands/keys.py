"""`quickstudy keys`: API keys, made, listed and revoked beside the records, whether a service runs or not."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import redis

from service.running.find_records import on_data_dir, reach_redis
from worker.errors import InvalidKey
from worker.ledger.api_keys import DEFAULT_TENANT, KEY_CACHE_SECONDS, SCOPES, Key, Keys, Scope

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@click.group()
@on_data_dir
@click.pass_context
def keys(context: click.Context, data_dir: Path) -> None:
    """API keys. From the first one on, the service asks for one, for good."""
    context.obj = data_dir.expanduser()


@keys.command()
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose data the key opens; there from its first key on.")
@click.option("--name", default="", help="What it is for, as `keys list` shows it.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=("adapt", "predict"),
    show_default=True,
    help="Repeatable. `admin` has the others too.",
)
@click.option("--expires", metavar="TIME", help="From now: 90s, 15m, 12h, 30d. Never where absent.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def create(data_dir: Path, tenant: str, name: str, scopes: tuple[Scope, ...], expires: str | None, as_json: bool) -> None:
    """Make a key and show it, this once: only its hash is kept."""
    lives_ms = None if expires is None else _milliseconds(expires)
    store = _keys(data_dir)
    try:
        with _in_reach("the key is not made"):
            first = not store.any()
            identity, whole, key = store.create(tenant, name, scopes, lives_ms=lives_ms)
    except InvalidKey as error:
        sys.exit(f"error: --{error}")
    click.echo(json.dumps({"key": whole, **_described(identity, key, key.created_at)}, indent=2) if as_json else whole)
    if not as_json:
        until = "" if key.expires_at is None else f", until {_day(key.expires_at)}"
        click.echo(f"key {identity} of tenant {tenant} ({' '.join(key.scopes)}{until}); it is not shown again", err=True)
    if first:
        click.echo(f"this is the first key: within {KEY_CACHE_SECONDS:g} s every request needs one, for good", err=True)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@click.pass_obj
def list_keys(data_dir: Path, as_json: bool) -> None:
    """Every key ever made, the oldest first, without its secret."""
    store = _keys(data_dir)
    with _in_reach("the keys are not listed"):
        found, now = store.list(), store.now()
    if as_json:
        click.echo(json.dumps([_described(identity, key, now) for identity, key in found], indent=2))
        return
    width = max((len(key.tenant) for _, key in found), default=0)
    for identity, key in found:
        until = "" if key.expires_at is None else f"until {_day(key.expires_at)}"
        line = f"{identity}  {key.tenant:<{width}}  {_state(key, now):<7}  {' '.join(key.scopes):<19}  {until:<22}  {key.name}"
        click.echo(line.rstrip())
    if not found:
        click.echo("no keys: the service is open")


@keys.command()
@click.argument("identity", metavar="ID")
@click.pass_obj
def revoke(data_dir: Path, identity: str) -> None:
    """End a key, by the id that `keys list` shows."""
    if not re.fullmatch(r"[0-9a-f]{12}", identity):
        sys.exit("error: ID: expected the 12 characters that `quickstudy keys list` shows")  # and not shown: it may be a whole key
    store = _keys(data_dir)
    with _in_reach("the key is not revoked"):
        known = store.revoke(identity)
    if not known:
        sys.exit(f"error: ID: there is no key {identity}")
    click.echo(f"{identity} is revoked; it stops working within {KEY_CACHE_SECONDS:g} s")


def _keys(data_dir: Path) -> Keys:
    return Keys(reach_redis(data_dir)[0])


@contextmanager
def _in_reach(otherwise: str) -> Iterator[None]:
    """Exits with one line where the records go, or refuse, in the middle."""
    try:
        yield
    except redis.RedisError as error:
        sys.exit(f"error: {otherwise}: {type(error).__name__}")


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


def _described(identity: str, key: Key, now: int) -> dict[str, object]:
    """Times in Unix seconds."""
    times = {"created_at": key.created_at, "expires_at": key.expires_at, "revoked_at": key.revoked_at}
    return {
        "id": identity,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": list(key.scopes),
        "state": _state(key, now),
        **{name: None if ms is None else ms / 1000 for name, ms in times.items()},
    }
