"""Convert episodes to support and query sets, and encode each raw example only once."""

from collections.abc import Hashable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metatrain.deltas import DeltaKind
from metatrain.inner.problem import Leaves, stack
from metatrain.inner.support import Query, Support
from metatrain.models.base import Base
from metatrain.readouts.classes import ClassTargets
from metatrain.tasks.episodes import Episode

Pairs = Sequence[tuple[str, int]]
_ROWS = 256  # most rows of one forward pass without an autograd graph, to bound memory


class Encoded:
    """A cache of encoded examples, because training draws the same examples thousands of times.

    `max_length`: cut texts to this many tokens, for training data with a few very long texts. The base model's own limit applies if
    it is smaller, or if `max_length` is None.
    """

    def __init__(self, base: Base, max_length: int | None = None) -> None:
        self.base, self.max_length = base, max_length
        self._rows: dict[Hashable, Any] = {}

    def rows(self, tasks: Sequence[Sequence[Any]]) -> list[Any]:
        """Encode the raw examples of T tasks, and return them as one list of T·M rows, task after task.

        M is the number of examples of the largest task. Smaller tasks are padded with None.
        """
        new = sorted({raw for raws in tasks for raw in raws} - self._rows.keys())
        if new:
            self._rows |= zip(new, self.base.inputs.encode(new, self.max_length), strict=True)
        width = max(len(raws) for raws in tasks)
        rows: list[Any] = []
        for raws in tasks:
            rows += [self._rows[raw] for raw in raws] + [None] * (width - len(raws))
        return rows

    @torch.no_grad()
    def features(
        self,
        raws: Sequence[Any],
        kind: DeltaKind | None = None,
        theta: Leaves = MappingProxyType({}),
        updated: Leaves = MappingProxyType({}),
    ) -> Tensor:
        """Return the features [N, D] of N raw examples, without an autograd graph.

        Each forward pass has a bounded number of rows. `kind`, `theta`: a kind of delta and the leaves of one task, which all rows
        use; None for the bare base model. `updated`: replacements of the base model's parameters, as in `Backbone.hidden`.
        """
        parts = [raws[i : i + _ROWS] for i in range(0, len(raws), _ROWS)]
        per_token, delta = (True, None) if kind is None else (kind.per_token, kind.fold(stack(theta, 1)))
        batches = [self.base.collate(self.rows([part]), per_token=per_token) for part in parts]
        return torch.cat([self.base.features(delta, batch, updated=updated) for batch in batches])

    def support(self, tasks: Sequence[Pairs], optional: Sequence[int] = ()) -> Support[ClassTargets]:
        """Return the support sets of T classification tasks, each given as (text, class index) pairs.

        `optional`: the number of pairs at the end of each task that are optional (`ClassTargets.optional`); () if there are none.
        """
        rows, labels = self.rows([[raw for raw, _ in pairs] for pairs in tasks]), _labels(tasks, self.base.device)
        if not any(optional):
            return Support(rows, ClassTargets.of(labels))
        is_optional = torch.zeros_like(labels, dtype=torch.bool)
        for t, (pairs, count) in enumerate(zip(tasks, optional, strict=True)):
            is_optional[t, len(pairs) - count : len(pairs)] = True
        return Support(rows, ClassTargets.of(labels, is_optional))

    def query(self, tasks: Sequence[Pairs]) -> Query[ClassTargets]:
        """Return the query sets of T classification tasks, each given as (text, class index) pairs."""
        rows = self.rows([[raw for raw, _ in pairs] for pairs in tasks])
        return Query(rows, ClassTargets.of(_labels(tasks, self.base.device)))

    def batch(self, episodes: Sequence[Episode]) -> tuple[Support[ClassTargets], Query[ClassTargets]]:
        """Return the support and query sets of T episodes."""
        return self.support([e.support for e in episodes]), self.query([e.query for e in episodes])


def _labels(tasks: Sequence[Pairs], device: torch.device) -> Tensor:
    """Return class indices [T, M] int64, −1 for padding."""
    width = max(len(pairs) for pairs in tasks)
    labels = torch.full((len(tasks), width), -1, dtype=torch.int64)
    for t, pairs in enumerate(tasks):
        labels[t, : len(pairs)] = torch.tensor([c for _, c in pairs], dtype=torch.int64)
    return labels.to(device)
