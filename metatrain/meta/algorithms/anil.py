"""ANIL: the inner loop moves only the head ψ, and the outer loop moves the parameters θ below it.

    ψ_{k+1} = ψ_k − α ∇_ψ L_support(θ, ψ_k)        θ ← outer optimizer step on  ∇_θ (1/T) Σ_t L_query,t(θ, ψ_K,t)

The support features under θ are computed once, so an inner step costs almost nothing. With a delta, ψ_0 consists of the class
prototypes under θ. In a small net, ψ is the last layer and ψ_0 is learned. Everything else is as in MAML.

Raghu, Raghu, Bengio, Vinyals 2020, "Rapid Learning or Feature Reuse?", arXiv:1909.09157, §4.1. The defaults are those of MAML on
MiniImagenet.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from metatrain.meta.algorithms.maml import MAML
from metatrain.meta.algorithms.through_steps import ThroughSteps
from metatrain.options import Fixed


class ANIL(ThroughSteps):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = MAML.defaults

    name: Literal["anil"] = "anil"

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"moved": "head", "head": "linear"}}
