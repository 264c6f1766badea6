"""Meta-SGD: θ and the inner rates are learned together, with a rate for every parameter.

    φ = θ − α ⊙ ∇L_support(θ)          (θ, log α) ← outer optimizer step on  ∇_(θ, log α) (1/T) Σ_t L_query,t(φ_t)

α has the shape of θ (`rates`: "parameter"), or is one number for each leaf ("leaf"). The inner loop takes one step by default; more
are possible. The rates are learned as log α, so that they stay positive, which the paper does not require. With equal rates and the
same inner loop, the gradient for θ is that of MAML.

Li, Zhou, Chen, Li 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv:1707.09835, alg. 1. The paper draws each
initial rate from [0.005, 0.1]; here all start at 0.05, near the middle. One rate for each leaf and step: Antoniou et al. 2019,
arXiv:1810.09502, §4.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from metatrain.inner.problem import Leaves
from metatrain.meta.algorithms.config import PAPERS_OUTER, Learned
from metatrain.meta.algorithms.through_steps import ThroughSteps
from metatrain.options import Fixed


class MetaSGD(ThroughSteps):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inner": {"optimizer": "sgd", "steps": 1},
        "start": {"rate": 0.05, "head_rate": 0.05},
        "outer": PAPERS_OUTER,
    }

    name: Literal["metasgd"] = "metasgd"
    rates: Literal["leaf", "parameter"] = Field(default="parameter", description="what has a rate of its own")
    learned: tuple[Learned, ...] = Field(default=("theta", "rates"), min_length=1, description="what the outer loop moves")

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"head": "linear"}}

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, torch.Tensor]:
        """Return the initial inner rates of each leaf of θ: [S, *leaf shape], or [S] with rates="leaf"."""
        if self.rates == "leaf":
            return super().rates_of(theta, rate, steps=steps)
        return {name: torch.full((steps, *leaf.shape), rate) for name, leaf in theta.items()}
