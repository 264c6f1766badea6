"""The options of `algorithm.gradient`: how a meta-gradient is computed.

`metatrain/meta/metagrad.py` has the table of modes.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from metatrain.meta.curvature import ProductName
from metatrain.options import Section, UsedWith

Mode = Literal["first_order", "unrolled", "checkpointed", "adjoint", "implicit", "auto"]


class Differentiation(Section):
    """The section `algorithm.gradient` of a recipe: the mode of the meta-gradient, and its options."""

    mode: Mode = "unrolled"
    memory_mb: Annotated[int, UsedWith("mode", "auto")] = Field(
        default=2048, ge=1, description="the most that the graphs of all inner steps may take together, in MiB"
    )
    segment: Annotated[int, UsedWith("mode", "checkpointed")] = Field(
        default=2, ge=1, description="inner steps between two checkpoints"
    )
    product: Annotated[ProductName, UsedWith("mode", "adjoint", "implicit")] = Field(
        default="reverse", description="how Hessian-vector products are taken"
    )
    solver: Annotated[Literal["cg", "neumann"], UsedWith("mode", "implicit")] = Field(
        default="cg", description="conjugate gradient, or a Neumann series"
    )
    iterations: Annotated[int, UsedWith("mode", "implicit")] = Field(
        default=10, ge=1, le=1000, description="Hessian-vector products of the solver"
    )
    damping: Annotated[float, UsedWith("mode", "implicit")] = Field(
        default=0.0, ge=0, description="added to the Hessian's diagonal for the solve"
    )
    neumann_rate: Annotated[float, UsedWith("mode", "implicit"), UsedWith("solver", "neumann")] = Field(
        default=0.1, gt=0, description="η in Σ_j η (I − ηH)^j"
    )

    @property
    def second_derivative(self) -> bool:
        """True if a second derivative of the support loss is computed."""
        return self.mode != "first_order" and self.product != "central"


def _through_the_loop(how: Differentiation) -> Differentiation:
    if how.mode not in _LOOP:
        raise ValueError(f"mode: expected one of {', '.join(_LOOP)}, got {how.mode!r}")
    return how


def _not_at_the_minimum(how: Differentiation) -> Differentiation:
    return how if how.mode == "first_order" else _through_the_loop(how)


def _at_the_minimum(how: Differentiation) -> Differentiation:
    if how.mode != "implicit":
        raise ValueError(f"mode: expected 'implicit', got {how.mode!r}")
    return how


_LOOP = ("unrolled", "checkpointed", "adjoint", "auto")
FIRST_ORDER = Differentiation(mode="first_order")
ThroughTheLoop = Annotated[Differentiation, AfterValidator(_through_the_loop)]
"""A mode that differentiates the inner steps."""
FirstOrderOrThroughTheLoop = Annotated[Differentiation, AfterValidator(_not_at_the_minimum)]
"""Any mode but the implicit one."""
AtTheMinimum = Annotated[Differentiation, AfterValidator(_at_the_minimum)]
"""The implicit mode."""
