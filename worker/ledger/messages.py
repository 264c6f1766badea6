"""What crosses the queue: names, JSON arguments, and failures as data. Torch-free."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from metatrain.tasks.labels import label_words

ADAPT_TASK = "quickstudy.adapt"
FIRST, IN_TURN = 0, 3
"""Priorities of wake-ups: what was lost has waited longest, so it goes before what is new."""
DONE_CHANNEL = "qs:done"
"""Redis channel on which `tenant/adapter_id` is published when a job ends."""

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


class JobRecipe(BaseModel):
    """What to adapt: everything that determines the weights, as it is kept in the record.

    `support` is in canonical order: sorted by (label, input), so that the order of a request's examples means nothing. A field with
    a default is left out of records and ids where it has that value, so that those from before the field stay valid: a default
    must never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initialization: str
    initialization_digest: str
    support: tuple[tuple[str, str], ...] = Field(description="(input, label) pairs")
    steps: int | None = Field(description="None: by the support set's own accuracy, as the initialization has it")
    seed: int
    label_words: bool = Field(default=False, description="each label's own words are one more example of it")
    precision: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the head's rows."""
        return tuple(sorted({label for _, label in self.support}))

    @property
    def summary(self) -> RecipeSummary:
        own = {name: getattr(self, name) for name in RecipeSummary.model_fields if name != "examples"}
        return RecipeSummary(**own, examples=len(self.support))

    @property
    def taught(self) -> tuple[tuple[str, str], ...]:
        """The (text, label) pairs of the inner loop: the examples, and the labels' words where they count."""
        return self.support + tuple((label_words(label), label) for label in self.labels if self.label_words)

    @property
    def kin(self) -> str:
        """Jobs that agree in it may run in one pass, which then takes little longer than any of them wants: the same
        initialization, precision and steps asked for, rows within a factor of two."""
        return f"{self.initialization_digest[:32]}/{self.precision}/{self.steps}/{len(self.taught).bit_length()}"


class Outcome(BaseModel):
    """How a job ended. A failure is data; no exception crosses the queue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["ready", "failed"]
    digest: str | None = None
    size: int = Field(default=0, description="bytes of the weights")
    error: str | None = None
    support_loss: tuple[float, ...] = ()
    timings: dict[str, float] = Field(default_factory=dict, description="milliseconds by stage")


def queue_name(base_weights_sha256: str, precision: str) -> str:
    """Workers take the jobs of the base model that they have, in the precision that they run it in."""
    return f"quickstudy.{base_weights_sha256[:16]}.{precision}"


def wake_up(tenant: str, adapter_id: str) -> dict[str, Any]:
    """The arguments of the adapt task. A message only wakes a worker up; the record says what to do."""
    return {"tenant": tenant, "adapter_id": adapter_id}
