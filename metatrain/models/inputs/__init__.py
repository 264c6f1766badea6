"""Encoding of raw examples as rows and batches: the protocol `Inputs`, and one file for each modality."""

from collections.abc import Sequence
from typing import Any, Protocol

from metatrain.models.batch import Batch
from metatrain.models.inputs.augment import Augmentation
from metatrain.models.inputs.seen import Seen
from metatrain.models.inputs.text import TextInputs, TextSpec

AnySpec = TextSpec
"""The specs of all modalities. The fields in a file tell them apart."""


class Row(Protocol):
    """One encoded example. Its length is its number of tokens or patches."""

    @property
    def truncated(self) -> bool:
        """True if the example was truncated because it was longer than the maximum length."""

    def __len__(self) -> int: ...


class Inputs(Protocol):
    """The encoder of one modality: it turns raw examples into rows, and rows into batches.

    Other code uses only those properties of a row that `Row` has.
    """

    @property
    def spec(self) -> AnySpec:
        """The spec of the base model, with the digest of its tokenizer or image processor."""

    def encode(self, raw: Sequence[Any], max_length: int | None = None) -> Sequence[Any]:
        """Encode each raw example as a row, truncated to the smaller of `max_length` and the spec's limit."""

    def is_empty(self, row: Any) -> bool:
        """Return True if nothing of the example is left in its row, as of a text without any token."""

    def seen(self, row: Any) -> Seen:
        """Return what the model sees of an example."""

    def view(self, row: Any, augmentation: Augmentation, key: Sequence[int]) -> Any:
        """Return a randomly augmented copy of a row. `key` seeds the random draw and fully determines it."""

    def collate(self, rows: Sequence[Any], groups: int = 1, *, packed: bool = False) -> Batch:
        """Combine B rows into a batch on the backbone's device. A row of None is padding.

        `groups`: the number of groups of equal size into which `rows` is divided; the rows of a group are consecutive. `packed`:
        combine the rows without padding, if the modality has packed rows. `Base.collate` decides it.
        """

    @property
    def feature_size(self) -> int:
        """F, the number of features of an example."""

    @property
    def limit(self) -> str:
        """The maximum length of an example as text for messages, for example `256 tokens`."""

    def sample(self) -> Sequence[Any]:
        """Return three rows of unequal length, with which the model's architecture is tested."""

    def longest(self, at_most: int) -> Row:
        """Return a row of the maximum length, or of length `at_most` if that is less."""


__all__ = ["AnySpec", "Inputs", "Row", "Seen", "TextInputs", "TextSpec"]
