"""Encoding of raw examples to rows and batches: the protocol `Inputs`, and one file for each modality."""

from collections.abc import Sequence
from typing import Any, Protocol

from metatrain.models.backbone import Batch
from metatrain.models.inputs.augment import Augmentation
from metatrain.models.inputs.text import TextInputs, TextSpec

AnySpec = TextSpec
"""The specs of all modalities. The fields in a file tell them apart."""


class Row(Protocol):
    """One encoded example. Its length is its number of tokens or patches."""

    @property
    def truncated(self) -> bool:
        """True if the example was longer than the base model takes and was truncated."""

    def __len__(self) -> int: ...


class Inputs(Protocol):
    """The encoding of one modality. Only `encode` creates rows; other code uses nothing but their length."""

    @property
    def spec(self) -> AnySpec:
        """The spec of the base model, with the digest of its tokenizer or image processor."""

    def encode(self, raw: Sequence[Any], max_length: int | None = None) -> Sequence[Any]:
        """Encode raw examples, truncated to `max_length` or to the limit of the spec if that is smaller."""

    def view(self, row: Any, augmentation: Augmentation, key: Sequence[int]) -> Any:
        """Return an augmented copy of a row, which depends only on `key`."""

    def collate(self, rows: Sequence[Any], groups: int = 1) -> Batch:
        """Make a batch of B rows in `groups` groups (group-major) on the backbone's device.

        None is a row of padding.
        """

    @property
    def limit(self) -> str:
        """The length of the longest example that is not truncated, for messages: `256 tokens`."""

    def sample(self) -> Sequence[Any]:
        """Return three rows of unequal length, to test an architecture with."""

    def longest(self) -> Any:
        """Return a row of the maximum length."""


__all__ = ["AnySpec", "Inputs", "Row", "TextInputs", "TextSpec"]
