"""What crosses the queue: names, JSON arguments, and failures as data. Torch-free."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.kinds.registry import task_kinds

ADAPT_TASK = "quickstudy.adapt"
FIRST, IN_TURN = 0, 3
"""Priorities of wake-ups: what was lost has waited longest, so it goes before what is new."""
DONE_CHANNEL = "qs:done"
"""Redis channel on which `tenant/adapter_id` is published when a job ends."""

TEXT_CLASSIFICATION = "text-classification"
"""The kind of task of records from before there were others."""
Status = Literal["queued", "running", "ready", "failed", "evicted", "expired"]


class RecipeSummary(BaseModel):
    """What is shown of a recipe: all but its examples' texts, which may be millions of bytes."""

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
    """What to adapt: everything that determines the weights, as it is kept in the record.

    `support` is in its kind's canonical order, so that the order of a request's examples means nothing. A field with
    a default is left out of records and ids where it has that value, so that those from before the field stay valid: a default
    must never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initialization: str
    initialization_digest: str
    support: tuple[tuple[Any, ...], ...] = Field(description="examples as their kind of task keeps them: (input, label) pairs")
    steps: int | None = Field(description="None: by the support set's own accuracy, as the initialization has it")
    seed: int
    label_words: bool = Field(default=False, description="each label's own words are one more example of it")
    precision: str
    kind: str = Field(default=TEXT_CLASSIFICATION, description="of task")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the readout's rows; none where answers are no labels."""
        return task_kinds()[self.kind].labels(self.support)

    @property
    def summary(self) -> RecipeSummary:
        own = {name: getattr(self, name) for name in RecipeSummary.model_fields if name != "examples"}
        return RecipeSummary(**own, examples=len(self.support))

    @property
    def rows(self) -> int:
        """How many rows the inner loop is taught with."""
        return task_kinds()[self.kind].size(self.support, label_words=self.label_words)[0]

    @property
    def pass_key(self) -> str:
        """Jobs that agree in it may run in one pass, which then takes little longer than any of them wants: the same
        initialization, precision and steps asked for, rows within a factor of two."""
        return f"{self.initialization_digest[:32]}/{self.precision}/{self.steps}/{self.rows.bit_length()}"


class Outcome(BaseModel):
    """How a job ended. A failure is data; no exception crosses the queue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["ready", "failed"]
    digest: str | None = None
    size: int = Field(default=0, description="bytes of the weights")
    error: str | None = None
    support_loss: tuple[float, ...] = ()
    timings: dict[str, float] = Field(default_factory=dict, description="milliseconds by stage")


def queue_name(base_digest: str, precision: str) -> str:
    """Workers take the jobs of the base models that they have. `base_digest`: the full one, of weights, inputs and precision."""
    return f"quickstudy.base-{base_digest[:16]}.{precision}"


def earlier_queue_name(base_weights_sha256: str, precision: str) -> str:
    """The queue of jobs that were accepted when base models were told apart by their weights alone."""
    return f"quickstudy.{base_weights_sha256[:16]}.{precision}"


def wake_up(tenant: str, adapter_id: str) -> dict[str, Any]:
    """The arguments of the adapt task. A message only wakes a worker up; the record says what to do."""
    return {"tenant": tenant, "adapter_id": adapter_id}
