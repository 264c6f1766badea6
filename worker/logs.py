"""Log lines that say whose they are, as fields: request, tenant, adapter, attempt, fence; never an input. Torch-free.

2026-11-21 10:00:00,000 INFO worker ready adapter=a1… tenant=default attempt=1 fence=7 request=…        LOG_FORMAT=text
{"time": "…", "level": "INFO", "part": "worker", "message": "ready", "adapter": "a1…", …}           LOG_FORMAT=json
"""

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

LogFormat = Literal["text", "json"]
_fields: ContextVar[dict[str, Any] | None] = ContextVar("log_fields", default=None)


@contextmanager
def fields(**named: Any) -> Iterator[None]:
    """What every line carries that is written within the block, in this thread or task."""
    token = _fields.set({**(_fields.get() or {}), **named})
    try:
        yield
    finally:
        _fields.reset(token)


def current_request() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return str((_fields.get() or {}).get("request", ""))


class Lines(logging.Formatter):
    """`part`: service or worker."""

    def __init__(self, part: str, form: LogFormat) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {part} %(message)s")
        self._part, self._json = part, form == "json"

    def format(self, record: logging.LogRecord) -> str:
        named = {name: value for name, value in (_fields.get() or {}).items() if value not in (None, "")}
        if not self._json:
            head, *rest = super().format(record).split("\n", 1)
            return "\n".join([" ".join([head, *(f"{name}={_plain(value)}" for name, value in named.items())]), *rest])
        line: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname, "part": self._part}
        line |= {"logger": record.name, "message": record.getMessage(), **named}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _plain(value: Any) -> str:
    """As it is where it is one word, else quoted: a path may hold a line break."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def places(error: BaseException) -> str:
    """The traceback without messages, which may quote an input."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def configure(part: str, level: str, form: LogFormat) -> None:
    """Everything that is logged or warned of, to stderr."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(part, form))
    logging.basicConfig(level=level, handlers=[handler])
