"""Meta-learning algorithms, one file each.

The class of an algorithm is also its configuration: its fields are the options of a recipe's `algorithm` section.
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
    """The interface between the outer loop and a meta-learning algorithm."""

    @property
    def name(self) -> str:
        """The algorithm's name in recipes. Initializations store it too."""

    @property
    def second_derivative(self) -> bool:
        """True if the meta-gradient needs a second derivative of the support loss.

        If True, the base model is loaded with eager attention, because fused attention has no second derivative.
        """

    @property
    def moves_base(self) -> bool:
        """True if the algorithm can also train parameters of the base model (`base.updated` in a recipe)."""

    @property
    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """The paper's settings for other sections of a recipe, {section: {option: value}}.

        They are the defaults of options that the recipe leaves out.
        """

    @property
    def fixed(self) -> Fixed:
        """Options of other sections that the algorithm prescribes, {section: {option: value}}.

        A recipe with another value for one of them is rejected.
        """

    def check(self, inner: InnerConfig) -> None:
        """Raise ValueError if the algorithm does not support this inner-loop configuration."""

    def learns(self, leaf: str) -> bool:
        """Return True if the outer loop moves the tensor of `Outer.leaves()` that has the name `leaf`."""

    def rates_of(self, theta: Leaves, rate: float, *, steps: int) -> dict[str, Tensor]:
        """Return the initial inner rates of each leaf of θ, all equal to `rate`.

        They are [S] (one rate per step) or [S, *leaf shape] (one rate per step and parameter), with S = `steps`.
        """

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        """Return the gradient for outer step number `step`: the meta-gradient, or Reptile's pseudo-gradient."""


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
