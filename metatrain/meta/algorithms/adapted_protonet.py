"""ProtoNet on an adapted delta: inner steps adapt the delta, then class prototypes form the head.

    φ_K = U^K_α(θ; support_t)          θ ← outer optimizer step on  ∇ (1/T) Σ_t L_query,t( prototypes of support_t under φ_K )

The inner loop moves no head, so its objective must not need one. The default is the supervised contrastive objective. At the end,
`inner.head_steps` steps of Adam may refine the prototypes. The default initialization is trained with this algorithm.

`gradient`: with "first_order" the inner gradients are constants; any other mode differentiates the steps.

The method has no paper of its own. It combines Prototypical Networks (Snell et al. 2017, arXiv:1703.05175) with MAML's inner loop
(Finn et al. 2017, arXiv:1703.03400) on a contrastive objective (Khosla et al. 2020, arXiv:2004.11362). docs/decisions/0005 has
measurements.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from metatrain.inner.config import InnerConfig
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig, Learned
from metatrain.meta.algorithms.maml import fading_weights
from metatrain.meta.differentiation import FIRST_ORDER, FirstOrderOrThroughTheLoop
from metatrain.meta.metagrad import MetaGradient, meta_gradient
from metatrain.options import Fixed


class AdaptedProtoNet(AlgorithmConfig):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inner": {
            "objective": {"supervised_contrastive": 1.0},
            "optimizer": "adam",
            "steps": 2,
            "steps_by_shots": {1: 0, 2: 2},
        },
        "start": {"rate": 1e-3},
        "outer": {"optimizer": "adam", "learning_rate": 1e-3, "decay": "cosine", "warmup": 20, "clip": 1.0},
    }

    name: Literal["adapted_protonet"] = "adapted_protonet"
    learned: tuple[Learned, ...] = Field(default=("theta", "rates", "scale"), min_length=1, description="what the outer loop moves")
    gradient: FirstOrderOrThroughTheLoop = Field(default=FIRST_ORDER, description="how the inner steps are differentiated")
    multi_step: int = Field(default=0, ge=0, description="outer steps over which the loss after every inner step fades out")

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"head": "prototypes", "moved": "all"}}

    @property
    def second_derivative(self) -> bool:
        return self.gradient.second_derivative

    def check(self, inner: InnerConfig) -> None:
        super().check(inner)
        if not inner.most_steps:
            raise ValueError("inner.steps: expected at least 1, got 0; without inner steps use protonet")

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        weights = fading_weights(tasks.steps, step, self.multi_step)
        return meta_gradient(tasks, outer, optimizer, self.gradient, weights=weights)
