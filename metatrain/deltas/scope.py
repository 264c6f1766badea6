"""The delta of the current call, which the modules of a base model read from a `ContextVar`.

A forward hook on each adapted module reads its parameters from this variable, which is set only during one forward call. Nothing is
stored on the model, so the deltas of two calls on one model, in two threads or nested, cannot mix. The variable is set *inside* the
function that runs the base model. Gradient checkpointing repeats that function during the backward pass, possibly in another
thread, and so sets the variable again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from metatrain.deltas.groups import Groups, RowGroups
from metatrain.deltas.packing import Packing

Delta = Mapping[str, Tensor]
"""Leaf name → parameter with a leading axis of G groups."""


@dataclass(frozen=True)
class _Call:
    """The values that the hooks of a base model read during one call."""

    delta: Delta | None = None
    noise: Tensor | None = None
    packing: Packing | None = None
    groups: Groups | None = None


_NO_CALL = _Call()
_this_call: ContextVar[_Call] = ContextVar("this_call", default=_NO_CALL)


@contextmanager
def delta_scope(
    delta: Delta | None, noise: Tensor | None = None, packing: Packing | None = None, groups: Groups | None = None
) -> Iterator[None]:
    """Set the delta that the hooked modules apply within a `with` block, for the calling thread only.

    `delta`: None runs the bare base model. `noise` [B, L, D], if any, is added to the word embeddings. `packing`: where the rows of
    a packed call are in its sequence of tokens; None if the rows are padded to one length. `groups`: which tokens use which entry
    of the leading axis of the leaves; None for groups of equally many consecutive rows.
    """
    token = _this_call.set(_Call(delta, noise, packing, groups))
    try:
        yield
    finally:
        _this_call.reset(token)


def current_delta() -> Delta | None:
    """Return the delta of the current call, or None if the bare base model runs."""
    return _this_call.get().delta


def current_groups(count: int) -> Groups:
    """Return the groups of the current call, for leaves with `count` entries on the leading axis."""
    return _this_call.get().groups or RowGroups(count)


def current_noise() -> Tensor | None:
    """Return the noise [B, L, D] to add to the word embeddings in the current call, or None."""
    return _this_call.get().noise


def current_packing() -> Packing | None:
    """Return the places of the rows in the current call's sequence of tokens, or None if it is not packed."""
    return _this_call.get().packing
