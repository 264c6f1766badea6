"""How a delta reaches the modules of a base model: with the call.

A forward hook on each adapted module looks its parameters up in a `ContextVar` that is set only for the duration of one
forward call. Nothing is stored on the model, so two calls on one model, in two threads or nested, cannot mix; and because
the variable is set *inside* the function that runs the base model, a checkpointed forward that autograd runs again (in
whatever thread) sets it again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Delta = Mapping[str, Tensor]
"""Leaf name → parameter with a leading axis of G groups; rows [g·B/G, (g+1)·B/G) of a batch of B rows use group g."""

_delta_of_this_call: ContextVar[Delta | None] = ContextVar("delta_of_this_call", default=None)
_noise_of_this_call: ContextVar[Tensor | None] = ContextVar("noise_of_this_call", default=None)


@contextmanager
def delta_scope(delta: Delta | None, noise: Tensor | None = None) -> Iterator[None]:
    """Within this block, hooked modules of the calling thread see `delta`, and the word embeddings get `noise` [B, L, D] added."""
    delta_token, noise_token = _delta_of_this_call.set(delta), _noise_of_this_call.set(noise)
    try:
        yield
    finally:
        _delta_of_this_call.reset(delta_token)
        _noise_of_this_call.reset(noise_token)


def current_delta() -> Delta | None:
    """Return the delta of the call in progress, or None where the bare base model is meant."""
    return _delta_of_this_call.get()


def current_noise() -> Tensor | None:
    """Return what is added to the word embeddings of the call in progress, [B, L, D], if anything."""
    return _noise_of_this_call.get()
