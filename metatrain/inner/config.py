"""The configuration of the inner loop, which is stored in every initialization."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metatrain.inner.optimizers import Optimizer, OptimizerName
from metatrain.models.inputs.augment import Augmentation
from metatrain.options import UsedWith
from metatrain.readouts.objectives import ObjectiveName

Objective = Annotated[dict[ObjectiveName, Annotated[float, Field(gt=0)]], Field(min_length=1)]
"""The weighted sum of losses that the inner steps minimise: {name: weight}."""

_MOST_PARTS = 4


class HardSteps(BaseModel):
    """More inner steps for hard support sets.

    A support set is hard if its leave-one-out accuracy before the first step (under θ) is below `below`. To compute it, each row is
    classified by the nearest class prototype, and the prototype of its own class is computed without the row. A hard support set
    takes `steps` inner steps in total, if that is more than its usual number. Support sets with fewer than `shots` examples a class
    are not tested, because a prototype of so few rows changes too much if one row is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: int = Field(default=5, ge=2)
    below: float = Field(gt=0, le=1)
    steps: int = Field(ge=1, le=100)


class InParts(BaseModel):
    """The inner objective and the limit on steps for support sets of more than `rows_per_step` rows.

    Such a support set is split into parts, and each inner step uses one part. `objective` replaces `InnerConfig.objective`. The
    usual number of steps is multiplied by the number of parts, but at most by `most`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Objective
    most: int = Field(default=_MOST_PARTS, ge=1, le=32)


class InnerConfig(BaseModel):
    """The settings of the inner loop, which adapts an initialization to a support set.

    Every initialization stores them, so that serving runs the same loop as meta-training. The only exceptions are `hard_steps` and
    `in_parts`: serving uses them and meta-training ignores them (`meta_trained`), because they help single requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Objective = {"cross_entropy": 1.0}
    head: Literal["linear", "prototypes"] = "linear"
    head_steps: int = Field(
        default=0, ge=0, le=1000, description="steps of only the head, after an inner loop of at least one step"
    )
    optimizer: OptimizerName = "adam"
    steps: int = Field(default=5, ge=0, le=100)
    steps_by_shots: dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0, le=100)]] = Field(
        default={}, description="{shots: steps}: the steps for at least so many examples a class, instead of `steps`"
    )
    hard_steps: HardSteps | None = Field(
        default=None, description="more steps for hard support sets that take at least one; only when serving"
    )
    rows_per_step: Annotated[int, UsedWith("moved", "all")] = Field(
        default=128,
        ge=1,
        description="a larger support set is taken in seeded parts; its number of steps is multiplied by the number of parts, at "
        f"most by {_MOST_PARTS}, or by `in_parts.most`",
    )
    in_parts: InParts | None = Field(default=None, description="the objective for a larger support set; only when serving")
    beta1: Annotated[float, UsedWith("optimizer", "adam", "momentum")] = Field(default=0.9, ge=0, lt=1)
    beta2: Annotated[float, UsedWith("optimizer", "adam")] = Field(default=0.999, ge=0, lt=1)
    epsilon: Annotated[float, UsedWith("optimizer", "adam")] = Field(default=1e-8, gt=0)
    augmentation: Augmentation | None = None
    proximal: float = Field(default=0.0, ge=0, description="λ of a term λ/2 ‖φ − φ_0‖² of the inner objective")
    moved: Literal["all", "head"] = Field(
        default="all", description="what the steps move: the delta and the head, or only the head (ANIL)"
    )

    @model_validator(mode="after")
    def _combination_is_valid(self) -> "InnerConfig":
        if self.head == "linear" and "cross_entropy" not in self.objective:
            raise ValueError('head: a linear head learns only from cross_entropy; add it to objective, or set head to "prototypes"')
        if self.head == "linear" and self.head_steps:
            raise ValueError('head_steps: expected 0 with head "linear", which moves along with the delta')
        if self.moves_head_alone and self.augmentation is not None:
            raise ValueError('augmentation: expected none with moved "head", whose features are computed once')
        if self.moves_head_alone and self.in_parts is not None:
            raise ValueError('in_parts: expected none with moved "head", which takes every support set whole')
        if self.head == "linear" and self.in_parts is not None and "cross_entropy" not in self.in_parts.objective:
            raise ValueError("in_parts.objective: expected cross_entropy in it, because a linear head learns from nothing else")
        if self.moves_head_alone and self.head != "linear":
            raise ValueError('moved: "head" needs head "linear", got "prototypes", which no step moves')
        if self.hard_steps is not None and not 0 < self.most_steps < self.hard_steps.steps:
            raise ValueError(
                f"hard_steps.steps: expected more than the {self.most_steps} of other support sets, which take at least 1; "
                f"got {self.hard_steps.steps}"
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
        """This configuration without the serving-only options, as meta-training and its validation use it."""
        return self.model_copy(update={"hard_steps": None, "in_parts": None})

    @property
    def moves_head_alone(self) -> bool:
        return self.moved == "head"

    def steps_for(self, examples: int, classes: int) -> int:
        """Return the number of inner steps for a support set of `examples` examples in `classes` classes.

        This is the configured number for K = `examples` / `classes` shots, times the number of parts into which the support set is
        split. That factor is limited by `in_parts.most`, or by a default without `in_parts`, because more examples need more steps
        only up to a point.
        """
        thresholds = [shots for shots in self.steps_by_shots if examples >= shots * classes]
        steps = self.steps_by_shots[max(thresholds)] if thresholds else self.steps
        parts = 1 if self.moves_head_alone else math.ceil(examples / self.rows_per_step)
        most = _MOST_PARTS if self.in_parts is None else self.in_parts.most
        return steps * min(most, max(1, parts))

    def objective_for(self, rows: int) -> Objective:
        """Return the objective for a support set of `rows` rows."""
        return self.objective if self.in_parts is None or rows <= self.rows_per_step else self.in_parts.objective

    def asks(self, examples: int, classes: int) -> bool:
        """Return True if a support set of this size must be tested for `hard_steps`.

        It is tested if it has enough shots, takes at least one step, and would take more steps if it is hard.
        """
        hard = self.hard_steps
        return hard is not None and examples >= hard.shots * classes and 0 < self.steps_for(examples, classes) < hard.steps

    def teaches_one_shot(self, rows: int) -> bool:
        """Return True if a support set of `rows` rows can learn from classes with one example each.

        The objective for that size must include cross-entropy, or augmentation must add views of the examples.
        """
        return "cross_entropy" in self.objective_for(rows) or self.augmentation is not None

    @property
    def most_steps(self) -> int:
        """The largest number of inner steps for any number of shots, if the support set is not split."""
        return max(self.steps, *self.steps_by_shots.values()) if self.steps_by_shots else self.steps
