"""Headers that every answer gets, for browsers and for the proxies and caches on the way to them."""

from collections.abc import Iterable

_DEFAULTS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Sent unless the route sets another value."""
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def with_standard_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer together with the standard ones.

    Answers hold a tenant's data, so no cache may store them. No page may run or embed them, and no browser may guess another type.
    The page `/docs` and its files set their own Cache-Control and Content-Security-Policy.
    """
    own = list(headers)
    names = {name for name, _ in own}
    return [*own, *(header for header in _DEFAULTS if header[0] not in names), *_ALWAYS]
