"""Times as the commands read and print them."""

import re
from datetime import UTC, datetime

import click

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(option: str, time: str) -> int:
    """Return a length of time such as `90s`, `15m`, `12h` or `30d` in ms.

    Raises UsageError, which names the option, if the text has another form.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", time)
    if match is None:
        raise click.UsageError(f"{option}: expected a number and s, m, h or d, got {time!r}")
    return int(match[1]) * _UNITS[match[2]]


def shown_time(ms: int) -> str:
    """Return a Unix time in ms as text, in UTC, to the minute."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
