"""Prototypical Networks on the features of a delta.

    θ ← outer optimizer step on  ∇_θ (1/T) Σ_t L_query,t( prototypes of support_t under θ )

No inner step is taken: the class prototypes are the head, cosine similarity times s the logits, and the gradient flows through
both the support and the query features. The initialization records 0 steps; asked for more, it takes them at the start rates.

Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning", arXiv:1703.05175, alg. 1.
"""

from metatrain.base.text import TextBase
from metatrain.deltas import LoRA
from metatrain.inner import InnerConfig
from metatrain.metagrad import ATTENTION, MetaGradient, Outer, meta_gradient
from metatrain.taskbatch import TaskBatch


class ProtoNet:
    def __init__(self, inner: InnerConfig, anchor: float) -> None:
        self.inner = inner.model_copy(update={"steps": 0, "steps_by_shots": {}})
        self.anchor = anchor
        self.attention = ATTENTION["first_order"]

    def gradient(self, base: TextBase, lora: LoRA, outer: Outer, batch: TaskBatch) -> MetaGradient:
        return meta_gradient(base, lora, outer, batch, self.inner, "first_order", anchor=self.anchor)
