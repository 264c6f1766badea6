"""Meta-learning algorithms by name, one file each."""

from collections.abc import Callable
from typing import Protocol

from metatrain.algorithms.maml import MAML
from metatrain.algorithms.protonet import ProtoNet
from metatrain.base.text import Attention, TextBase
from metatrain.deltas import LoRA
from metatrain.inner import InnerConfig
from metatrain.metagrad import MetaGradient, Mode, Outer
from metatrain.taskbatch import TaskBatch


class Algorithm(Protocol):
    """What the outer loop needs: the attention its gradient can be taken through, the inner loop that the initialization will
    record, and a meta-gradient."""

    attention: Attention
    inner: InnerConfig

    def gradient(self, base: TextBase, lora: LoRA, outer: Outer, batch: TaskBatch) -> MetaGradient: ...


ALGORITHMS: dict[str, Callable[[InnerConfig, Mode, float], Algorithm]] = {
    "maml": MAML,
    "protonet": lambda inner, _mode, anchor: ProtoNet(inner, anchor),
}


def build(name: str, inner: InnerConfig, mode: Mode, anchor: float = 0.0) -> Algorithm:
    """The algorithm of this name, one of `ALGORITHMS`; `anchor` is the weight of staying near the base model."""
    return ALGORITHMS[name](inner, mode, anchor)
