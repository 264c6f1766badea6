"""The connection settings that both clients share."""

import os
from typing import Any

import httpx

from quickstudy.calls import Call
from quickstudy.one_line import one_line
from quickstudy.retries import Retries


class Connection:
    """The validated URL, API key, timeout and retries of a client.

    Raises ValueError for a malformed URL or key. The message never contains the key.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, retries: int) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"url: expected one like http://localhost:8000: {one_line(error)}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"url: expected one like http://localhost:8000, got {url!r}")
        self.retries = Retries(retries)
        self._timeout = float(timeout)  # a scalar of NumPy is a float, too
        headers = {}
        key = (os.environ.get("QUICKSTUDY_API_KEY", "") if api_key is None else api_key).strip()
        if key:
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise ValueError("api_key: expected a key as `quickstudy keys create` prints it, got one with other characters")
            headers["Authorization"] = f"Bearer {key}"
        self.settings: dict[str, Any] = {"base_url": parsed, "timeout": self._timeout, "headers": headers}

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Return the call as keyword arguments of `httpx.Client.request`."""
        return {
            "method": call.method,
            "url": call.path,
            "json": call.json,
            "params": call.params,
            "headers": call.headers,
            "timeout": self._timeout + call.wait_seconds,
        }
