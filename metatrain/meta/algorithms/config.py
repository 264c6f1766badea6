"""What every algorithm's section of a recipe has in common: the answers that most algorithms give."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from metatrain.inner.problem import Leaves, start_rates


class AlgorithmConfig(BaseModel):
    """Defaults for `metatrain.meta.algorithms.Algorithm`; an algorithm that differs gives its own answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def moves_base(self) -> bool:
        return True

    @property
    def second_derivative(self) -> bool:
        return False

    @property
    def inner_entries(self) -> Mapping[str, Any]:
        return {}

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, torch.Tensor]:
        """Return the start of the delta's rates: one number for each leaf and step, [S]."""
        return start_rates(theta, rate, steps=steps)
