"""The interface of predictors, whether they run in this process or a separate one."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

BATCH_AGE = "batch_age_seconds"
"""The gauge of the seconds since the last batch ended while calls wait."""
STAGES = ("tokenize", "load", "queue", "forward")


@dataclass(frozen=True)
class WeightsKey:
    """Identifies the weights of an adapter.

    `fence` is the number of the claim under which the weights were stored; it is part of their key in the cache. `digest` is their
    SHA-256, checked when they are read.
    """

    tenant: str
    adapter_id: str
    fence: int
    digest: str

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.digest}"


@dataclass(frozen=True)
class Answer:
    """The predictor's answer to one call.

    `labels` has the adapter's labels, and is empty if its task kind has none. `outputs` has the output of the adapter's readout for
    each input, such as the probability of each label. `truncated` has the positions of inputs that were truncated. `seconds` has
    the time that the call spent in each of `STAGES`. `empty` has the positions of inputs that left no token; their outputs mean
    nothing.
    """

    labels: tuple[str, ...]
    outputs: list[Any]
    truncated: list[int]
    seconds: Mapping[str, float]
    empty: list[int] = field(default_factory=list)


class Predictor(Protocol):
    """The predictor interface that the routes use, whether it runs in this process or a separate one."""

    def submit(self, weights: WeightsKey, texts: Sequence[str], share: int = 1) -> "Future[Answer]":
        """Queue a call that predicts each input with one adapter, and return a future of its answer.

        `share`: how large the tenant's turns are in comparison with those of others. Cancelling the future removes the call from
        the queue. Raises Overloaded if the queue is full or the answer would come after PREDICT_SECONDS, and Unavailable if the
        predictor is a separate process that cannot be reached. The future fails with Overloaded likewise, WeightsMissing,
        WeightsCorrupt, ArtifactError if the weights cannot be loaded, NonFinite if the features of an input are not finite, or
        redis.RedisError if the cache cannot be reached.
        """
        ...

    def forget(self, tenant: str, digest: str) -> None:
        """Drop an adapter from the device and from host memory. Its weights in the cache stay."""
        ...

    def alive(self) -> bool:
        """Return True if the predictor can answer calls.

        It cannot if no batch has ended for PREDICTOR_HANG_SECONDS although calls wait, or if it is a process that stops.
        """
        ...

    def needs_restart(self) -> bool:
        """Return True if only a restart of this process helps: its own predictor hangs or has ended."""
        ...

    def gauges(self) -> dict[str, float]:
        """Return the gauges for `GET /metrics` by name, such as the number of waiting inputs."""
        ...

    def close(self) -> None:
        """Stop the predictor. Calls that are submitted afterwards are not answered."""
        ...
