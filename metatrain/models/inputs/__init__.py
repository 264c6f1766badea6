"""How raw examples become rows and batches: the protocol `Inputs`, and one file for each modality, named in `AnySpec`."""

from collections.abc import Sequence
from typing import Any, Protocol

from metatrain.models.backbone import Batch
from metatrain.models.inputs.augment import Augmentation
from metatrain.models.inputs.text import TextInputs, TextSpec

AnySpec = TextSpec
"""The specs of all kinds of inputs; a file says by its fields which it has."""


class Row(Protocol):
    """One encoded example. Its length is its cost in tokens or patches."""

    @property
    def truncated(self) -> bool:
        """The example was longer than the base model takes, and was cut."""

    def __len__(self) -> int: ...


class Inputs(Protocol):
    """How raw examples become rows, and rows a batch. A row is whatever `encode` makes; only its length means something outside."""

    @property
    def spec(self) -> AnySpec:
        """What identifies the base model, with the digest of its tokenizer or image processor."""

    def encode(self, raw: Sequence[Any], max_length: int | None = None) -> Sequence[Any]:
        """Encode raw examples; each row says by `truncated` if it was cut to `max_length`, or to the limit of the spec."""

    def view(self, row: Any, augmentation: Augmentation, key: Sequence[int]) -> Any:
        """An augmented copy of a row, drawn by `key` alone."""

    def collate(self, rows: Sequence[Any], groups: int = 1) -> Batch:
        """Make a batch of B rows in `groups` groups (group-major) on the backbone's device. None is a row of padding."""

    @property
    def limit(self) -> str:
        """The largest example that is not cut, for messages: `256 tokens`."""

    def sample(self) -> Sequence[Any]:
        """Three rows of unequal length, to try an architecture on."""

    def longest(self) -> Any:
        """The largest row that there can be."""


__all__ = ["AnySpec", "Inputs", "Row", "TextInputs", "TextSpec"]
