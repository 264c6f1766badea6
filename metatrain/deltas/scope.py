"""The delta of the current call, which the modules of a base model read from a `ContextVar`.

A forward hook on each adapted module reads its parameters from this variable, which is set only during one forward call. Nothing is
stored on the model, so the deltas of two calls on one model, in two threads or nested, cannot mix. The variable is set *inside* the
function that runs the base model. Gradient checkpointing repeats that function during the backward pass, possibly in another
thread, and so sets the variable again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Delta = Mapping[str, Tensor]
"""Leaf name → parameter with a leading axis of G groups. Rows [g·B/G, (g+1)·B/G) of a batch of B rows use group g."""

_delta_of_this_call: ContextVar[Delta | None] = ContextVar("delta_of_this_call", default=None)
_noise_of_this_call: ContextVar[Tensor | None] = ContextVar("noise_of_this_call", default=None)


@contextmanager
def delta_scope(delta: Delta | None, noise: Tensor | None = None) -> Iterator[None]:
    """Set the delta that the hooked modules apply within a `with` block, for the calling thread only.

    `delta`: None runs the bare base model. `noise` [B, L, D], if any, is added to the word embeddings.
    """
    delta_token, noise_token = _delta_of_this_call.set(delta), _noise_of_this_call.set(noise)
    try:
        yield
    finally:
        _delta_of_this_call.reset(delta_token)
        _noise_of_this_call.reset(noise_token)


def current_delta() -> Delta | None:
    """Return the delta of the current call, or None if the bare base model runs."""
    return _delta_of_this_call.get()


def current_noise() -> Tensor | None:
    """Return the noise [B, L, D] to add to the word embeddings in the current call, or None."""
    return _noise_of_this_call.get()
