"""Meta-SGD: the start and the inner rates are learned together, a rate for every parameter.

    φ = θ − α ⊙ ∇L_support(θ)          (θ, log α) ← outer optimizer step on  ∇_(θ, log α) (1/T) Σ_t L_query,t(φ_t)

α has the shape of θ (`rates`: "parameter"), or one number for each leaf (LSLR, "leaf"), for one or for several steps. Learned as
log α, so that rates stay positive, which the paper does not ask for. With all rates equal and the same loop it is MAML.

Li, Zhou, Chen, Li 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv:1707.09835, alg. 1; one rate a leaf and
step: Antoniou et al. 2019, arXiv:1810.09502, §4.
"""

from typing import Literal

import torch
from pydantic import Field

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import Differentiation, MetaGradient, ThroughTheLoop, meta_gradient


class MetaSGD(AlgorithmConfig):
    name: Literal["metasgd"] = "metasgd"
    rates: Literal["leaf", "parameter"] = Field(default="parameter", description="what has a rate of its own")
    order: Literal["second"] = "second"
    gradient: ThroughTheLoop = Differentiation()

    @property
    def title(self) -> str:
        return self.name

    @property
    def second_derivative(self) -> bool:
        return self.gradient.second_derivative

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, torch.Tensor]:
        if self.rates == "leaf":
            return super().rates_of(theta, rate, steps=steps)
        return {name: torch.full((steps, *leaf.shape), rate) for name, leaf in theta.items()}

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        return meta_gradient(tasks, outer, optimizer, self.gradient)
