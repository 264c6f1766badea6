"""Meta-learning algorithms by name, one file each. An algorithm is its own configuration: a recipe's `algorithm` section."""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, Tasks
from metatrain.meta.algorithms.anil import ANIL
from metatrain.meta.algorithms.imaml import IMAML
from metatrain.meta.algorithms.maml import MAML
from metatrain.meta.algorithms.metasgd import MetaSGD
from metatrain.meta.algorithms.protonet import ProtoNet
from metatrain.meta.algorithms.reptile import Reptile
from metatrain.meta.metagrad import MetaGradient


class Algorithm(Protocol):
    """What the outer loop needs."""

    @property
    def title(self) -> str:
        """The name that an initialization records, with the order of the derivative where there is a choice."""

    @property
    def second_derivative(self) -> bool:
        """The meta-gradient takes a second derivative of the support loss, which a fused attention does not have."""

    @property
    def moves_base(self) -> bool:
        """The meta-gradient reaches parameters of the base model too (`base.updated`)."""

    @property
    def inner_entries(self) -> Mapping[str, Any]:
        """Entries of the inner loop that the algorithm decides, in place of the recipe's own; recorded in the initialization."""

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, Tensor]:
        """Return the start of the delta's rates, [S] or [S, *leaf] of each leaf, all equal to `rate`."""

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        """Return what outer step number `step` follows: the gradient, or what stands for it."""


__all__ = ["ANIL", "IMAML", "MAML", "Algorithm", "AlgorithmSection", "MetaSGD", "ProtoNet", "Reptile"]

AlgorithmSection = Annotated[MAML | MetaSGD | ANIL | Reptile | IMAML | ProtoNet, Field(discriminator="name")]
