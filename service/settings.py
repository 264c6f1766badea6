"""Settings of the service, read once from environment variables."""

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from worker.ledger.usage import LIMITS
from worker.settings import WorkerSettings


def predictor_address(url: str) -> str | tuple[str, int]:
    """Parse the URL of a predictor into the path of a Unix socket, or into (host, port).

    Raises ValueError unless the URL is `unix:///path` or `tcp://host:port`.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return parts.path
    if parts.scheme == "tcp" and parts.hostname and parts.port and parts.path in ("", "/"):
        return parts.hostname, parts.port
    raise ValueError("expected unix:///path or tcp://host:port")


def _predictor_url(url: str) -> str:
    predictor_address(url)
    return url


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in names.split(",") if name.strip())


def _host_names(names: str) -> str:
    for name in _split(names):
        if name != "*" and ("*" in name.removeprefix("*.") or ":" in name or "/" in name):
            raise ValueError(f"expected host names without port, such as a.example.com or *.example.com, or *, got {name!r}")
    return names


def _networks(addresses: str) -> str:
    for address in _split(addresses):
        try:
            ipaddress.ip_network(address)
        except ValueError as error:
            raise ValueError(f"expected addresses or networks, such as 10.0.0.7 or 172.16.0.0/12, got {address!r}") from error
    return addresses


class ServiceSettings(WorkerSettings):
    """The settings of a service: those that it shares with the workers, and its own.

    Services and workers must agree on the shared settings, which `WorkerSettings` defines. Each field is read from the environment
    variable with the field's name in capitals.
    """

    allow_without_keys: bool = Field(
        default=False,
        description="accept requests without an API key on any address until the first key exists; default: only on loopback",
    )
    max_body_bytes: int = Field(default=8_000_000, ge=1_000, description="largest request body, in bytes; larger ones get 413")
    allowed_hosts: Annotated[str, AfterValidator(_host_names)] = Field(
        default="",
        description="names, separated by commas, that the Host header may have; *.example.com allows all names below it, * any; "
        "others get 421. Loopback names are always allowed, and numeric addresses for /healthz and /readyz. Empty: any name, but "
        "while there is no API key only localhost and numeric addresses",
    )
    forwarded_allow_ips: Annotated[str, AfterValidator(_networks)] = Field(
        default="",
        description="addresses or networks of proxies, separated by commas, whose X-Forwarded-For names the client; empty: none",
    )
    failed_key_delay_seconds: float = Field(
        default=1,
        ge=0,
        le=30,
        description="longest delay of the answer to a wrong API key, in seconds, once an address has sent many; 0: no delay",
    )
    header_seconds: float = Field(
        default=10,
        gt=0,
        description="longest time that the headers of a request may take to arrive, in seconds; slower ones get 408",
    )
    body_seconds: float = Field(
        default=60,
        gt=0,
        description="longest time that a body may take to arrive, in seconds; slower ones get 408, and so do those that after "
        "10 seconds arrive at less than 20 kB a second",
    )
    keep_alive_seconds: int = Field(
        default=30, ge=1, description="time after which a connection is closed on which no further request comes, in seconds"
    )
    max_connections: int = Field(default=800, ge=1, description="most open connections; further ones get 503 and are closed")
    max_connections_per_address: int = Field(
        default=400,
        ge=1,
        description="most open connections from one address, unless it is in FORWARDED_ALLOW_IPS; further ones get 503 and are "
        "closed",
    )
    stop_seconds: float = Field(
        default=60,
        ge=0,
        description="longest time that running requests get after SIGTERM, in seconds; new ones get 503 meanwhile, and so do those "
        "that are then unanswered",
    )
    max_bodies_bytes: int = Field(
        default=128_000_000,
        ge=0,
        description="most bytes of request bodies that one process holds at once; further ones get 503; 0: no limit",
    )
    max_tenant_bodies_bytes: int = Field(
        default=32_000_000,
        ge=0,
        description="most bytes of a tenant's request bodies that one process holds at once; further ones get 429; 0: no limit",
    )
    max_examples: int = Field(default=2_000, ge=2, description="most examples in a support set, and in one request to score")
    max_labels: int = Field(default=200, ge=2, description="most different labels in a support set")
    max_text_chars: int = Field(default=10_000, ge=1, description="longest text of one example or input, in characters")
    max_label_chars: int = Field(default=200, ge=1, description="longest label, in characters")
    max_inputs: int = Field(default=256, ge=1, description="most inputs in one request to predict")
    default_ttl_seconds: int = Field(
        default=7 * 24 * 3600, ge=1, description="time to live of an adapter whose request sets none, in seconds; default: 7 days"
    )
    max_ttl_seconds: int = Field(
        default=90 * 24 * 3600, ge=1, description="longest time to live that a request may set, in seconds; default: 90 days"
    )
    max_wait_seconds: float = Field(default=60, ge=0, description="longest wait that a `Prefer: wait` header gets, in seconds")
    readapt_wait_seconds: float = Field(
        default=5, ge=0, description="longest time that a prediction waits for an evicted adapter to be adapted again, in seconds"
    )
    bank_mb: float = Field(default=256, gt=0, description="device memory for adapters, in MiB, divided among the base models")
    shelf_mb: float = Field(
        default=1024,
        ge=0,
        description="host memory for adapters that are not on the device, in MiB, divided among the base models",
    )
    batch_rows: int = Field(default=64, ge=1, description="most rows in one forward pass")
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens in one forward pass; a longer row runs alone. "
        "If unset, 512 for each CPU thread and at most 4096, or 4096 on a GPU",
    )
    batch_wait_ms: float = Field(
        default=2,
        ge=0,
        le=1000,
        description="longest time that a batch waits for calls that are still being prepared, in milliseconds",
    )
    predictor_hang_seconds: float = Field(
        default=30,
        gt=0,
        description="how long calls may wait without the end of a batch before the predictor counts as hanging, in seconds",
    )
    predictor_url: Annotated[str, AfterValidator(_predictor_url)] | None = Field(
        default=None,
        description="address of a predictor that runs as a separate process: unix:///path or tcp://host:port; "
        "unset: predict in this process",
    )
    predict_seconds: float = Field(
        default=60,
        gt=0,
        description="deadline of a prediction, in seconds; a call that by the estimate would be answered later gets 429 at once, "
        "unless it is the only one that waits; what is not answered by then gets 503",
    )
    queue_rows: int = Field(
        default=2048,
        ge=1,
        description="most inputs that may wait for a prediction; further ones get 429. "
        "While other tenants have inputs waiting, one tenant may use half of them, and each finds room for its equal part",
    )
    max_adapters: int = Field(default=1_000, ge=0, description="most adapters of a tenant, whatever their status; 0: no limit")
    max_adapter_bytes: int = Field(
        default=700_000_000, ge=0, description="most bytes of a tenant's weights, ready or still being adapted; 0: no limit"
    )
    max_example_bytes: int = Field(
        default=100_000_000, ge=0, description="most bytes of examples in a tenant's records; 0: no limit"
    )
    max_jobs: int = Field(default=500, ge=0, description="most unfinished jobs of a tenant; 0: no limit")
    max_aliases: int = Field(default=1000, ge=0, description="most aliases of a tenant; 0: no limit")
    max_requests_a_minute: int = Field(
        default=60_000, ge=0, description="most requests of a tenant in one minute of the clock, over all replicas; 0: no limit"
    )
    max_streams: int = Field(
        default=100,
        ge=0,
        description="most event streams and waiting requests of a tenant that are open at once in one process; 0: no limit",
    )

    @property
    def host_names(self) -> tuple[str, ...] | None:
        """The names in ALLOWED_HOSTS, in lower case, or None if it is empty."""
        return _split(self.allowed_hosts) or None

    @property
    def proxies(self) -> tuple[str, ...]:
        """The addresses and networks in FORWARDED_ALLOW_IPS."""
        return _split(self.forwarded_allow_ips)

    @property
    def limits(self) -> dict[str, int]:
        """The default limits of one tenant, keyed by environment variable. 0 means no limit."""
        return {name: getattr(self, name.lower()) for name in LIMITS}
