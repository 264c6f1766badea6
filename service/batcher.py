"""Which rows of which waiting calls go into the next forward pass. No threads, no torch."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A call of several rows, all of one adapter."""

    @property
    def key(self) -> str:
        """Its adapter."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    def waits(self) -> bool:
        """False once nobody waits for it any more."""


C = TypeVar("C", bound=Waiting)


@dataclass
class Batcher(Generic[C]):
    """Calls in the order of their coming. A batch holds at most `tokens` tokens (but at least one row), `rows` rows and `adapters`
    adapters. Every call that waits gets its share of a batch before any gets more, so a large call delays others by a batch, not by
    all of its rows."""

    tokens: int
    rows: int
    adapters: int
    _calls: deque[tuple[C, int]] = field(default_factory=deque)

    def add(self, call: C) -> None:
        self._calls.append((call, 0))

    def remove(self, call: C) -> None:
        self._calls = deque((other, done) for other, done in self._calls if other is not call)

    def __len__(self) -> int:
        """Rows that wait."""
        return sum(len(call.lengths) - done for call, done in self._calls)

    def full(self) -> bool:
        """A batch would leave something behind."""
        lengths = [length for call, done in self._calls for length in call.lengths[done:]]
        return len(lengths) >= self.rows or sum(lengths) >= self.tokens

    def next(self) -> list[tuple[C, range]]:
        """Take a batch: calls, and which of their rows. Calls that nobody waits for any more are dropped."""
        calls = [(call, done) for call, done in self._calls if call.waits()]
        taken = [0] * len(calls)
        keys: set[str] = set()
        tokens = rows = 0
        share = max(1, self.rows // max(1, len(calls)))
        for most in (share, self.rows):
            for i, (call, done) in enumerate(calls):
                if call.key not in keys and len(keys) == self.adapters:
                    continue
                while taken[i] < most and done + taken[i] < len(call.lengths):
                    length = call.lengths[done + taken[i]]
                    if rows == self.rows or (rows and tokens + length > self.tokens):
                        break
                    taken[i], tokens, rows = taken[i] + 1, tokens + length, rows + 1
                    keys.add(call.key)
        self._calls = deque((c, done + n) for (c, done), n in zip(calls, taken, strict=True) if done + n < len(c.lengths))
        return [(c, range(done, done + n)) for (c, done), n in zip(calls, taken, strict=True) if n]
