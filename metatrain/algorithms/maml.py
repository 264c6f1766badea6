"""MAML on a delta, with learned per-leaf inner rates. FOMAML is its switch.

    (θ, log α, log s) ← outer optimizer step on  ∇ (1/T) Σ_t L_query,t( U^K_α(θ; support_t) )

U^K is `metatrain.inner.adapt`: K steps of SGD or Adam on the support set, from φ_0 = (θ, prototypes under θ). Exact
(mode "unrolled") differentiates through the K steps; mode "first_order" (FOMAML) takes each inner gradient for a constant.
Never differentiated: the base model, minibatch order, labels.

Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning", arXiv:1703.03400, alg. 1 (and §5.2 for first order); rates as in Li et
al. 2017, "Meta-SGD", arXiv:1707.09835, one per leaf; prototypes as in Triantafillou et al. 2020, arXiv:1903.03096.
"""

from metatrain.base.text import TextBase
from metatrain.deltas import LoRA
from metatrain.inner import InnerConfig
from metatrain.metagrad import ATTENTION, MetaGradient, Mode, Outer, meta_gradient
from metatrain.taskbatch import TaskBatch


class MAML:
    def __init__(self, inner: InnerConfig, mode: Mode, anchor: float) -> None:
        self.inner, self.mode, self.anchor, self.attention = inner, mode, anchor, ATTENTION[mode]

    def gradient(self, base: TextBase, lora: LoRA, outer: Outer, batch: TaskBatch) -> MetaGradient:
        return meta_gradient(base, lora, outer, batch, self.inner, self.mode, anchor=self.anchor)
