"""Prototypical Networks on the features of a base model with a delta, or of a small net.

    θ ← outer optimizer step on  ∇_θ (1/T) Σ_t L_query,t( prototypes of support_t under θ )

There are no inner steps. The class prototypes are the head, and the gradient flows through the support and the query features. The
initialization records 0 steps; a request may ask for more, which use the initial rates. To adapt the delta before the prototypes
are computed, use `adapted_protonet`.

Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning", arXiv:1703.05175, alg. 1. Logits are s times the cosine
similarity on a base model, and the negative squared distance on a small net, as in the paper.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import PAPERS_OUTER, AlgorithmConfig
from metatrain.meta.differentiation import FIRST_ORDER
from metatrain.meta.metagrad import MetaGradient, meta_gradient
from metatrain.options import Fixed


class ProtoNet(AlgorithmConfig):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"outer": PAPERS_OUTER}

    name: Literal["protonet"] = "protonet"
    learned: tuple[Literal["theta", "scale"], ...] = Field(
        default=("theta",), min_length=1, description="what the outer loop moves"
    )

    @property
    def fixed(self) -> Fixed:
        return {
            "inner": {"steps": 0, "steps_by_shots": {}, "hard_steps": None, "in_parts": None},
            "start": {"rates_by_step": False},
        }

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        return meta_gradient(tasks, outer, optimizer, FIRST_ORDER, steps=0)
