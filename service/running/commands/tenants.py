"""`quickstudy tenants`: limits and shares of single tenants, in place of the service's defaults.

The commands access the records in Redis directly, not through the HTTP service.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir
from worker.errors import InvalidKey, InvalidLimit
from worker.ledger.api_keys import KEY_CACHE_SECONDS
from worker.ledger.tenants import DEFAULT_SHARE, MOST_LIMIT, MOST_SHARE, Tenants, TenantSettings
from worker.ledger.usage import LIMITS


@click.group()
@on_data_dir
@click.pass_context
def tenants(context: click.Context, data_dir: Path) -> None:
    """Set, list and unset limits of single tenants.

    For all other tenants, the limits in the service's settings hold.
    """
    context.obj = data_dir.expanduser()


def _option(limit: str) -> str:
    """Return the option that sets a limit: `--max-jobs` for MAX_JOBS."""
    return f"--{limit.lower().replace('_', '-')}"


def _with_values(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option with a value for each limit, and `--share`, to a command."""
    share = click.IntRange(1, MOST_SHARE)
    command = click.option("--share", type=share, help="How large the tenant's turns are, in comparison with others; default: 1.")(
        command
    )
    for limit in reversed(LIMITS):
        command = click.option(_option(limit), type=click.IntRange(0, MOST_LIMIT), help=f"In place of {limit}; 0: no limit.")(
            command
        )
    return command


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add a flag for each limit, and `--share`, to a command."""
    command = click.option("--share", is_flag=True, help="Unset the share.")(command)
    for limit in reversed(LIMITS):
        command = click.option(_option(limit), is_flag=True, help=f"Unset {limit}.")(command)
    return command


@tenants.command("set")
@click.argument("tenant")
@_with_values
@click.pass_obj
def set_limits(data_dir: Path, /, tenant: str, share: int | None, **values: int | None) -> None:
    """Give TENANT limits of its own. Those that are not given stay as they are."""
    limits = {name.upper(): value for name, value in values.items() if value is not None}
    if not limits and share is None:
        raise click.UsageError(f"expected at least one of {', '.join(map(_option, LIMITS))}, --share")
    store = _tenants(data_dir)
    try:
        with exit_on_redis_error("the limits were not set"):
            settings = store.change(tenant, limits, share)
    except InvalidKey as error:
        raise click.UsageError(f"TENANT: expected {error.expected}, got {tenant!r}") from None
    except InvalidLimit as error:
        raise click.UsageError(f"{error}") from None
    click.echo(f"{tenant}  {_described(settings)}")
    click.echo(f"this holds within {KEY_CACHE_SECONDS:g} s", err=True)


@tenants.command("unset")
@click.argument("tenant")
@_with_flags
@click.pass_obj
def unset_limits(data_dir: Path, /, tenant: str, share: bool, **flags: bool) -> None:
    """Give TENANT the defaults again, for the limits that are named, or for everything if none is."""
    named = [*(name.upper() for name, is_set in flags.items() if is_set), *(["share"] if share else [])]
    with exit_on_redis_error("the limits were not unset"):
        found = _tenants(data_dir).reset(tenant, named)
    if not found:
        sys.exit(
            f"error: tenant {tenant} has no {' and no '.join(named) or 'limits'} of its own; `quickstudy tenants list` shows all"
        )
    click.echo(f"{tenant} has the defaults again{': ' + ' '.join(named) if named else ''}")


@tenants.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
@click.pass_obj
def list_limits(data_dir: Path, as_json: bool) -> None:
    """List the tenants that have limits or a share of their own."""
    with exit_on_redis_error("the tenants were not listed"):
        listed = _tenants(data_dir).all()
    if as_json:
        rows: list[dict[str, Any]] = [
            {"tenant": tenant, "limits": dict(own.limits), "share": own.share} for tenant, own in listed.items()
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, listed), default=0)
    for tenant, own in listed.items():
        click.echo(f"{tenant:<{width}}  {_described(own)}")
    if not listed:
        click.echo("no tenant has limits of its own")


def _described(own: TenantSettings) -> str:
    """Return a tenant's own settings on one line."""
    limits = [f"{name}={own.limits[name]}" for name in LIMITS if name in own.limits]
    return " ".join([*limits, *([f"share={own.share}"] if own.share != DEFAULT_SHARE else [])]) or "the defaults"


def _tenants(data_dir: Path) -> Tenants:
    return Tenants(connect_to_records(data_dir)[0])
