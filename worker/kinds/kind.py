"""The protocol of a task kind: the stored form of its examples, and their use in the inner loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # these import torch, and the ledger must not
    from metatrain.artifacts.initialization import Initialization
    from metatrain.inner.encoded import Encoded
    from metatrain.inner.support import Support
    from metatrain.models.description import BaseDescription
    from worker.ledger.messages import JobRecipe

Canonical = tuple[Any, ...]
"""The stored form of an example, used in records and adapter ids: a tuple of JSON values. Equal examples have equal tuples."""


@runtime_checkable
class TaskKind(Protocol):
    """One kind of task, such as text classification.

    Creating an instance must not import torch. Only the methods `support` and `baselines` may import it.
    """

    @property
    def name(self) -> str:
        """The name of the kind in records and requests, such as `text-classification`."""

    @property
    def readout(self) -> str:
        """The name of the readout: the part of an initialization that turns hidden states into predictions.

        Only initializations with this readout can be adapted to tasks of this kind.
        """

    @property
    def default(self) -> str:
        """The initialization to use for a request that asks for `default`, if no initialization has that name."""

    def canonical(self, example: Mapping[str, Any]) -> Canonical:
        """Convert an example from a request body to its stored form, which also determines the adapter's id."""

    def ordered(self, support: Sequence[Canonical]) -> tuple[Canonical, ...]:
        """Sort a support set, so that its order does not depend on the order in the request."""

    def inputs(self, support: Sequence[Canonical]) -> list[Any]:
        """Return the raw input of each example, as `Inputs.encode` expects it."""

    def labels(self, support: Sequence[Canonical]) -> tuple[str, ...]:
        """Return the labels in the order of the readout's rows, or an empty tuple if the kind has no labels."""

    def size(self, support: Sequence[Canonical], *, label_words: bool) -> tuple[int, int]:
        """Return (number of rows that the inner loop trains on, number of groups of rows).

        For classification, a group is the rows of one label (see `Targets.sizes`). `label_words`: True if the words of each label
        are used as one more example of that label.
        """

    def support(self, recipes: Sequence[JobRecipe], encoded: Encoded) -> Support[Any]:
        """Encode the support sets of several jobs as rows and targets for one pass."""

    def baselines(self, base: BaseDescription) -> list[Initialization]:
        """Return the initializations of this kind that need no meta-training.

        `base` may be a description without weights: their values must depend only on the shapes of the model.
        """
