"""The batcher: it chooses the rows of waiting calls that the next forward pass computes.

A call is a list of inputs for one adapter; a row is one encoded input. This module uses neither threads nor torch.

Tenants take turns by start-time fair queueing (Goyal, Vin and Cheng, "Start-time fair queuing", SIGCOMM 1996): each row costs its
number of tokens, each tenant has a virtual time at which its next row starts, and the tenant with the earliest one is next. It
treats tenants like deficit round robin, but a tenant that had no waiting rows is in the next batch, not at the end of a round.
"""

import heapq
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

ROW_SECONDS = 0.005
"""Seconds that each row of a call adds to the call's arrival time when the calls of one tenant are sorted (see `Batcher`)."""


class WaitingCall(Protocol):
    """A call that waits for its prediction. Each of its rows is one input, and all are for one adapter."""

    @property
    def key(self) -> str:
        """The key of the adapter that the call uses."""

    @property
    def tenant(self) -> str:
        """The tenant that the call belongs to."""

    @property
    def share(self) -> int:
        """The weight of the tenant's turns: with 2 it gets twice as many tokens as with 1."""

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

    @property
    def tokens(self) -> int:
        """The number of tokens of the rows that still wait."""
        return sum(self.call.lengths[self.done :])


@dataclass
class _Flow(Generic[C]):
    """The waiting calls of one tenant.

    `start` is the virtual time, in tokens, at which its next row starts. `share` is the weight of its turns. `tokens` is the number
    of tokens of its waiting rows.
    """

    start: float
    share: int
    entries: list[_Entry[C]] = field(default_factory=list)
    tokens: int = 0

    def drop_ended(self) -> None:
        pending = [entry for entry in self.entries if entry.call.is_pending()]
        if len(pending) < len(self.entries):
            self.entries, self.tokens = pending, sum(entry.tokens for entry in pending)


@dataclass
class _Batch(Generic[C]):
    """The rows that are chosen for one batch so far."""

    calls: dict[int, tuple[C, range]] = field(default_factory=dict)  # by id(call)
    keys: set[str] = field(default_factory=set)
    rows: int = 0
    tokens: int = 0

    def add(self, entry: _Entry[C]) -> int:
        """Add the next row of an entry. Return its number of tokens."""
        call, row = entry.call, entry.done
        _, before = self.calls.get(id(call), (call, range(row, row)))
        self.calls[id(call)] = call, range(before.start, row + 1)
        self.keys.add(call.key)
        entry.done += 1
        self.rows, self.tokens = self.rows + 1, self.tokens + call.lengths[row]
        return call.lengths[row]


@dataclass
class Batcher(Generic[C]):
    """A queue of calls from which `next` removes one batch of rows at a time.

    The calls of one tenant are sorted by arrival time + n · `ROW_SECONDS`, where n is the number of rows of the call. So its calls
    of equal size are served in order of arrival, a small call overtakes a large one that arrived shortly before it, and no call
    waits for ever.

    A batch has at most `tokens` tokens, `rows` rows and `adapters` different adapters. A row that alone exceeds `tokens` is a
    batch of its own.
    """

    tokens: int
    rows: int
    adapters: int
    _flows: dict[str, _Flow[C]] = field(default_factory=dict)
    _time: float = 0.0  # the queue's virtual time: the start of the latest row

    def add(self, call: C) -> None:
        flow = self._flows.setdefault(call.tenant, _Flow(self._time, call.share))
        flow.start, flow.share = max(flow.start, self._time), call.share
        entry = _Entry(call.began + ROW_SECONDS * len(call.lengths), call)
        insort(flow.entries, entry, key=lambda each: each.due)
        flow.tokens += entry.tokens

    def remove(self, call: C) -> None:
        if (flow := self._flows.get(call.tenant)) is not None:
            flow.entries = [entry for entry in flow.entries if entry.call is not call]
            flow.tokens = sum(entry.tokens for entry in flow.entries)

    def __len__(self) -> int:
        """Return the number of waiting rows."""
        return sum(len(entry.call.lengths) - entry.done for flow in self._flows.values() for entry in flow.entries)

    @property
    def waiting_tokens(self) -> int:
        return sum(flow.tokens for flow in self._flows.values())

    def backlog(self, tenant: str, share: int, more: int = 0) -> int:
        """Return the number of tokens to compute until all waiting rows of a tenant are done.

        `share`: the weight of the tenant's turns. `more`: tokens of further rows of the tenant. While other tenants have waiting
        rows too, they get as many tokens as this one, in proportion to their shares.
        """
        for flow in self._flows.values():
            flow.drop_ended()  # what nobody waits for any longer is not computed
        own = more + (self._flows[tenant].tokens if tenant in self._flows else 0)
        others = (min(own * flow.share / share, flow.tokens) for name, flow in self._flows.items() if name != tenant)
        return own + round(sum(others))

    def full(self) -> bool:
        """Return True if enough rows are waiting to fill a batch: `rows` rows or `tokens` tokens."""
        return len(self) >= self.rows or self.waiting_tokens >= self.tokens

    def next(self, least_tokens: int | None = None) -> list[tuple[C, range]]:
        """Remove the next batch from the queue and return it.

        A batch lists calls, each with the range of its rows that are in the batch. A call that does not fit stays in the queue with
        its remaining rows. Calls that are no longer pending are removed.

        A tenant with few waiting rows should not wait while the many rows of others are computed in the same batch. So a batch has
        at most as many tokens of each tenant as the tenant with the fewest has waiting, or more if the batch would otherwise have
        less than `least_tokens`: the number from which a batch is about as efficient as a full one. None: fill every batch.
        """
        for flow in self._flows.values():
            flow.drop_ended()
        waiting = {tenant: flow for tenant, flow in self._flows.items() if flow.entries}
        each = self.tokens
        if least_tokens is not None and waiting:
            each = max(min(flow.tokens for flow in waiting.values()), -(-least_tokens // len(waiting)))
        batch = self._fill(waiting, each)
        self._forget_idle_tenants()
        return list(batch.calls.values())

    def _forget_idle_tenants(self) -> None:
        """Drop the tenants that start at the queue's virtual time anyway.

        Once no rows wait, these are all: nobody pays later for what it got while nobody else waited.
        """
        if not any(flow.entries for flow in self._flows.values()):
            self._time = max((flow.start for flow in self._flows.values()), default=self._time)
        self._flows = {tenant: flow for tenant, flow in self._flows.items() if flow.entries or flow.start > self._time}

    def _fill(self, waiting: dict[str, _Flow[C]], each: int) -> _Batch[C]:
        """Take rows of tenants in turn, at most `each` tokens of each, until the batch is full or no row fits."""
        batch = _Batch[C]()
        left = dict.fromkeys(waiting, each)
        turns = [(flow.start, tenant) for tenant, flow in waiting.items()]
        heapq.heapify(turns)
        while turns and batch.rows < self.rows:
            _, tenant = heapq.heappop(turns)
            flow = waiting[tenant]
            entry = self._entry_that_fits(flow, batch, left[tenant])
            if entry is None:
                continue  # nothing more of this tenant in this batch
            tokens = batch.add(entry)
            if entry.done == len(entry.call.lengths):
                flow.entries.remove(entry)
            self._time = max(self._time, flow.start)
            flow.start, flow.tokens, left[tenant] = (
                flow.start + tokens / flow.share,
                flow.tokens - tokens,
                left[tenant] - tokens,
            )
            if flow.entries:
                heapq.heappush(turns, (flow.start, tenant))
        return batch

    def _entry_that_fits(self, flow: _Flow[C], batch: _Batch[C], left: int) -> _Entry[C] | None:
        """Return the tenant's first call whose next row may still go into the batch, or None."""
        for entry in flow.entries:
            if entry.call.key in batch.keys or len(batch.keys) < self.adapters:
                tokens = entry.call.lengths[entry.done]
                within = batch.tokens + tokens <= self.tokens and tokens <= left
                return entry if within or not batch.rows else None
        return None
