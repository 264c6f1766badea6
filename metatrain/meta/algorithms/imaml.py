"""iMAML: differentiate the minimum of a proximal objective, not the inner steps that lead to it.

    φ*(θ) = argmin_φ  L_support(φ) + λ/2 ‖φ − θ‖²            dφ*/dθ = (I + H(φ*) / λ)⁻¹
    ∇_θ L_query(φ*) = λ (H + λ I)⁻¹ ∂L_query/∂φ*             solved by conjugate gradient or a Neumann series

H is the Hessian of the support loss, used only through products with vectors, so memory does not grow with the inner steps. λ must
exceed the size of H's most negative eigenvalue. With LoRA, whose update is bilinear in A and B, H is indefinite. If λ is too small,
`gradient.damping` can be added to the diagonal of H + λI, for the linear solve only.

Two numbers are reported. One is the relative residual of the linear solve. The other is the norm of the inner gradient at φ_K
relative to that at φ_0, which tells how far φ_K is from the minimum. The proximal term also covers a head that starts from
prototypes: it pulls the head towards them.

Rajeswaran, Finn, Kakade, Levine 2019, "Meta-Learning with Implicit Gradients", arXiv:1909.04630, alg. 1 and 2. Neumann series:
Lorraine, Vicol, Duvenaud 2020, arXiv:1911.02590. λ = 2, 16 steps of gradient descent and five of conjugate gradient are the paper's
settings for Omniglot.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from metatrain.errors import NonFinite
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, Start, Tasks
from metatrain.meta.algorithms.config import PAPERS_OUTER, AlgorithmConfig
from metatrain.meta.differentiation import AtTheMinimum, Differentiation
from metatrain.meta.metagrad import MetaGradient, meta_gradient
from metatrain.options import Fixed


class Proximal:
    """A wrapper of tasks that adds the proximal term λ/2 ‖φ − φ_0(θ)‖² to their inner loss.

    `strength`: λ. Implements `metatrain.inner.problem.Tasks`.
    """

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
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inner": {"optimizer": "sgd", "steps": 16},
        "start": {"rate": 0.01, "head_rate": 0.01},
        "outer": PAPERS_OUTER,
    }

    name: Literal["imaml"] = "imaml"
    learned: tuple[Literal["theta", "scale"], ...] = Field(
        default=("theta",), min_length=1, description="what the outer loop moves; the minimum does not depend on the rates"
    )
    strength: float = Field(default=2.0, gt=0, description="λ of the proximal term")
    gradient: AtTheMinimum = Differentiation(mode="implicit", iterations=5)

    @field_validator("gradient", mode="before")
    @classmethod
    def _is_implicit(cls, value: Any) -> Any:
        """Set the mode to implicit and the number of iterations to 5 in a dict that leaves them out."""
        return {"mode": "implicit", "iterations": 5, **value} if isinstance(value, dict) else value

    @property
    def second_derivative(self) -> bool:
        return self.gradient.second_derivative

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"proximal": self.strength, "head": "linear", "moved": "all"}}

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        """Return the implicit meta-gradient. Tasks without a proximal term get one with λ = `strength`.

        Raises NonFinite if the relative residual of the linear solve is at least 1. The zero vector already has a residual of 1, so
        the solve made no progress: H + λI is not positive definite. Raises ValueError for tasks with a proximal term of another
        strength.
        """
        if tasks.proximal not in (0.0, self.strength):
            raise ValueError(f"strength: expected tasks with a proximal term of {self.strength} or none, got {tasks.proximal}")
        proximal = tasks if tasks.proximal else Proximal(tasks, self.strength)
        found = meta_gradient(proximal, outer, optimizer, self.gradient)
        if found.residual is not None and not found.residual < 1:
            raise NonFinite(
                f"the implicit solve made no progress (relative residual {found.residual:.1e}): the Hessian is not positive "
                "definite; raise algorithm.strength or algorithm.gradient.damping"
            )
        return found
