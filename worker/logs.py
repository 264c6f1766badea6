"""Log lines with context fields: request, tenant, adapter, attempt, fence.

No log line quotes an input. Torch-free.

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
    """Add fields to every log line that this thread or task writes within the block."""
    token = _fields.set({**(_fields.get() or {}), **named})
    try:
        yield
    finally:
        _fields.reset(token)


def current_request() -> str:
    """Return the id of the request that is being handled, or an empty string outside a request."""
    return str((_fields.get() or {}).get("request", ""))


class FieldsFormatter(logging.Formatter):
    """Formats log lines with their context fields, as text or as JSON.

    `part`: the process that logs, `service` or `worker`. `form`: `text` or `json`.
    """

    def __init__(self, part: str, form: LogFormat) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {part} %(message)s")
        self._part, self._json = part, form == "json"

    def format(self, record: logging.LogRecord) -> str:
        named = {name: value for name, value in (_fields.get() or {}).items() if value not in (None, "")}
        if not self._json:
            head, *rest = super().format(record).split("\n", 1)
            return "\n".join([" ".join([head, *(f"{name}={_quoted_if_needed(value)}" for name, value in named.items())]), *rest])
        line: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname, "part": self._part}
        line |= {"logger": record.name, "message": record.getMessage(), **named}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _quoted_if_needed(value: Any) -> str:
    """Return a field's value as text, encoded as a JSON string unless it is one printable word.

    The encoding keeps a value with a line break, such as an unusual path, on one line.
    """
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def places(error: BaseException) -> str:
    """Return the traceback and type of an error, without its message, which may quote an input."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def configure(part: str, level: str, form: LogFormat) -> None:
    """Send all log records and Python warnings to stderr, formatted by `FieldsFormatter`."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(FieldsFormatter(part, form))
    logging.basicConfig(level=level, handlers=[handler], force=True)  # a forked worker inherits the handlers of the service
