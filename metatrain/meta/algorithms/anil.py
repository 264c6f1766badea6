"""ANIL: almost no inner loop. The inner loop moves the head alone, the outer loop what is below it.

    ψ_{k+1} = ψ_k − α ∇_ψ L_support(θ, ψ_k)        θ, ψ_0, α ← outer optimizer step on  ∇ (1/T) Σ_t L_query,t(θ, ψ_K,t)

The support features under θ are computed once, so an inner step costs next to nothing. On a delta ψ_0 are the prototypes under θ;
of a small net ψ is the last layer, whose start is learned. It is MAML on tasks that move less (`moved`), nothing else.

Raghu, Raghu, Bengio, Vinyals 2020, "Rapid Learning or Feature Reuse?", arXiv:1909.09157, §4.1.
"""

from collections.abc import Mapping
from typing import Any, Literal

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import Differentiation, MetaGradient, ThroughTheLoop, meta_gradient


class ANIL(AlgorithmConfig):
    name: Literal["anil"] = "anil"
    order: Literal["second"] = "second"
    gradient: ThroughTheLoop = Differentiation()

    @property
    def inner_entries(self) -> Mapping[str, Any]:
        return {"moved": "head"}

    @property
    def title(self) -> str:
        return self.name

    @property
    def second_derivative(self) -> bool:
        return self.gradient.second_derivative

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        return meta_gradient(tasks, outer, optimizer, self.gradient)
