"""Meta-learning algorithms, one file each.

An algorithm is also its own configuration: the `algorithm` section of a recipe.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor

from metatrain.inner.config import InnerConfig
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, Tasks
from metatrain.meta.algorithms.adapted_protonet import AdaptedProtoNet
from metatrain.meta.algorithms.anil import ANIL
from metatrain.meta.algorithms.fomaml import FOMAML
from metatrain.meta.algorithms.imaml import IMAML
from metatrain.meta.algorithms.maml import MAML
from metatrain.meta.algorithms.metasgd import MetaSGD
from metatrain.meta.algorithms.protonet import ProtoNet
from metatrain.meta.algorithms.reptile import Reptile
from metatrain.meta.metagrad import MetaGradient
from metatrain.options import Fixed


class Algorithm(Protocol):
    """The interface of an algorithm, as the outer loop uses it."""

    @property
    def name(self) -> str:
        """The name in recipes; an initialization records it."""

    @property
    def second_derivative(self) -> bool:
        """True if the meta-gradient needs a second derivative of the support loss.

        Fused attention does not have one, so the base model is then loaded without it.
        """

    @property
    def moves_base(self) -> bool:
        """True if the meta-gradient covers parameters of the base model too (`base.updated`)."""

    @property
    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """The paper's settings in other sections, {section: {option: value}}.

        They are the values of options that a recipe leaves out.
        """

    @property
    def fixed(self) -> Fixed:
        """Options in other sections whose values the algorithm sets, {section: {option: value}}.

        A recipe that gives one of them another value is refused.
        """

    def check(self, inner: InnerConfig) -> None:
        """Raise ValueError for an inner loop that the algorithm cannot be trained through."""

    def learns(self, leaf: str) -> bool:
        """Return True if the outer loop moves this leaf of `Outer.leaves()`."""

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, Tensor]:
        """Return the initial rates of the delta, [S] or [S, *leaf] of each leaf, all equal to `rate`."""

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        """Return the meta-gradient of outer step number `step`, or the algorithm's substitute for it."""


__all__ = [
    "ANIL",
    "FOMAML",
    "IMAML",
    "MAML",
    "AdaptedProtoNet",
    "Algorithm",
    "AlgorithmSection",
    "MetaSGD",
    "ProtoNet",
    "Reptile",
]

AlgorithmSection = Annotated[
    MAML | FOMAML | MetaSGD | ANIL | Reptile | IMAML | ProtoNet | AdaptedProtoNet, Field(discriminator="name")
]
