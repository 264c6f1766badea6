"""`quickstudy audit`: print the audit log.

The command accesses the records in Redis directly, not through the HTTP service.
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from service.running.commands.durations import milliseconds
from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir
from worker.ledger.audit import ACTIONS, AuditLog, Entry
from worker.ledger.clock import server_ms


@click.command()
@on_data_dir
@click.option("--tenant", help="Only changes that concern this tenant.")
@click.option("--since", metavar="TIME", default="7d", show_default=True, help="Only changes of the last 90s, 15m, 12h, 30d, ….")
@click.option("--action", "actions", type=click.Choice(ACTIONS), multiple=True, help="Only changes of this kind; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in each line.")
def audit(data_dir: Path, tenant: str | None, since: str, actions: tuple[str, ...], as_json: bool) -> None:
    """Print who changed what, oldest first.

    The changes are those of keys, limits, aliases and names of initializations, and deletions of adapters. At least the latest
    100,000 changes by command lines and the latest 10,000 changes of each tenant are kept.
    """
    length = milliseconds("--since", since)
    client = connect_to_records(data_dir.expanduser())[0]
    with exit_on_redis_error("the audit log was not printed"):
        for entry in AuditLog(client).since(server_ms(client) - length, tenant):
            if not actions or entry.action in actions:
                click.echo(json.dumps(_description(entry)) if as_json else _line(entry))


def _line(entry: Entry) -> str:
    time = datetime.fromtimestamp(entry.time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    actor = f"{entry.actor.kind} {entry.actor.identity}".strip()
    parts = [
        f"by {actor}",
        f"from {entry.actor.address}" if entry.actor.address else "",
        f"request {entry.request}" if entry.request else "",
    ]
    details = " ".join(f"{name}={_shown(value)}" for name, value in sorted(entry.details.items()))
    return "  ".join(filter(None, [time, f"{entry.action:<18}", entry.tenant, entry.subject, details, *parts]))


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _description(entry: Entry) -> dict[str, object]:
    """Return the description of an entry that `--json` prints, with the time in Unix seconds."""
    return {
        "id": entry.identity,
        "time": entry.time / 1000,
        "tenant": entry.tenant or None,
        "action": entry.action,
        "subject": entry.subject,
        "actor": {name: value or None for name, value in asdict(entry.actor).items()},
        "request_id": entry.request or None,
        "details": dict(entry.details),
    }
