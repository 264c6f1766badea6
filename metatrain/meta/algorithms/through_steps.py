"""The base class of algorithms that differentiate the query loss through the inner steps."""

from pydantic import Field

from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.differentiation import Differentiation, ThroughTheLoop
from metatrain.meta.metagrad import MetaGradient, meta_gradient


class ThroughSteps(AlgorithmConfig):
    """The base class of algorithms whose meta-gradient is the exact derivative through the inner steps.

    `gradient` selects the mode. All modes agree up to rounding, except that `product: central` is an approximation.
    """

    gradient: ThroughTheLoop = Field(default=Differentiation(), description="how the derivative through the steps is computed")

    @property
    def second_derivative(self) -> bool:
        return self.gradient.second_derivative

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        return meta_gradient(tasks, outer, optimizer, self.gradient)
