"""The inner loop as an initialization records it."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metatrain.inner.optimizers import Optimizer, OptimizerName
from metatrain.models.inputs.augment import Augmentation
from metatrain.readouts.objectives import ObjectiveName

Objective = Annotated[dict[ObjectiveName, Annotated[float, Field(gt=0)]], Field(min_length=1)]  # a mixture, by weights
_MOST_PARTS = 4


class HardSteps(BaseModel):
    """`steps` in all, where that is more, for a hard support set: one whose leave-one-out accuracy under θ is below `below`, that
    is the share of its rows nearest to the prototype of their own class when that is made without them. Not asked below `shots`
    examples a class, where prototypes that miss a row say little."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: int = Field(default=5, ge=2)
    below: float = Field(gt=0, le=1)
    steps: int = Field(ge=1, le=100)


class InParts(BaseModel):
    """Of a support set of more than `rows_per_step` rows: the objective, and of how many parts at most each is given the steps of a
    support set taken whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Objective
    most: int = Field(default=_MOST_PARTS, ge=1, le=32)


class InnerConfig(BaseModel):
    """How an initialization is adapted; recorded in it, so that serving runs the loop it was meta-trained through (`meta_trained`),
    and what was found to help single requests beyond it (`hard_steps`, `in_parts`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Objective = {"cross_entropy": 1.0}
    head: Literal["linear", "prototypes"] = "linear"
    head_steps: int = Field(default=0, ge=0, le=1000, description="of the head alone, after an inner loop of at least one step")
    optimizer: OptimizerName = "adam"
    steps: int = Field(default=5, ge=0, le=100)
    steps_by_shots: dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0, le=100)]] = Field(
        default={}, description="steps from this many examples a class on, instead of `steps`"
    )
    hard_steps: HardSteps | None = Field(
        default=None, description="more steps for hard support sets, where any are taken; not while meta-training"
    )
    rows_per_step: int = Field(
        default=128,
        ge=1,
        description="a larger support set is walked through in seeded parts, with the steps for each of at most "
        f"{_MOST_PARTS} of them, or of `in_parts.most`",
    )
    in_parts: InParts | None = Field(default=None, description="of a larger support set; not while meta-training")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    augmentation: Augmentation | None = None
    proximal: float = Field(default=0.0, ge=0, description="λ of a term λ/2 ‖φ − φ_0‖² of the inner objective")
    moved: Literal["all", "head"] = Field(
        default="all", description="what the steps move: delta and head, or the head alone (ANIL)"
    )

    @model_validator(mode="after")
    def _head_is_taught(self) -> "InnerConfig":
        if self.head == "linear" and "cross_entropy" not in self.objective:
            raise ValueError('head: a linear head moves by cross_entropy alone; add it to objective, or expected head "prototypes"')
        if self.head == "linear" and self.head_steps:
            raise ValueError('head_steps: expected 0 with head "linear", which moves along with the delta')
        if self.moves_head_alone and self.augmentation is not None:
            raise ValueError('augmentation: expected none with moved "head", whose features stand still')
        if self.moves_head_alone and self.in_parts is not None:
            raise ValueError('in_parts: expected none with moved "head", whose support set is taken whole')
        if self.head == "linear" and self.in_parts is not None and "cross_entropy" not in self.in_parts.objective:
            raise ValueError("in_parts.objective: expected cross_entropy among it, by which alone a linear head moves")
        if self.moves_head_alone and self.head != "linear":
            raise ValueError('moved: "head" needs head "linear", got "prototypes", which no step moves')
        if self.hard_steps is not None and not 0 < self.most_steps < self.hard_steps.steps:
            raise ValueError(
                f"hard_steps.steps: expected more than the {self.most_steps} of other support sets, and those at least 1"
            )
        for key, rows in (("objective", 1), ("in_parts.objective", self.rows_per_step + 1)):
            if not self.teaches_one_shot(rows) and self.steps_for(1, 1) > 0:
                raise ValueError(
                    f"{key}: {' + '.join(self.objective_for(rows))} learns nothing from one example a class; add "
                    "steps_by_shots {1: 0, 2: …}, augmentation or cross_entropy"
                )
        return self

    @property
    def update(self) -> Optimizer:
        return Optimizer(self.optimizer, self.beta1, self.beta2, self.epsilon)

    @property
    def meta_trained(self) -> "InnerConfig":
        """The loop that meta-training and its validation go through: without what is for single requests."""
        return self.model_copy(update={"hard_steps": None, "in_parts": None})

    @property
    def moves_head_alone(self) -> bool:
        return self.moved == "head"

    def steps_for(self, examples: int, classes: int) -> int:
        """Inner steps for a support set: what is recorded for its mean shots (examples / classes), for each of the parts that it is
        walked through in, up to a number of them: more examples need more steps, but not for ever."""
        reached = [shots for shots in self.steps_by_shots if examples >= shots * classes]
        each = self.steps_by_shots[max(reached)] if reached else self.steps
        parts = 1 if self.moves_head_alone else math.ceil(examples / self.rows_per_step)
        most = _MOST_PARTS if self.in_parts is None else self.in_parts.most
        return each * min(most, max(1, parts))

    def objective_for(self, rows: int) -> Objective:
        """What a support set of so many rows is taught with."""
        return self.objective if self.in_parts is None or rows <= self.rows_per_step else self.in_parts.objective

    def asks(self, examples: int, classes: int) -> bool:
        """Whether such a support set's own accuracy decides on the steps (`hard_steps`)."""
        hard = self.hard_steps
        return hard is not None and examples >= hard.shots * classes and 0 < self.steps_for(examples, classes) < hard.steps

    def teaches_one_shot(self, rows: int) -> bool:
        """The objective for a support set of so many rows can learn from classes of one example each."""
        return "cross_entropy" in self.objective_for(rows) or self.augmentation is not None

    @property
    def most_steps(self) -> int:
        """Over all shots, for a support set that is taken whole."""
        return max(self.steps, *self.steps_by_shots.values()) if self.steps_by_shots else self.steps
