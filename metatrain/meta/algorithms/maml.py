"""MAML, and FOMAML, its switch.

    (θ, log α, log s) ← outer optimizer step on  ∇ (1/T) Σ_t L_query,t( U^K_α(θ; support_t) )

U^K is `metatrain.inner.loop.adapt`: K steps on the support set. order="second" differentiates through the K steps, in whichever way
`gradient` says (they agree); order="first" (FOMAML) takes each inner gradient for a constant. `annealed`: the first so many outer
steps are first order. `multi_step`: the query loss after every inner step counts, at first equally and over so many outer steps
ever more the last alone. Never differentiated: the base model, minibatch order, labels.

Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning", arXiv:1703.03400, alg. 1 (and §5.2 for first order); the multi-step loss,
annealing and rates by step of Antoniou, Edwards, Storkey 2019, "How to train your MAML", arXiv:1810.09502, §4; prototypes as the
head's start in Triantafillou et al. 2020, arXiv:1903.03096.
"""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import Differentiation, MetaGradient, ThroughTheLoop, meta_gradient

FIRST_ORDER = Differentiation(mode="first_order")


class MAML(AlgorithmConfig):
    name: Literal["maml"] = "maml"
    order: Literal["first", "second"] = Field(default="first", description="of the meta-gradient: first is FOMAML")
    gradient: ThroughTheLoop = Field(default=Differentiation(), description="how order second is taken")
    annealed: int = Field(default=0, ge=0, description="outer steps of first order before order second begins")
    multi_step: int = Field(default=0, ge=0, description="outer steps over which the loss after every inner step fades out")

    @model_validator(mode="after")
    def _second_order_is_asked_for(self) -> "MAML":
        if self.order == "first" and {"gradient", "annealed"} & self.model_fields_set - _at_default(self):
            raise ValueError('order: gradient and annealed are of order "second", got order "first"')
        return self

    @property
    def title(self) -> str:
        return f"{self.name} ({self.order} order)"

    @property
    def second_derivative(self) -> bool:
        return self.order == "second" and self.gradient.second_derivative

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        first = self.order == "first" or step < self.annealed
        weights = multi_step_weights(tasks.steps, step / self.multi_step) if step < self.multi_step else None
        return meta_gradient(tasks, outer, optimizer, FIRST_ORDER if first else self.gradient, weights=weights)


def _at_default(config: BaseModel) -> set[str]:
    return {name for name, field in type(config).model_fields.items() if getattr(config, name) == field.default}


def multi_step_weights(steps: int, share: float) -> list[float]:
    """Of the query losses at φ_0 … φ_K: none for φ_0, equal ones that fall to zero as `share` goes from 0 to 1, the rest for
    φ_K."""
    early = (1 - share) / max(steps, 1)
    return [0.0] + [early] * (steps - 1) + [1 - early * (steps - 1)] if steps else [1.0]
