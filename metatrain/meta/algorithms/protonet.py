"""Prototypical Networks on the features of a delta, or of a small net.

    θ ← outer optimizer step on  ∇_θ (1/T) Σ_t L_query,t( prototypes of support_t under θ )

No inner step is taken: the class prototypes are the head, and the gradient flows through both the support and the query features.
The initialization records 0 steps; asked for more, it takes them at the start rates. (To adapt the delta on the support set before
prototypes are taken, use MAML with head="prototypes".)

Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning", arXiv:1703.05175, alg. 1; with cosine similarity times s
for logits on a text encoder, negative squared distance on a small net, as in the paper.
"""

from collections.abc import Mapping
from typing import Any, Literal

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import Differentiation, MetaGradient, meta_gradient


class ProtoNet(AlgorithmConfig):
    name: Literal["protonet"] = "protonet"
    order: Literal["first"] = "first"

    @property
    def inner_entries(self) -> Mapping[str, Any]:
        return {"steps": 0, "steps_by_shots": {}, "hard_steps": None, "in_parts": None}

    @property
    def title(self) -> str:
        return self.name

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        return meta_gradient(tasks, outer, optimizer, Differentiation(mode="first_order"), steps=0)
