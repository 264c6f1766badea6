"""Answers rows with adapters: a base model, a bank and a batcher, owned by one thread, with the adapters that the bank has no room
for on a shelf beside it and all others in Redis.

    submit → tokenize, load (a few threads) → batcher → forward pass (the one thread) → answer
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from metatrain.artifacts.adapter import adapter_from_bytes, adapter_metadata
from metatrain.artifacts.initialization import Initialization
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from metatrain.serving.bank import Bank, Packed, pack
from service.errors import Overloaded
from service.predicting.batcher import Batcher
from service.predicting.shelf import Shelf
from service.settings import ServiceSettings
from worker.ledger.weights_cache import WeightStore

log = logging.getLogger(__name__)
_LOADERS = 8
_MB = 2**20
STAGES = ("tokenize", "load", "queue", "forward")


@dataclass(frozen=True)
class WeightsKey:
    """Whose weights are meant, and which: `fence` is where the store has them, `digest` what they must be."""

    tenant: str
    adapter_id: str
    fence: int
    digest: str

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.digest}"


@dataclass(frozen=True)
class Answer:
    """`outputs`: what the adapter's readout says of each input; `labels`: the adapter's, if it has any; `truncated`: which inputs
    were cut; seconds by stage."""

    labels: tuple[str, ...]
    outputs: list[Any]
    truncated: list[int]
    seconds: Mapping[str, float]


class Predictor(Protocol):
    """What the routes need; a predictor in a process of its own has the same face."""

    def submit(self, weights: WeightsKey, texts: Sequence[str]) -> "Future[Answer]":
        """Answer each input with an adapter. To cancel the future gives up its place.

        Raises Overloaded. The future raises WeightsMissing, WeightsCorrupt, ArtifactError for weights that do not load, and
        redis.RedisError.
        """
        ...

    def forget(self, tenant: str, digest: str) -> None:
        """Drop an adapter, wherever it is kept."""
        ...

    def alive(self) -> bool:
        """Whether calls are being answered at all."""
        ...

    def gauges(self) -> dict[str, float]:
        """What is kept and what waits now, by name."""
        ...

    def close(self) -> None:
        """Take no more calls."""
        ...


@dataclass(eq=False)
class _Call:
    weights: WeightsKey
    texts: Sequence[str]
    future: "Future[Answer]" = field(default_factory=Future)
    began: float = field(default_factory=time.perf_counter)
    rows: Sequence[Any] = ()
    lengths: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    adapter: Packed | None = None
    found: dict[int, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    queued: float = 0.0

    @property
    def key(self) -> str:
        return self.weights.key

    def waits(self) -> bool:
        return not self.future.done()

    def fail(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class InProcessPredictor:
    """Batches whatever calls are waiting, of any adapters of `initializations`. `share`: of BANK_MB and SHELF_MB."""

    def __init__(
        self,
        base: Base,
        initializations: dict[str, Initialization],
        store: WeightStore,
        settings: ServiceSettings,
        *,
        share: float = 1.0,
    ) -> None:
        self.base, self._store, self._settings = base, store, settings
        kinds = {init.delta: base.attach(init.delta) for init in initializations.values()}
        updates = {init.digest: init.base_update for init in initializations.values()}
        self._bank = Bank(base, list(kinds.values()), int(share * settings.bank_mb * _MB), updates)
        self._shelf: Shelf[Packed] = Shelf(int(share * settings.shelf_mb * _MB))
        self._known = {init.digest for init in initializations.values()}
        self._batcher: Batcher[_Call] = Batcher(settings.batch_tokens, settings.batch_rows, self._bank.slots)
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="load")  # a slow cache must not keep others from tokenizing
        self._changed = threading.Condition()  # guards what follows, and the batcher
        self._unanswered = self._coming = 0  # rows, and calls on their way to the batcher
        self._unanswered_of = Counter[str]()  # rows, by tenant
        self._forgotten: list[str] = []
        self._closing = False
        self._rows_a_second = 100.0
        self._thread = threading.Thread(target=self._serve, name="predictor", daemon=True)
        self._thread.start()

    def submit(self, weights: WeightsKey, texts: Sequence[str]) -> "Future[Answer]":
        call = _Call(weights, texts)
        with self._changed:
            self._check_room(weights.tenant, len(texts))
            self._unanswered += len(texts)
            self._unanswered_of[weights.tenant] += len(texts)
            self._coming += 1
        call.future.add_done_callback(lambda _: self._answered(weights.tenant, len(texts)))
        self._tokenizers.submit(self._prepare, call)
        return call.future

    def forget(self, tenant: str, digest: str) -> None:
        key = f"{tenant}/{digest}"
        self._shelf.drop(key)
        with self._changed:
            self._forgotten.append(key)
            self._changed.notify()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def gauges(self) -> dict[str, float]:
        return {
            "waiting_inputs": self._unanswered,
            "bank_adapters": len(self._bank),
            "bank_slots": self._bank.slots,
            "bank_bytes": self._bank.nbytes,
            "shelf_adapters": len(self._shelf),
            "shelf_bytes": self._shelf.nbytes,
        }

    def close(self) -> None:
        """Answer what is waiting, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._tokenizers.shutdown()
        self._loaders.shutdown()

    def _check_room(self, tenant: str, rows: int) -> None:
        """All of the queue is a tenant's that is alone in it, half of it one's beside whom others wait. Whoever has nothing in it
        may put one call there, however large."""
        most, all_of_them, own = self._settings.queue_rows, self._unanswered, self._unanswered_of[tenant]
        if all_of_them and all_of_them + rows > most:
            said = f"{all_of_them} inputs are waiting for a prediction, and QUEUE_ROWS is {most}"
            raise Overloaded(said, math.ceil(all_of_them / self._rows_a_second))
        if own and own < all_of_them and own + rows > most // 2:
            said = f"{own} inputs of this tenant are waiting for a prediction, beside others' half of QUEUE_ROWS, which is {most}"
            raise Overloaded(said, math.ceil(all_of_them / self._rows_a_second))

    def _answered(self, tenant: str, rows: int) -> None:
        with self._changed:
            self._unanswered -= rows
            self._unanswered_of[tenant] -= rows
            if not self._unanswered_of[tenant]:
                del self._unanswered_of[tenant]

    def _prepare(self, call: _Call) -> None:
        try:
            if not call.waits():
                raise CancelledError
            if not call.rows:
                call.rows = self.base.inputs.encode(call.texts)
                call.lengths = [len(row) for row in call.rows]
                call.truncated = [i for i, row in enumerate(call.rows) if row.truncated]
                call.seconds["tokenize"] = time.perf_counter() - call.began
            self._find(call)
        except Exception as error:  # whatever it is, its caller is told
            self._lost(call, error)

    def _find(self, call: _Call) -> None:
        """Have the adapter where the call can take it along, and then let the call wait for its batch."""
        began = time.perf_counter()
        if call.key in self._bank:
            self._queue(call)
            return

        def loaded(found: "Future[Packed]") -> None:
            call.seconds["load"] += time.perf_counter() - began
            if (error := found.exception()) is not None:
                self._lost(call, error)
            else:
                call.adapter = found.result()
                self._queue(call)

        self._shelf.get(call.key, lambda: self._load(call.weights), self._loaders.submit).add_done_callback(loaded)

    def _load(self, weights: WeightsKey) -> Packed:
        """Only adapters of initializations that are here: the bank was made for their deltas, and they were probed."""
        content = self._store.get(weights.tenant, weights.adapter_id, weights.fence, weights.digest)
        digest = adapter_metadata(content).initialization_digest
        if digest not in self._known:
            raise ArtifactError(f"its initialization, with digest {digest[:12]}…, is not one of this service")
        return pack(adapter_from_bytes(content, self.base), self.base)

    def _queue(self, call: _Call) -> None:
        with self._changed:
            self._coming -= 1
            call.queued = time.perf_counter()
            self._batcher.add(call)
            self._changed.notify()

    def _lost(self, call: _Call, error: BaseException) -> None:
        with self._changed:
            self._coming -= 1
            self._changed.notify()
        call.fail(error)

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            began = time.perf_counter()
            try:
                self._answer(batch, began)
            except Exception as error:  # the thread must outlive any one batch; every caller of it is told
                for call, _ in batch:
                    call.fail(error)
            rows, seconds = sum(len(r) for _, r in batch), time.perf_counter() - began
            if rows:
                self._rows_a_second += 0.1 * (rows / seconds - self._rows_a_second)

    def _next(self) -> list[tuple[_Call, range]] | None:
        """Wait for a batch; None at the end. One that is not full waits a little for calls that are known to be on their way."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: len(self._batcher) or self._forgotten or (self._closing and not self._coming))
                for key in self._forgotten:
                    self._shelf.drop(key)  # where it may have gone since
                    if key in self._bank:
                        self._bank.take(key)
                self._forgotten.clear()
                if len(self._batcher):
                    self._changed.wait_for(lambda: self._batcher.full() or not self._coming, self._settings.batch_wait_ms / 1000)
                    return self._batcher.next()
                if self._closing and not self._coming:
                    return None

    def _answer(self, batch: list[tuple[_Call, range]], began: float) -> None:
        """One forward pass. A call whose adapter cannot be made resident fails alone, or goes back for it."""
        keep = {call.key for call, _ in batch}
        ready: list[tuple[_Call, range]] = []
        for call, rows in batch:
            try:
                if call.key not in self._bank and call.adapter is None:  # it left the device since the call asked for it
                    self._send_back(call)
                    continue
                if call.adapter is not None:
                    for key, gone in self._bank.put(call.key, call.adapter, keep).items():
                        self._shelf.put(key, gone)
                ready.append((call, rows))
            except Exception as error:
                call.fail(error)
        keys = [call.key for call, rows in ready for _ in rows]
        found = iter(self._bank.answers(keys, [call.rows[row] for call, rows in ready for row in rows]))
        seconds = time.perf_counter() - began
        for call, rows in ready:
            if not call.found:
                call.seconds["queue"] = began - call.queued
            call.seconds["forward"] += seconds
            call.found.update({row: next(found) for row in rows})
            if len(call.found) == len(call.rows) and call.future.set_running_or_notify_cancel():
                in_order = [call.found[row] for row in range(len(call.rows))]
                call.future.set_result(Answer(self._bank.labels(call.key), in_order, call.truncated, call.seconds))

    def _send_back(self, call: _Call) -> None:
        with self._changed:
            self._batcher.remove(call)
            self._coming += 1
        call.found.clear()
        self._tokenizers.submit(self._prepare, call)
