"""The batcher: it chooses the rows of waiting calls that the next forward pass computes.

A call is a list of inputs for one adapter; a row is one tokenized input. This module uses neither threads nor torch.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

ROW_SECONDS = 0.005
"""Seconds that each row of a call adds to the call's arrival time when calls are sorted (see `Batcher`)."""


class WaitingCall(Protocol):
    """A call that waits for its prediction. Each of its rows is one input, and all are for one adapter."""

    @property
    def key(self) -> str:
        """The key of the adapter that the call uses."""

    @property
    def began(self) -> float:
        """The time at which the call arrived, in seconds."""

    @property
    def lengths(self) -> Sequence[int]:
        """The number of tokens of each row."""

    def is_pending(self) -> bool:
        """Return False once the call is answered, failed or cancelled."""


C = TypeVar("C", bound=WaitingCall)


@dataclass
class _Entry(Generic[C]):
    due: float
    call: C
    done: int = 0


@dataclass
class Batcher(Generic[C]):
    """A queue of calls from which `next` removes one batch of rows at a time.

    Calls are sorted by arrival time + n · `ROW_SECONDS`, where n is the number of rows of the call. So calls of equal size are
    served in order of arrival, a small call overtakes a large one that arrived shortly before it, and no call waits for ever.

    A batch has at most `tokens` tokens, `rows` rows and `adapters` different adapters. A row that alone exceeds `tokens` is a
    batch of its own.
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
        """Return the number of waiting rows."""
        return sum(len(entry.call.lengths) - entry.done for entry in self._entries)

    def full(self) -> bool:
        """Return True if enough rows are waiting to fill a batch: `rows` rows or `tokens` tokens."""
        rows = tokens = 0
        for entry in self._entries:
            rows, tokens = rows + len(entry.call.lengths) - entry.done, tokens + sum(entry.call.lengths[entry.done :])
            if rows >= self.rows or tokens >= self.tokens:
                return True
        return False

    def next(self) -> list[tuple[C, range]]:
        """Remove the next batch from the queue and return it.

        A batch lists calls, each with the range of its rows that are in the batch. A call that does not fit stays in the queue with
        its remaining rows. Calls that are no longer pending are removed.
        """
        batch: list[tuple[C, range]] = []
        left: list[_Entry[C]] = []
        keys: set[str] = set()
        tokens = rows = 0
        for entry in self._entries:
            if not entry.call.is_pending():
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
