"""What both clients connect with."""

import os
from typing import Any

import httpx

from quickstudy.calls import Call
from quickstudy.retries import Retries


class Connection:
    """Raises ValueError for a URL or a key that cannot be one; the key is in no message."""

    def __init__(self, url: str, api_key: str | None, timeout: float, retries: int) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"url: expected one like http://localhost:8000, got {url!r}")
        self.retries = Retries(retries)
        self._timeout = timeout
        headers = {}
        key = (os.environ.get("QUICKSTUDY_API_KEY", "") if api_key is None else api_key).strip()
        if key:
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise ValueError("api_key: expected one as `quickstudy keys create` prints it, got something with other characters")
            headers["Authorization"] = f"Bearer {key}"
        self.settings: dict[str, Any] = {"base_url": parsed, "timeout": timeout, "headers": headers}

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """As the `request` of an httpx client takes it."""
        return {
            "method": call.method,
            "url": call.path,
            "json": call.json,
            "params": call.params,
            "headers": call.headers,
            "timeout": self._timeout + call.waits,
        }
