"""The options and defaults that all algorithms share."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Leaves, start_rates
from metatrain.options import Fixed, Section

Learned = Literal["theta", "rates", "scale"]
"""The groups of leaves that the outer loop can move: θ, the inner rates α, the inverse temperature s."""

_LEARNED_AS: Mapping[str, Learned] = {"theta": "theta", "log_rates": "rates", "log_scale": "scale"}
PAPERS_OUTER: Mapping[str, Any] = {"optimizer": "adam", "learning_rate": 1e-3, "decay": "none", "warmup": 0, "clip": None}
"""Adam at 1e-3, constant and unclipped, as in most papers."""


class AlgorithmConfig(Section):
    """The base class of the algorithms, with the defaults that most of them share.

    It implements `metatrain.meta.algorithms.Algorithm` except for `meta_gradient`.
    """

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"outer": PAPERS_OUTER}

    name: str
    learned: tuple[Learned, ...] = Field(default=("theta",), min_length=1, description="what the outer loop moves")

    @model_validator(mode="after")
    def _learned_names_each_once(self) -> Self:
        if len(set(self.learned)) < len(self.learned):
            raise ValueError(f"learned: expected each name once, got {', '.join(self.learned)}")
        return self

    @property
    def moves_base(self) -> bool:
        return True

    @property
    def second_derivative(self) -> bool:
        return False

    @property
    def fixed(self) -> Fixed:
        return {}

    def check(self, inner: InnerConfig) -> None:
        """Raise ValueError if the algorithm does not support this inner-loop configuration."""

    def learns(self, leaf: str) -> bool:
        """Return True if the outer loop moves the tensor of `Outer.leaves()` that has the name `leaf`."""
        learned_as = _LEARNED_AS.get(leaf.split(".", 1)[0])
        return learned_as is None or learned_as in self.learned

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, torch.Tensor]:
        """Return the initial inner rates of each leaf of θ, [S]: one number per step, all equal to `rate`."""
        return start_rates(theta, rate, steps=steps)
