"""The view that a base model has of an example."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seen:
    """The view that a base model has of one encoded example.

    `content`: two examples with equal content are the same for the model. `tokens`: the number of the example's own tokens or
    patches, without those that every example gets; 0 if nothing of the example is left. `unknown`: how many of them are unknown
    tokens, which stand for anything that the model has no token for. `truncated`: True if the model sees only the beginning.
    """

    content: Hashable = field(repr=False)
    tokens: int
    unknown: int = 0
    truncated: bool = False
