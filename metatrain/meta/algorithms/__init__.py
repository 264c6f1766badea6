"""Meta-learning algorithms by name, one file each. An algorithm is its own configuration: a recipe's `algorithm` section."""

from typing import Annotated, Protocol

from pydantic import Field

from metatrain.inner.loop import Order
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.anil import ANIL
from metatrain.meta.algorithms.imaml import IMAML
from metatrain.meta.algorithms.maml import MAML
from metatrain.meta.algorithms.metasgd import MetaSGD
from metatrain.meta.algorithms.protonet import ProtoNet
from metatrain.meta.algorithms.reptile import Reptile
from metatrain.meta.metagrad import MetaGradient


class Algorithm(Protocol):
    """What the outer loop needs. `order`: of the derivative that is taken of the support loss."""

    @property
    def order(self) -> Order: ...

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        """What outer step number `step` follows: the gradient, or what stands for it."""


__all__ = ["ANIL", "IMAML", "MAML", "Algorithm", "AlgorithmSection", "MetaSGD", "ProtoNet", "Reptile"]

AlgorithmSection = Annotated[MAML | MetaSGD | ANIL | Reptile | IMAML | ProtoNet, Field(discriminator="name")]
