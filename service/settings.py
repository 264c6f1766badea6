"""Settings of the service, from the environment, read once."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from worker.ledger.usage import LIMITS
from worker.settings import WorkerSettings


def predictor_address(url: str) -> str | tuple[str, int]:
    """A socket's path, or host and port. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return parts.path
    if parts.scheme == "tcp" and parts.hostname and parts.port and parts.path in ("", "/"):
        return parts.hostname, parts.port
    raise ValueError("expected unix:///path or tcp://host:port")


def _predictor_url(url: str) -> str:
    predictor_address(url)
    return url


class ServiceSettings(WorkerSettings):
    """The worker's settings (both ends must agree on them) and the service's own."""

    allow_without_keys: bool = Field(default=False, description="be open on any address until the first API key is made")
    max_body_bytes: int = Field(default=8_000_000, ge=1_000, description="of a request; 413 beyond")
    max_examples: int = Field(default=2_000, ge=2, description="in a support set")
    max_labels: int = Field(default=200, ge=2)
    max_text_chars: int = Field(default=10_000, ge=1, description="of one example or input")
    max_label_chars: int = Field(default=200, ge=1)
    max_inputs: int = Field(default=256, ge=1, description="in one predict call")
    default_ttl_seconds: int = Field(default=7 * 24 * 3600, ge=1)
    max_ttl_seconds: int = Field(default=90 * 24 * 3600, ge=1)
    max_wait_seconds: float = Field(default=60, ge=0, description="largest `Prefer: wait`")
    readapt_wait_seconds: float = Field(default=5, ge=0, description="how long predict waits for an evicted adapter")
    bank_mb: float = Field(default=256, gt=0, description="adapters kept on the device, in MB")
    shelf_mb: float = Field(default=1024, ge=0, description="adapters kept in memory that have left the device, in MB")
    batch_rows: int = Field(default=64, ge=1, description="rows of one forward pass")
    batch_tokens: int = Field(default=4096, ge=1, description="tokens of one forward pass")
    batch_wait_ms: float = Field(default=2, ge=0, le=1000, description="longest wait for calls on their way to a batch")
    predictor_url: Annotated[str, AfterValidator(_predictor_url)] | None = Field(
        default=None,
        description="of a predictor in a process of its own: unix:///path or tcp://host:port; in this process where unset",
    )
    queue_rows: int = Field(
        default=2048, ge=1, description="inputs that may wait for a prediction, half of them one tenant's beside others; 429 beyond"
    )
    max_adapters: int = Field(default=0, ge=0, description="records of a tenant, whatever their status; 0: no limit")
    max_adapter_bytes: int = Field(default=0, ge=0, description="of a tenant's weights that are ready or being made; 0: no limit")
    max_example_bytes: int = Field(default=0, ge=0, description="of the examples in a tenant's records; 0: no limit")
    max_jobs: int = Field(default=0, ge=0, description="unfinished jobs of a tenant; 0: no limit")
    max_aliases: int = Field(default=1000, ge=0, description="of a tenant; 0: no limit")
    max_requests_a_minute: int = Field(default=0, ge=0, description="of a tenant, by the clock's minute; 0: no limit")
    max_streams: int = Field(default=100, ge=0, description="streams and waits of a tenant open in this process; 0: no limit")

    @property
    def limits(self) -> dict[str, int]:
        """Of a tenant over all replicas, by the names of their variables."""
        return {name: getattr(self, name.lower()) for name in LIMITS}
