"""The predictor: it computes predictions with one base model and many adapters.

Adapters are stored in three places: the bank (on the device), the shelf (in host memory) and the cache (in Redis). A call moves
through these stages:

    submit → tokenize and load (a few threads) → batcher → forward pass (one thread) → answer
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metatrain.artifacts.adapter import adapter_from_bytes, adapter_metadata
from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import DeltaKind
from metatrain.errors import NonFinite
from metatrain.models.base import Base
from metatrain.serving.bank import Bank, Packed, pack
from service.errors import Overloaded
from service.predicting.batcher import Batcher
from service.predicting.interface import BATCH_AGE, STAGES, Answer, WeightsKey
from service.predicting.pace import Pace
from service.predicting.progress import Progress, end_hung_process
from service.predicting.shelf import Shelf
from service.predicting.support import SupportedInitializations
from service.predicting.turn_executor import TurnExecutor
from service.settings import ServiceSettings
from worker.ledger.weights_cache import WeightStore

log = logging.getLogger(__name__)
_LOADERS = 8
_MB = 2**20
_MOST_BATCH_TOKENS = 4096


@dataclass(eq=False)
class _Call:
    weights: WeightsKey
    texts: Sequence[str]
    share: int
    future: "Future[Answer]" = field(default_factory=Future)
    began: float = field(default_factory=time.perf_counter)
    rows: Sequence[Any] = ()
    lengths: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    adapter: Packed | None = None
    outputs: dict[int, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    queued: float = 0.0

    @property
    def key(self) -> str:
        return self.weights.key

    @property
    def tenant(self) -> str:
        return self.weights.tenant

    def is_pending(self) -> bool:
        return not self.future.done()

    def fail(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class InProcessPredictor:
    """A predictor that runs in this process and batches the calls of different adapters.

    `initializations`: the loaded ones, by name. `stored`: returns the bytes of a stored initialization by its digest, None if it is
    not stored. They are needed for the first adapter of an initialization that is not loaded: its delta is then probed, and the
    bank gets room for it. `share`: the fraction of BANK_MB and SHELF_MB that the predictor may use, between 0 and 1.
    """

    def __init__(
        self,
        base: Base,
        initializations: dict[str, Initialization],
        store: WeightStore,
        settings: ServiceSettings,
        *,
        stored: Callable[[str], bytes | None] = lambda digest: None,
        share: float = 1.0,
    ) -> None:
        self.base, self._store, self._settings = base, store, settings
        kinds = {init.delta: base.attach(init.delta) for init in initializations.values()}
        updates = {init.digest: init.base_update for init in initializations.values()}
        self._bank = Bank(base, list(kinds.values()), int(share * settings.bank_mb * _MB), updates)
        self._shelf: Shelf[Packed] = Shelf(int(share * settings.shelf_mb * _MB))
        self._supported = SupportedInitializations(
            base,
            (init.digest for init in initializations.values()),
            stored,
            lambda *room: self._between_batches(partial(self._extend_bank, *room)),
        )
        batch_tokens = settings.batch_tokens or _default_batch_tokens(base.device)
        self._batcher: Batcher[_Call] = Batcher(batch_tokens, settings.batch_rows, self._bank.slots)
        self._pace = Pace(batch_tokens)
        self._tokenizers = TurnExecutor(2, "tokenize")
        self._loaders = TurnExecutor(_LOADERS, "load")  # separate threads, so that a slow cache does not delay tokenizing
        self._changed = threading.Condition()  # guards the batcher and the fields below
        self._unanswered_rows = 0
        self._unanswered_rows_of = Counter[str]()  # by tenant
        self._preparing = 0  # calls that are being tokenized or loaded and are not in the batcher yet
        self._commands: list[Callable[[], None]] = []  # for the predictor's thread
        self._closing = False
        self._progress = Progress()
        self._thread = threading.Thread(target=self._serve, name="predictor", daemon=True)
        self._thread.start()

    def submit(self, weights: WeightsKey, texts: Sequence[str], share: int = 1) -> "Future[Answer]":
        if not texts or share < 1:
            raise ValueError(f"expected at least one text and a share of at least 1, got {len(texts)} texts and {share}")
        call = _Call(weights, texts, share)
        with self._changed:
            self._check_room(weights.tenant, len(texts), share)
            self._check_in_time(weights.tenant, share)
            self._unanswered_rows += len(texts)
            self._unanswered_rows_of[weights.tenant] += len(texts)
            self._preparing += 1
        call.future.add_done_callback(lambda _: self._release_room(weights.tenant, len(texts)))
        self._tokenizers.submit(call.tenant, partial(self._prepare, call))
        return call.future

    def forget(self, tenant: str, digest: str) -> None:
        key = f"{tenant}/{digest}"
        self._shelf.drop(key)

        def drop() -> None:
            self._shelf.drop(key)  # since the call, the bank may have evicted the adapter to the shelf
            if key in self._bank:
                self._bank.take(key)

        self._command(drop)

    def alive(self) -> bool:
        return self._thread.is_alive() and self._progress.seconds() <= self._settings.predictor_hang_seconds

    def needs_restart(self) -> bool:
        return not self.alive()

    def gauges(self) -> dict[str, float]:
        return {
            "waiting_inputs": self._unanswered_rows,
            "bank_adapters": len(self._bank),
            "bank_slots": self._bank.slots,
            "bank_bytes": self._bank.nbytes,
            "shelf_adapters": len(self._shelf),
            "shelf_bytes": self._shelf.nbytes,
            BATCH_AGE: self._progress.seconds(),
        }

    def close(self) -> None:
        """Answer all waiting calls, then stop.

        Ends the process if the predictor hangs, because otherwise it would never end: if no batch ends for PREDICTOR_HANG_SECONDS,
        or if the predictor has not stopped so long after the deadlines of all calls.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        hang_seconds = self._settings.predictor_hang_seconds
        deadline = time.monotonic() + self._settings.predict_seconds + hang_seconds
        while self._thread.is_alive():
            if self._progress.seconds() > hang_seconds or time.monotonic() > deadline:
                end_hung_process()
            self._thread.join(0.5)
        self._tokenizers.shutdown()
        self._loaders.shutdown()

    def _check_room(self, tenant: str, rows: int, share: int) -> None:
        """Raise Overloaded if the queue has no room for a call with `rows` inputs.

        The queue holds QUEUE_ROWS inputs, but an empty queue accepts a call of any size, and a tenant with few waiting inputs finds
        room even if others have filled the queue: it may have its equal part. If inputs of `tenant` and of other tenants are
        waiting, `tenant` may use at most half of the queue.
        """
        most, waiting, waiting_of_tenant = self._settings.queue_rows, self._unanswered_rows, self._unanswered_rows_of[tenant]
        tenants = len(self._unanswered_rows_of) + (not waiting_of_tenant)
        if waiting and waiting + rows > most and waiting_of_tenant + rows > most / tenants:
            message = f"{waiting} inputs are waiting for a prediction, and QUEUE_ROWS is {most}"
        elif waiting_of_tenant and waiting_of_tenant < waiting and waiting_of_tenant + rows > most // 2:
            message = f"{waiting_of_tenant} inputs of this tenant are waiting for a prediction, and others are waiting too: "
            message += f"expected at most half of QUEUE_ROWS, which is {most}"
        else:
            return
        raise Overloaded(message, math.ceil(self._seconds_until_answered(tenant, share)))

    def _check_in_time(self, tenant: str, share: int, tokens: int = 0) -> None:
        """Raise Overloaded if a call of a tenant would be answered after PREDICT_SECONDS.

        `tokens`: the tokens of the call, 0 if they are not known yet. While nothing waits, a call of any size is accepted. What
        could not be answered in time is refused before it costs a forward pass; its client may try again.
        """
        seconds, most = self._seconds_until_answered(tenant, share, tokens), self._settings.predict_seconds
        if seconds > most and self._batcher.waiting_tokens:
            message = f"the answer would take about {seconds:.0f} s, and PREDICT_SECONDS is {most:g}; other inputs are waiting"
            raise Overloaded(message, math.ceil(seconds - most / 2))

    def _seconds_until_answered(self, tenant: str, share: int, more_tokens: int = 0) -> float:
        """Return the estimated time until all waiting rows of a tenant are answered, in seconds.

        `more_tokens`: the tokens of further rows of the tenant. Returns 0.0 while the pace is unknown.
        """
        return self._pace.seconds(self._batcher.backlog(tenant, share, more_tokens))

    def _release_room(self, tenant: str, rows: int) -> None:
        with self._changed:
            self._unanswered_rows -= rows
            self._unanswered_rows_of[tenant] -= rows
            if not self._unanswered_rows_of[tenant]:
                del self._unanswered_rows_of[tenant]

    def _prepare(self, call: _Call) -> None:
        try:
            if not call.is_pending():
                raise CancelledError
            if not call.rows:
                call.rows = self.base.inputs.encode(call.texts)
                call.lengths = [len(row) for row in call.rows]
                call.truncated = [i for i, row in enumerate(call.rows) if row.truncated]
                call.empty = [i for i, row in enumerate(call.rows) if self.base.inputs.is_empty(row)]
                call.seconds["tokenize"] = time.perf_counter() - call.began
                with self._changed:
                    self._check_in_time(call.tenant, call.share, sum(call.lengths))
            self._load_and_queue(call)
        except Exception as error:  # every error must reach the caller through its future
            self._fail_preparation(call, error)

    def _load_and_queue(self, call: _Call) -> None:
        """Load the call's adapter unless the bank has it, then add the call to the batcher."""
        began = time.perf_counter()
        if call.key in self._bank:
            self._queue(call)
            return

        def loaded(loading: "Future[Packed]") -> None:
            call.seconds["load"] += time.perf_counter() - began
            if (error := loading.exception()) is not None:
                self._fail_preparation(call, error)
            else:
                call.adapter = loading.result()
                self._queue(call)

        start = partial(self._loaders.submit, call.tenant)
        self._shelf.get(call.key, lambda: self._fetch(call.weights), start).add_done_callback(loaded)

    def _fetch(self, weights: WeightsKey) -> Packed:
        """Read an adapter from the cache and prepare it for the bank.

        Raises ArtifactError and UnsupportedDelta if the bank cannot support the initialization that the adapter was made from.
        """
        content = self._store.get(weights.tenant, weights.adapter_id, weights.fence, weights.digest)
        metadata = adapter_metadata(content)
        self._supported.require(metadata)
        return pack(adapter_from_bytes(content, self.base), self.base)

    def _extend_bank(self, kind: DeltaKind, digest: str, update: Mapping[str, Tensor]) -> None:
        for key, evicted in self._bank.support(kind, digest, update).items():
            self._shelf.put(key, evicted)
        with self._changed:
            self._batcher.adapters = self._bank.slots

    def _between_batches(self, action: Callable[[], None]) -> None:
        """Run an action on the predictor's thread, which alone may use the bank, and wait for its end.

        Raises the error of the action.
        """
        done: Future[None] = Future()

        def run() -> None:
            try:
                action()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._command(run)
        done.result()

    def _command(self, action: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(action)
            self._changed.notify()

    def _queue(self, call: _Call) -> None:
        with self._changed:
            self._preparing -= 1
            call.queued = time.perf_counter()
            self._batcher.add(call)
            self._progress.work_waits()
            self._changed.notify()

    def _fail_preparation(self, call: _Call, error: BaseException) -> None:
        with self._changed:
            self._preparing -= 1
            self._changed.notify()
        call.fail(error)

    def _serve(self) -> None:
        while (batch := self._wait_for_batch()) is not None:
            began = time.perf_counter()
            try:
                self._answer(batch, began)
            except Exception as error:  # the thread must survive a failed batch; the callers get the error
                for call, _ in batch:
                    call.fail(error)
            with self._changed:  # held by `_queue` too, so that a call that arrives now is seen
                self._progress.batch_ended(more=len(self._batcher) > 0)

    def _wait_for_batch(self) -> list[tuple[_Call, range]] | None:
        """Wait for the next batch and return it, or None once the predictor is closing and no calls are left.

        A batch that is not full waits up to BATCH_WAIT_MS for calls that are still being tokenized or loaded. Commands are run
        here, because only this thread may use the bank.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._batcher) or self._commands or (self._closing and not self._preparing))
                commands, self._commands = self._commands, []
                if not commands:
                    if not len(self._batcher):
                        return None
                    self._changed.wait_for(lambda: self._batcher.full() or not self._preparing, self._settings.batch_wait_ms / 1000)
                    return self._batcher.next(self._pace.efficient_tokens)
            for command in commands:  # without the lock, because the event loop waits for it in `submit`
                command()

    def _answer(self, batch: list[tuple[_Call, range]], began: float) -> None:
        """Compute a batch in one forward pass, and answer the calls whose rows are then complete.

        If an adapter cannot be put into the bank, only its own calls fail. If the bank evicted an adapter after its call was
        queued, the adapter is loaded again and the call goes back to the queue.
        """
        keep = {call.key for call, _ in batch}
        ready: list[tuple[_Call, range]] = []
        for call, rows in batch:
            try:
                if call.key not in self._bank and call.adapter is None:  # the bank evicted it after the call was queued
                    self._prepare_again(call)
                    continue
                if call.adapter is not None:
                    for key, evicted in self._bank.put(call.key, call.adapter, keep).items():
                        self._shelf.put(key, evicted)
                ready.append((call, rows))
            except Exception as error:
                call.fail(error)
        keys = [call.key for call, rows in ready for _ in rows]
        outputs = iter(self._bank.answers(keys, [call.rows[row] for call, rows in ready for row in rows]))
        seconds = time.perf_counter() - began
        if ready:
            self._pace.observe(sum(call.lengths[row] for call, rows in ready for row in rows), seconds)
        for call, rows in ready:
            if not call.outputs:
                call.seconds["queue"] = began - call.queued
            call.seconds["forward"] += seconds
            call.outputs.update({row: next(outputs) for row in rows})
            if (row := next((row for row in rows if call.outputs[row] is None), None)) is not None:
                call.fail(NonFinite(f"input {row}: its features are not finite in {self.base.precision}"))
                continue
            if len(call.outputs) == len(call.rows) and call.future.set_running_or_notify_cancel():
                in_order = [call.outputs[row] for row in range(len(call.rows))]
                call.future.set_result(Answer(self._bank.labels(call.key), in_order, call.truncated, call.seconds, call.empty))

    def _prepare_again(self, call: _Call) -> None:
        with self._changed:
            self._batcher.remove(call)
            self._preparing += 1
        call.outputs.clear()
        self._tokenizers.submit(call.tenant, partial(self._prepare, call))


def _default_batch_tokens(device: torch.device) -> int:
    """Return BATCH_TOKENS for a device if it is unset.

    On a CPU, larger batches are hardly more efficient, and a call that arrives during one waits longer.
    """
    return min(_MOST_BATCH_TOKENS, 512 * torch.get_num_threads()) if device.type == "cpu" else _MOST_BATCH_TOKENS
