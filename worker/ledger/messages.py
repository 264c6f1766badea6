"""The data that the service and the workers exchange: job recipes, outcomes, wake-ups and queue names."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.kinds.registry import task_kinds

ADAPT_TASK = "quickstudy.adapt"
JOB_FORMATS = (2, 3)
"""The formats of the records of jobs. A job has the lowest one that can express it; workers of earlier versions leave later formats
alone. 3 adds `label_words: "auto"`."""
LabelWords = bool | Literal["auto"]
FIRST, IN_TURN = 0, 3
"""Priorities of wake-ups. Repeated wake-ups are FIRST, because their jobs have waited longest. New ones are IN_TURN."""
DONE_CHANNEL = "qs:done"
"""Redis channel on which `tenant/adapter_id` is published when a job ends."""

TEXT_CLASSIFICATION = "text-classification"
"""The default task kind. It applies to records without a kind, which come from versions that had no other kind."""
Status = Literal["queued", "running", "ready", "failed", "evicted", "expired"]


class RecipeSummary(BaseModel):
    """A job recipe without its examples, whose texts may be millions of bytes."""

    model_config = ConfigDict(frozen=True)

    initialization: str
    initialization_digest: str
    labels: tuple[str, ...]
    examples: int
    steps: int | None
    seed: int
    label_words: LabelWords
    precision: str
    kind: str = TEXT_CLASSIFICATION

    @property
    def job_format(self) -> int:
        """The format of the job's record, one of `JOB_FORMATS`."""
        return 3 if self.label_words == "auto" else 2


class JobRecipe(BaseModel):
    """The recipe of a job: everything that determines the weights, as the record stores it.

    `support` is in the canonical order of its task kind, so the order of the examples in a request does not matter. A field with
    its default value is left out of records and ids. So a new field with a default does not change existing records and ids. For
    the same reason, a default must never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initialization: str
    initialization_digest: str
    support: tuple[tuple[Any, ...], ...] = Field(description="examples as their task kind stores them, such as (input, label)")
    steps: int | None = Field(description="inner steps; None: as many as the initialization sets for this support set")
    seed: int
    label_words: LabelWords = Field(
        default=False,
        description="True: the words of each label are one more example of it; auto: only if a test says that they help",
    )
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
        """The largest number of rows that the inner loop may train on, including those of label words."""
        return task_kinds()[self.kind].size(self.support, label_words=bool(self.label_words))[0]

    @property
    def pass_key(self) -> str:
        """The pass key: jobs may share a pass (one batched inner loop) only if their keys are equal.

        Such jobs have the same kind, initialization, precision and requested steps, and their numbers of rows differ by less than a
        factor of two. So a shared pass takes little longer than a pass of one job.
        """
        return f"{self.initialization_digest[:32]}/{self.precision}/{self.steps}/{self.rows.bit_length()}/{self.kind}"


class Outcome(BaseModel):
    """The outcome of a finished job, ready or failed. A failure is plain data, not an exception."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["ready", "failed"]
    digest: str | None = None
    size: int = Field(default=0, description="bytes of the weights")
    error: str | None = None
    support_loss: tuple[float, ...] = ()
    timings: dict[str, float] = Field(default_factory=dict, description="milliseconds by stage")
    label_words_used: bool | None = Field(default=None, description="the decision of label_words: auto; None: there was none")
    label_words_gain: float | None = Field(default=None, description="its reason, `metatrain.readouts.label_words.gain`")


def queue_name(base_digest: str, precision: str, kind: str, job_format: int, key_id: str = "") -> str:
    """Return the queue of the jobs of one task kind and format on one base model.

    Only workers that have the base model, know the kind and can read the format listen to it. `base_digest`: the full base digest,
    of weights, inputs and precision. `job_format`: one of `JOB_FORMATS`. `key_id`: the encryption key of the jobs' records, which
    these workers also have; "" if they are not encrypted.
    """
    key = f".{key_id}" if key_id else ""
    return f"{_queue_of_base(base_digest, precision)}.{kind}.{job_format}{key}"


def with_key(queue: str, key_id: str) -> str:
    """Return the queue of the same jobs once their records are encrypted with another key.

    `key_id`: "" if they are no longer encrypted. Queues of earlier versions, which name no key, stay as they are.
    """
    match = re.fullmatch(r"(quickstudy\.base-.+?\.\d+)(?:\.[0-9a-f]{8})?", queue)
    return queue if match is None else match[1] + (f".{key_id}" if key_id else "")


def earlier_queue_names(base_digest: str, base_weights_sha256: str, precision: str) -> list[str]:
    """Return the queues of text classification jobs from earlier versions.

    Their names had the full base digest but no kind, and before that the digest of the weights alone.
    """
    return [_queue_of_base(base_digest, precision), f"quickstudy.{base_weights_sha256[:16]}.{precision}"]


def _queue_of_base(base_digest: str, precision: str) -> str:
    return f"quickstudy.base-{base_digest[:16]}.{precision}"


def wake_up(tenant: str, adapter_id: str) -> dict[str, Any]:
    """Return the arguments of a wake-up message. It only names a job; the job's record has the recipe."""
    return {"tenant": tenant, "adapter_id": adapter_id}
