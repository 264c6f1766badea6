"""Checks of request fields that all task kinds share.

Every error names the field, what was expected and what was received. Other checks are elsewhere: `service.kinds` checks the
examples of each task kind, and `service.adapting.checked_request` checks whole adaptation requests.
"""

from collections.abc import Sequence

from service.errors import Described, InvalidRequest
from service.settings import ServiceSettings
from worker.ledger.aliases import is_alias

SEEN_TEXT = "a text of which the base model sees at least one token"
"""What is expected of a text that leaves no token, such as a zero-width space. It counts as empty."""


def check_count(field: str, number: int, least: int, most: int, noun: str, suffix: str = "") -> None:
    """Raise InvalidRequest unless least ≤ number ≤ most.

    `noun` says in the message what the number counts, such as `examples`. `suffix` is added after the expected range.
    """
    if not least <= number <= most:
        raise InvalidRequest(field, f"{least} to {most} {noun}{suffix}", Described(f"{number} {noun}"))


def check_notes(name: str | None, tags: Sequence[str] | None) -> None:
    """Raise InvalidRequest if an adapter's name or a tag is blank, or has NUL or lone surrogates.

    None means that the request sets no name or no tags. Lengths are limited by the request's schema.
    """
    if name is not None:
        check_text("name", name, len(name))
    for i, tag in enumerate(tags or ()):
        check_text(f"tags[{i}]", tag, len(tag))


def check_ttl(ttl_seconds: int | None, settings: ServiceSettings) -> None:
    """Raise InvalidRequest if an adapter's time to live is longer than MAX_TTL_SECONDS.

    None means that the request sets no time to live, which is valid.
    """
    if ttl_seconds is not None and ttl_seconds > settings.max_ttl_seconds:
        raise InvalidRequest("ttl_seconds", f"at most {settings.max_ttl_seconds}", ttl_seconds)


def check_inputs(inputs: Sequence[str], settings: ServiceSettings) -> None:
    """Raise InvalidRequest for the first error in the inputs of a prediction."""
    check_count("inputs", len(inputs), 1, settings.max_inputs, "texts")
    for i, text in enumerate(inputs):
        check_text(f"inputs[{i}]", text, settings.max_text_chars)


def check_alias(alias: str) -> None:
    """Raise InvalidRequest if an alias could be mistaken for an adapter id, or has invalid characters."""
    if not is_alias(alias):
        raise InvalidRequest("alias", "a name that does not have the form of an adapter's id", alias)


def check_text(field: str, text: str, most: int) -> None:
    """Raise InvalidRequest if the text is blank, has over `most` characters, or is not valid Unicode.

    NUL and lone surrogates are not valid.
    """
    if not text.strip():
        raise InvalidRequest(field, "a text that is not empty", text)
    if len(text) > most:
        raise InvalidRequest(field, f"at most {most} characters", Described(f"{len(text)} characters"))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, "Unicode text without lone surrogates", text) from None
    if "\x00" in text:
        raise InvalidRequest(field, "Unicode text without NUL", text)
