"""The protocol of a task kind: how its examples are stored, and how the inner loop is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # these import torch, and the ledger must not
    from metatrain.artifacts.initialization import Initialization
    from metatrain.inner.encoded import Encoded
    from metatrain.inner.support import Support
    from metatrain.models.base import Base
    from worker.ledger.messages import JobRecipe

Canonical = tuple[Any, ...]
"""An example in the form that records and ids use: JSON values, equal for equal examples."""


@runtime_checkable
class TaskKind(Protocol):
    """One kind of task. Creating an object must not import torch; `support` and `baselines` may import it."""

    @property
    def name(self) -> str:
        """The name of the kind in records and requests, such as `text-classification`."""

    @property
    def readout(self) -> str:
        """The name of the readout that an initialization must have to be adapted to tasks of this kind."""

    @property
    def default(self) -> str:
        """The initialization that a request for `default` gets if none has the name `default`."""

    def canonical(self, example: Mapping[str, Any]) -> Canonical:
        """Return an example of a request's body in its stored form, from which the adapter's id is made."""

    def ordered(self, support: Sequence[Canonical]) -> tuple[Canonical, ...]:
        """Return a support set in an order that does not depend on the order in the request."""

    def inputs(self, support: Sequence[Canonical]) -> list[Any]:
        """Return the raw input of each example, as `Inputs.encode` expects it."""

    def labels(self, support: Sequence[Canonical]) -> tuple[str, ...]:
        """Return the labels in the order of the readout's rows; empty if the kind has no labels."""

    def size(self, support: Sequence[Canonical], *, label_words: bool) -> tuple[int, int]:
        """Return the numbers of rows that the inner loop is trained on and of groups (see `Targets.sizes`).

        `label_words`: True if the words of each label are one more example of it.
        """

    def support(self, recipes: Sequence[JobRecipe], encoded: Encoded) -> Support[Any]:
        """Return the support sets of several jobs as rows and targets."""

    def baselines(self, base: Base) -> list[Initialization]:
        """Return the initializations of this kind that exist without meta-training."""
