"""Estimate how long the forward passes of a predictor take, from its latest passes."""

from collections import deque
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

_PASSES = 24
"""The number of latest passes that count, so that the estimate follows a machine that gets slower or faster."""
_LEAST_PASSES = 5
_LEAST_SLOPES = 10
_EFFICIENCY = 0.9
"""The part of the speed of an endless pass that a pass of `efficient_tokens` has."""
_UNKNOWN_PART = 8
"""`efficient_tokens` is one part of so many of a full batch while the overhead is unknown."""


@dataclass
class Pace:
    """The time of a forward pass as a line: seconds = overhead + tokens · seconds per token.

    The slope is the median of the slopes between any two of the latest passes (Theil 1950, Sen 1968), so that a few passes that
    were held up do not matter. `batch_tokens`: the most tokens of a pass.
    """

    batch_tokens: int
    _latest: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_PASSES))
    _usual_seconds: float = 0.0  # of the latest passes; 0.0 while they are too few
    _line: tuple[float, float] | None = None  # overhead in seconds, seconds per token

    def observe(self, tokens: int, seconds: float) -> None:
        """Take a forward pass into account. Other threads may read the estimates meanwhile."""
        self._latest.append((tokens, seconds))
        if len(self._latest) >= _LEAST_PASSES:
            self._usual_seconds = median(seconds for _, seconds in self._latest)
        least = max(tokens for tokens, _ in self._latest) / 10
        slopes = [(t2 - t1) / (n2 - n1) for (n1, t1), (n2, t2) in combinations(self._latest, 2) if abs(n2 - n1) >= max(1, least)]
        if len(slopes) < _LEAST_SLOPES or (each := median(slopes)) <= 0:
            self._line = None  # passes of one size say nothing about the overhead
        else:
            self._line = max(0.0, median(seconds - each * tokens for tokens, seconds in self._latest)), each

    def seconds(self, tokens: int) -> float:
        """Return how long `tokens` take, in full passes. Returns 0.0 while too few passes were observed.

        While the overhead is unknown, a full pass is assumed to take as long as the latest ones.
        """
        passes = -(-tokens // self.batch_tokens)
        if (line := self._line) is None:
            return passes * self._usual_seconds
        overhead, each = line
        return overhead * passes + each * tokens

    @property
    def efficient_tokens(self) -> int:
        """The size of a pass, in tokens, from which its overhead is a tenth of its time or less."""
        if (line := self._line) is None:
            return self.batch_tokens // _UNKNOWN_PART
        overhead, each = line
        return round(_EFFICIENCY / (1 - _EFFICIENCY) * overhead / each)
