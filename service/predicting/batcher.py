"""Which rows of which waiting calls go into the next forward pass. No threads, no torch."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

ROW_SECONDS = 0.005


class Waiting(Protocol):
    """A call of several rows, all of one adapter."""

    @property
    def key(self) -> str:
        """Its adapter."""

    @property
    def began(self) -> float:
        """When it came, in seconds."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    def waits(self) -> bool:
        """False once nobody waits for it any more."""


C = TypeVar("C", bound=Waiting)


@dataclass
class _Entry(Generic[C]):
    due: float
    call: C
    done: int = 0


@dataclass
class Batcher(Generic[C]):
    """A call of n rows has its turn as if it had come n · `ROW_SECONDS` later than it did: equal calls in the order of their
    coming, small ones before large ones that came shortly before, and no call is put off for ever.

    A batch holds at most `tokens` tokens (but at least one row), `rows` rows and `adapters` adapters.
    """

    tokens: int
    rows: int
    adapters: int
    _entries: list[_Entry[C]] = field(default_factory=list)

    def add(self, call: C) -> None:
        insort(self._entries, _Entry(call.began + ROW_SECONDS * len(call.lengths), call), key=lambda entry: entry.due)

    def remove(self, call: C) -> None:
        self._entries = [entry for entry in self._entries if entry.call is not call]

    def __len__(self) -> int:
        """Rows that wait."""
        return sum(len(entry.call.lengths) - entry.done for entry in self._entries)

    def full(self) -> bool:
        """Another row would not go into the next batch."""
        rows = tokens = 0
        for entry in self._entries:
            rows, tokens = rows + len(entry.call.lengths) - entry.done, tokens + sum(entry.call.lengths[entry.done :])
            if rows >= self.rows or tokens >= self.tokens:
                return True
        return False

    def next(self) -> list[tuple[C, range]]:
        """Take a batch: calls, and which of their rows. Calls that nobody waits for any more are dropped."""
        batch: list[tuple[C, range]] = []
        left: list[_Entry[C]] = []
        keys: set[str] = set()
        tokens = rows = 0
        for entry in self._entries:
            if not entry.call.waits():
                continue
            first, lengths = entry.done, entry.call.lengths
            if entry.call.key in keys or len(keys) < self.adapters:
                while entry.done < len(lengths) and rows < self.rows and (not rows or tokens + lengths[entry.done] <= self.tokens):
                    tokens, rows, entry.done = tokens + lengths[entry.done], rows + 1, entry.done + 1
            if entry.done > first:
                keys.add(entry.call.key)
                batch.append((entry.call, range(first, entry.done)))
            if entry.done < len(lengths):
                left.append(entry)
        self._entries = left
        return batch
