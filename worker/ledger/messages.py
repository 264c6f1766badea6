"""The data that the service and the workers exchange: job recipes, outcomes, wake-ups and queue names."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.kinds.registry import task_kinds

ADAPT_TASK = "quickstudy.adapt"
FIRST, IN_TURN = 0, 3
"""Priorities of wake-ups: FIRST for repeated ones, because their jobs have waited longest, IN_TURN for new ones."""
DONE_CHANNEL = "qs:done"
"""Redis channel on which `tenant/adapter_id` is published when a job ends."""

TEXT_CLASSIFICATION = "text-classification"
"""The task kind of records that were written before there were other kinds."""
Status = Literal["queued", "running", "ready", "failed", "evicted", "expired"]


class RecipeSummary(BaseModel):
    """A recipe without the texts of its examples, which may be millions of bytes."""

    model_config = ConfigDict(frozen=True)

    initialization: str
    initialization_digest: str
    labels: tuple[str, ...]
    examples: int
    steps: int | None
    seed: int
    label_words: bool
    precision: str
    kind: str = TEXT_CLASSIFICATION


class JobRecipe(BaseModel):
    """The recipe of a job: everything that determines the weights, as the record stores it.

    `support` is in the canonical order of its task kind, so the order of the examples in a request does not matter. Records and
    ids leave out a field that has its default value, so records and ids that are older than the field stay valid. For the same
    reason, a default must never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initialization: str
    initialization_digest: str
    support: tuple[tuple[Any, ...], ...] = Field(description="examples as their task kind stores them, such as (input, label)")
    steps: int | None = Field(description="inner steps; None: as many as the initialization sets for this support set")
    seed: int
    label_words: bool = Field(default=False, description="True: the words of each label are one more example of it")
    precision: str
    kind: str = Field(default=TEXT_CLASSIFICATION, description="task kind")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the readout's rows; empty if the task kind has no labels."""
        return task_kinds()[self.kind].labels(self.support)

    @property
    def summary(self) -> RecipeSummary:
        shared = {name: getattr(self, name) for name in RecipeSummary.model_fields if name != "examples"}
        return RecipeSummary(**shared, examples=len(self.support))

    @property
    def rows(self) -> int:
        """The number of rows that the inner loop is trained on."""
        return task_kinds()[self.kind].size(self.support, label_words=self.label_words)[0]

    @property
    def pass_key(self) -> str:
        """The key that jobs must have in common to share a pass.

        They then have the same kind, initialization, precision and requested steps, and numbers of rows within a factor of two.
        So a shared pass takes little longer than each of them would alone.
        """
        return f"{self.initialization_digest[:32]}/{self.precision}/{self.steps}/{self.rows.bit_length()}/{self.kind}"


class Outcome(BaseModel):
    """The result of a job, ready or failed. A failure is stored as data: no exception crosses the queue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["ready", "failed"]
    digest: str | None = None
    size: int = Field(default=0, description="bytes of the weights")
    error: str | None = None
    support_loss: tuple[float, ...] = ()
    timings: dict[str, float] = Field(default_factory=dict, description="milliseconds by stage")


def queue_name(base_digest: str, precision: str) -> str:
    """Return the queue of the jobs of a base model, which only workers with that base model listen to.

    `base_digest`: the full base digest, of weights, inputs and precision.
    """
    return f"quickstudy.base-{base_digest[:16]}.{precision}"


def earlier_queue_name(base_weights_sha256: str, precision: str) -> str:
    """Return the queue of jobs from versions that identified a base model by its weights alone."""
    return f"quickstudy.{base_weights_sha256[:16]}.{precision}"


def wake_up(tenant: str, adapter_id: str) -> dict[str, Any]:
    """Return the arguments of a wake-up message. It only names a job; the record says what to do."""
    return {"tenant": tenant, "adapter_id": adapter_id}
