"""MAML: θ is learned by the exact gradient of the query loss through the inner loop.

    θ ← outer optimizer step on  ∇_θ (1/T) Σ_t L_query,t( U^K_α(θ; support_t) )

U^K is `metatrain.inner.loop.adapt`: K steps of gradient descent on the support set, all of them differentiated in the mode of
`gradient`. The rates α are fixed unless `learned` contains "rates". The frozen base model, the order of minibatches and the labels
are never differentiated.

Two additions of MAML++ are off by default. `annealed`: the number of outer steps, at the beginning, that use the first-order
gradient. `multi_step`: the number of outer steps in which the loss is a weighted sum of the query losses after every inner step.
The weights are equal at first, and gradually move to the last inner step alone.

Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning", arXiv:1703.03400, alg. 1. The defaults are the paper's for MiniImagenet:
five steps at 0.01. Additions: Antoniou, Edwards, Storkey 2019, "How to train your MAML", arXiv:1810.09502, §4. On a base model the
head starts as prototypes, which the paper does not have: Triantafillou et al. 2020, arXiv:1903.03096.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import PAPERS_OUTER
from metatrain.meta.algorithms.through_steps import ThroughSteps
from metatrain.meta.differentiation import FIRST_ORDER
from metatrain.meta.metagrad import MetaGradient, meta_gradient
from metatrain.options import Fixed


class MAML(ThroughSteps):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inner": {"optimizer": "sgd", "steps": 5},
        "start": {"rate": 0.01, "head_rate": 0.01},
        "outer": PAPERS_OUTER,
    }

    name: Literal["maml"] = "maml"
    annealed: int = Field(default=0, ge=0, description="outer steps with the first-order gradient, before those with the exact one")
    multi_step: int = Field(default=0, ge=0, description="outer steps over which the loss after every inner step fades out")

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"head": "linear"}}

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        how = FIRST_ORDER if step < self.annealed else self.gradient
        return meta_gradient(tasks, outer, optimizer, how, weights=fading_weights(tasks.steps, step, self.multi_step))


def fading_weights(steps: int, step: int, fades_over: int) -> list[float] | None:
    """Return the weights of the query losses at φ_0 … φ_K in outer step number `step`.

    K is `steps`. φ_0 has weight 0. φ_1 … φ_{K−1} have equal weights, which fall to zero over `fades_over` outer steps. φ_K has the
    rest, so that the sum is 1. From outer step `fades_over` on, return None, which means that only the query loss at φ_K is used.
    """
    if step >= fades_over:
        return None
    early = (1 - step / fades_over) / max(steps, 1)
    return [0.0] + [early] * (steps - 1) + [1 - early * (steps - 1)] if steps else [1.0]
