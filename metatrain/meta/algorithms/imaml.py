"""iMAML: the inner loop minimises a proximal objective, whose minimum is differentiated instead of the way to it.

    φ*(θ) = argmin_φ  L_support(φ) + λ/2 ‖φ − θ‖²            dφ*/dθ = (I + H(φ*) / λ)⁻¹
    ∇_θ L_query(φ*) = λ (H + λ I)⁻¹ ∂L_query/∂φ*             solved by conjugate gradient or a Neumann series

H is the Hessian of the support loss, met through products alone; memory does not grow with the inner steps. λ must outweigh H's
most negative eigenvalue (with LoRA, where the loss is bilinear in A and B, H is indefinite): `gradient.damping` is added for the
solve alone where it does not. Every solve's relative residual is reported. The proximal term ties what θ has; a head that starts
from prototypes is tied to them.

Rajeswaran, Finn, Kakade, Levine 2019, "Meta-Learning with Implicit Gradients", arXiv:1909.04630, alg. 1 and 2; Lorraine, Vicol,
Duvenaud 2020, arXiv:1911.02590, for the Neumann series.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from metatrain.errors import NonFinite
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, Start, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import AtTheMinimum, Differentiation, MetaGradient, meta_gradient


class Proximal:
    """`tasks` to whose support loss the inner loop adds λ/2 ‖φ − φ_0(θ)‖²: `metatrain.inner.problem.Tasks` again."""

    def __init__(self, tasks: Tasks, strength: float) -> None:
        self.tasks, self.proximal = tasks, strength

    @property
    def count(self) -> int:
        return self.tasks.count

    @property
    def steps(self) -> int:
        return self.tasks.steps

    @property
    def no_second_derivative(self) -> str | None:
        return self.tasks.no_second_derivative

    @property
    def no_differences(self) -> str | None:
        return self.tasks.no_differences

    def start(self, outer: Outer) -> Start:
        return self.tasks.start(outer)

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        return self.tasks.support_loss(phi, outer, step, start)

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return self.tasks.query_loss(phi, outer, step, exact=exact)


class IMAML(AlgorithmConfig):
    name: Literal["imaml"] = "imaml"
    order: Literal["second"] = "second"
    strength: float = Field(default=1.0, gt=0, description="λ of the proximal term")
    gradient: AtTheMinimum = Differentiation(mode="implicit", iterations=5)

    @field_validator("gradient", mode="before")
    @classmethod
    def _is_implicit(cls, value: Any) -> Any:
        """What is not said is as in the default."""
        return {"mode": "implicit", "iterations": 5, **value} if isinstance(value, dict) else value

    @property
    def title(self) -> str:
        return self.name

    @property
    def second_derivative(self) -> bool:
        return self.gradient.second_derivative

    @property
    def inner_entries(self) -> Mapping[str, Any]:
        return {"proximal": self.strength}

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        """Adds the proximal term to tasks that have none. Raises NonFinite where the solve got nowhere (a relative residual of 1 is
        that of u = 0): H + λI is then not positive definite."""
        if tasks.proximal not in (0.0, self.strength):
            raise ValueError(f"strength: these tasks have a proximal term of {tasks.proximal}, expected {self.strength} or none")
        bound = tasks if tasks.proximal else Proximal(tasks, self.strength)
        found = meta_gradient(bound, outer, optimizer, self.gradient)
        if found.residual is not None and not found.residual < 1:
            raise NonFinite(
                f"the implicit solve got nowhere (relative residual {found.residual:.1e}): the Hessian is not positive definite "
                "there; raise algorithm.strength or algorithm.gradient.damping"
            )
        return found
