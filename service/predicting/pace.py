"""The pace of a predictor: how long its forward passes take, estimated from the passes so far."""

from dataclasses import dataclass

_DECAY = 0.97
"""What an earlier pass counts less with each later one, so that the estimate follows a machine that gets slower or faster."""
_LEAST_PASSES = 5
_EFFICIENCY = 0.8
"""The part of the speed of an endless pass that a pass of `efficient_tokens` has."""


@dataclass
class Pace:
    """The time of a forward pass as a line: seconds = overhead + tokens · seconds_per_token.

    The line is fitted by least squares. Each pass counts less than the one after it.
    """

    _passes: int = 0
    _weight: float = 0.0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _tokens_squared: float = 0.0
    _product: float = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Take a forward pass into account."""
        self._passes += 1
        self._weight = _DECAY * self._weight + 1
        self._tokens = _DECAY * self._tokens + tokens
        self._seconds = _DECAY * self._seconds + seconds
        self._tokens_squared = _DECAY * self._tokens_squared + tokens * tokens
        self._product = _DECAY * self._product + tokens * seconds

    def seconds(self, tokens: int, batch_tokens: int) -> float:
        """Return how long `tokens` take in passes of `batch_tokens`. 0.0 while too few passes were observed."""
        overhead, each = self._line()
        return overhead * -(-tokens // batch_tokens) + each * tokens

    @property
    def efficient_tokens(self) -> int | None:
        """The size of a pass, in tokens, from which its overhead is a fifth of its time or less.

        None while too few passes were observed.
        """
        overhead, each = self._line()
        return round(_EFFICIENCY / (1 - _EFFICIENCY) * overhead / each) if each else None

    def _line(self) -> tuple[float, float]:
        """Return (overhead in seconds, seconds per token); (0.0, 0.0) while too few passes were observed."""
        if self._passes < _LEAST_PASSES:
            return 0.0, 0.0
        mean_tokens, mean_seconds = self._tokens / self._weight, self._seconds / self._weight
        variance = self._tokens_squared / self._weight - mean_tokens**2
        covariance = self._product / self._weight - mean_tokens * mean_seconds
        each = covariance / variance if variance > 0.01 * mean_tokens**2 else 0.0
        overhead = mean_seconds - each * mean_tokens
        if each <= 0 or overhead < 0:  # passes of one size say nothing about the overhead
            return 0.0, mean_seconds / mean_tokens
        return overhead, each
