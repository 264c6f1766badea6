"""Episodes as tensors: T tasks side by side."""

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from metatrain.deltas import Delta
from metatrain.inner.problem import Leaves
from metatrain.inner.support import Query, Support
from metatrain.models.text import TextBase
from metatrain.tasks.episodes import Episode

Pairs = Sequence[tuple[str, int]]
_ROWS = 256  # of one forward pass that keeps no graph


class Tokenized:
    """Token ids by text, computed once: training meets the same texts thousands of times.

    `max_length` cuts texts shorter than the base model's own limit, for training on sets with a few very long texts.
    """

    def __init__(self, base: TextBase, max_length: int | None = None) -> None:
        self.base = base
        self.limit = max_length or base.spec.max_length
        self._ids: dict[str, list[int]] = {}

    def rows(self, tasks: Sequence[Pairs]) -> tuple[list[list[int]], Tensor]:
        """(text, class) pairs of T tasks → token ids of T·M rows and labels [T, M], M the longest task's rows."""
        new = sorted({text for pairs in tasks for text, _ in pairs} - self._ids.keys())
        if new:
            self._ids |= dict(zip(new, self.base.encode(new, self.limit)[0], strict=True))
        width = max(len(pairs) for pairs in tasks)
        labels = torch.full((len(tasks), width), -1, dtype=torch.int64)
        ids: list[list[int]] = []
        for t, pairs in enumerate(tasks):
            ids += [self._ids[text] for text, _ in pairs] + [[]] * (width - len(pairs))
            labels[t, : len(pairs)] = torch.tensor([c for _, c in pairs], dtype=torch.int64)
        return ids, labels.to(self.base.device)

    @torch.no_grad()
    def features(self, texts: Sequence[str], delta: Delta | None = None, updated: Leaves = MappingProxyType({})) -> Tensor:
        """Features [N, D] of each text, in passes of a bounded number of rows that keep no graph. `delta`: folded, of one group;
        `updated`: see `TextBase.features`."""
        parts = [texts[i : i + _ROWS] for i in range(0, len(texts), _ROWS)]
        batches = [self.base.collate(self.rows([[(text, 0) for text in part]])[0]) for part in parts]
        return torch.cat([self.base.features(delta, batch, updated=updated) for batch in batches])

    def support(self, tasks: Sequence[Pairs]) -> Support:
        ids, labels = self.rows(tasks)
        return Support(ids, labels, int(labels.max()) + 1)

    def query(self, tasks: Sequence[Pairs]) -> Query:
        ids, labels = self.rows(tasks)
        return Query(self.base.collate(ids, len(tasks)), labels)

    def batch(self, episodes: Sequence[Episode]) -> tuple[Support, Query]:
        return self.support([e.support for e in episodes]), self.query([e.query for e in episodes])
