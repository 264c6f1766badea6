"""What the parts of a request may hold. Every check names the field, what was expected and what came.

Examples are checked by their kind of task (`service.kinds`), whole requests to adapt in `service.adapting.checked_request`.
"""

from collections.abc import Sequence

from service.errors import InvalidRequest
from service.settings import ServiceSettings
from worker.ledger.aliases import is_alias


def check_count(field: str, number: int, least: int, most: int, what: str, beside: str = "") -> None:
    """Raises InvalidRequest unless `number` is in [least, most]."""
    if not least <= number <= most:
        raise InvalidRequest(field, f"{least} to {most} {what}{beside}", f"{number} {what}")


def check_notes(name: str | None, tags: Sequence[str] | None) -> None:
    """Raises InvalidRequest. Their lengths are the schema's."""
    if name is not None:
        check_text("name", name, len(name))
    for i, tag in enumerate(tags or ()):
        check_text(f"tags[{i}]", tag, len(tag))


def check_ttl(ttl_seconds: int | None, settings: ServiceSettings) -> None:
    """Raises InvalidRequest."""
    if ttl_seconds is not None and ttl_seconds > settings.max_ttl_seconds:
        raise InvalidRequest("ttl_seconds", f"at most {settings.max_ttl_seconds}", ttl_seconds)


def check_inputs(inputs: Sequence[str], settings: ServiceSettings) -> None:
    """Raises InvalidRequest for the first thing that is wrong with the inputs of a prediction."""
    check_count("inputs", len(inputs), 1, settings.max_inputs, "texts")
    for i, text in enumerate(inputs):
        check_text(f"inputs[{i}]", text, settings.max_text_chars)


def check_alias(alias: str) -> None:
    """Raises InvalidRequest for a name that looks like an adapter's id."""
    if not is_alias(alias):
        raise InvalidRequest("alias", "a name that is not of the form of an adapter's id", alias)


def check_text(field: str, text: str, most: int) -> None:
    """Raises InvalidRequest for a text that is empty, longer than `most` characters, or no proper Unicode."""
    if not text.strip():
        raise InvalidRequest(field, "a text that is not empty", text)
    if len(text) > most:
        raise InvalidRequest(field, f"at most {most} characters", f"{len(text)} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, "Unicode text without lone surrogates", text) from None
    if "\x00" in text:
        raise InvalidRequest(field, "Unicode text without NUL", text)
