"""Checks of request fields that all task kinds share.

Every error names the field, what was expected and what came. `service.kinds` checks the examples of each task kind,
`service.adapting.checked_request` whole requests to adapt.
"""

from collections.abc import Sequence

from service.errors import InvalidRequest
from service.settings import ServiceSettings
from worker.ledger.aliases import is_alias


def check_count(field: str, number: int, least: int, most: int, noun: str, suffix: str = "") -> None:
    """Raise InvalidRequest unless least ≤ number ≤ most. `noun` and `suffix` complete the message."""
    if not least <= number <= most:
        raise InvalidRequest(field, f"{least} to {most} {noun}{suffix}", f"{number} {noun}")


def check_notes(name: str | None, tags: Sequence[str] | None) -> None:
    """Raise InvalidRequest if a name or tag is blank or not proper Unicode. The schema limits lengths."""
    if name is not None:
        check_text("name", name, len(name))
    for i, tag in enumerate(tags or ()):
        check_text(f"tags[{i}]", tag, len(tag))


def check_ttl(ttl_seconds: int | None, settings: ServiceSettings) -> None:
    """Raise InvalidRequest if the time to live is longer than MAX_TTL_SECONDS. None: not set."""
    if ttl_seconds is not None and ttl_seconds > settings.max_ttl_seconds:
        raise InvalidRequest("ttl_seconds", f"at most {settings.max_ttl_seconds}", ttl_seconds)


def check_inputs(inputs: Sequence[str], settings: ServiceSettings) -> None:
    """Raise InvalidRequest for the first error in the inputs of a prediction."""
    check_count("inputs", len(inputs), 1, settings.max_inputs, "texts")
    for i, text in enumerate(inputs):
        check_text(f"inputs[{i}]", text, settings.max_text_chars)


def check_alias(alias: str) -> None:
    """Raise InvalidRequest for an alias that has the form of an adapter's id."""
    if not is_alias(alias):
        raise InvalidRequest("alias", "a name that does not have the form of an adapter's id", alias)


def check_text(field: str, text: str, most: int) -> None:
    """Raise InvalidRequest if the text is blank, longer than `most` characters, or not proper Unicode."""
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
