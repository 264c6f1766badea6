"""What a kind of task is to the worker and the service: how its examples are kept, and how they teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # torch, which the ledger does without
    from metatrain.artifacts.initialization import Initialization
    from metatrain.inner.encoded import Encoded
    from metatrain.inner.support import Support
    from metatrain.models.base import Base
    from worker.ledger.messages import JobRecipe

Canonical = tuple[Any, ...]
"""An example as it stands in records and ids: values that JSON has, equal for equal examples."""


class TaskKind(Protocol):
    """One kind of task. An object of this kind imports no torch; its methods may.

    `readout`: the kind of readout of the initializations that its adapters start from. `default`: the initialization that a request
    gets if it names `default` and there is none of that name.
    """

    @property
    def name(self) -> str: ...

    @property
    def readout(self) -> str: ...

    @property
    def default(self) -> str: ...

    def canonical(self, example: Mapping[str, Any]) -> Canonical:
        """An example of a request's body as it is kept: what the adapter's id is made of."""

    def ordered(self, support: Sequence[Canonical]) -> tuple[Canonical, ...]:
        """A support set in an order that does not depend on that of the request."""

    def inputs(self, support: Sequence[Canonical]) -> list[Any]:
        """The raw input of each example, as `Inputs.encode` takes it."""

    def labels(self, support: Sequence[Canonical]) -> tuple[str, ...]:
        """The labels of a support set in the order of the readout's rows; empty where answers are no labels."""

    def size(self, support: Sequence[Canonical], *, label_words: bool) -> tuple[int, int]:
        """The rows that the inner loop is taught with, and the groups that they are spread over (see `Targets.sizes`)."""

    def support(self, recipes: Sequence[JobRecipe], encoded: Encoded) -> Support[Any]:
        """The support sets of several jobs as rows and targets."""

    def baselines(self, base: Base) -> list[Initialization]:
        """Initializations of this kind that nothing was learned for."""
