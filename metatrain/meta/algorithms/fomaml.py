"""FOMAML: MAML with the inner gradients treated as constants.

    θ ← outer optimizer step on  (1/T) Σ_t ∂L_query,t/∂φ (φ_K,t)

No second derivative is computed. Everything else that depends on the outer values is still differentiated: learned rates, and a
head that starts as prototypes under θ.

Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning", arXiv:1703.03400, §5.2, with the defaults of MAML. `multi_step` works as
in MAML: Antoniou, Edwards, Storkey 2019, arXiv:1810.09502, §4.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.algorithms.maml import MAML, fading_weights
from metatrain.meta.differentiation import FIRST_ORDER
from metatrain.meta.metagrad import MetaGradient, meta_gradient
from metatrain.options import Fixed


class FOMAML(AlgorithmConfig):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = MAML.defaults

    name: Literal["fomaml"] = "fomaml"
    multi_step: int = Field(default=0, ge=0, description="outer steps over which the loss after every inner step fades out")

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"head": "linear"}}

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        weights = fading_weights(tasks.steps, step, self.multi_step)
        return meta_gradient(tasks, outer, optimizer, FIRST_ORDER, weights=weights)
