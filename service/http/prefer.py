"""Parse the `Prefer` header, with which a client asks the service to wait for the result."""

from service.errors import InvalidRequest


def prefer_wait(header: str | None, most: float) -> float:
    """Return the number of seconds in `Prefer: wait=N` (RFC 7240), limited to `most`.

    Returns 0 if the header is missing or has no `wait`. Raises InvalidRequest if N is not a number of seconds.
    """
    for preference in (header or "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait":
            try:
                seconds = float(value.strip().strip('"'))
            except ValueError:
                seconds = -1.0
            if not 0 <= seconds < float("inf"):
                raise InvalidRequest("Prefer", "wait=SECONDS", header)
            return min(seconds, most)
    return 0.0
