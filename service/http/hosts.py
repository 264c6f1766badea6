"""Check the Host header, so that no web page reaches the service under its own name (DNS rebinding).

A page of `http://attacker.example` may have its name resolved to 127.0.0.1 and then send requests to a service on the reader's
machine as if it were its own server. The browser still sends `Host: attacker.example`, by which the request is refused. A name
under `localhost` and a numeric address cannot be rebound, because no name server is asked for them.
"""

import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import UnknownHost, problem

ALIVE, READY = "/healthz", "/readyz"
HEALTH_PATHS = frozenset({ALIVE, READY})


def host_name(scope: Scope) -> str:
    """Return the lower-case name in the Host header, without the port, or "" if there is none."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def cannot_be_rebound(name: str) -> bool:
    """Return True if the name is `localhost`, a name below it, or a numeric address."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class AllowedHosts:
    """ASGI middleware that answers 421 to requests whose Host is not one of `names`.

    A name `*.example.com` allows all names below `example.com`. Loopback names and addresses are always allowed, because health
    checks within the machine use them. Probes of Kubernetes ask for `/healthz` and `/readyz` by the address of the pod, so these
    two are answered under every address.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app = app
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allows(name := host_name(scope), scope["path"]):
            await problem(UnknownHost(name, "ALLOWED_HOSTS does not name it"))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allows(self, name: str, path: str) -> bool:
        probed = path in HEALTH_PATHS and cannot_be_rebound(name)
        return probed or name in self._names or name.endswith(self._endings) or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
