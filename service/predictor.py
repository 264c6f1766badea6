"""Answers rows with adapters: a base model, a bank and a small batcher, all owned by one thread."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from metatrain.artifact import Adapter, Initialization, adapter_from_bytes, adapter_metadata
from metatrain.bank import Bank, refuse_unserved
from metatrain.base.text import TextBase
from metatrain.errors import ArtifactError


class NotResident(Exception):
    """The adapter is not on the device, and the call did not bring its weights."""


class Predictor(Protocol):
    """What the routes need; a predictor in a process of its own has the same face."""

    def resident(self, key: str) -> bool:
        """Whether a call for `key` can do without the weights."""
        ...

    def submit(self, key: str, content: bytes | None, texts: Sequence[str]) -> "Future[Answer]":
        """Probabilities of each text under the adapter `key`, whose bytes are `content` (None where it is resident).

        The future raises NotResident where it no longer is, ArtifactError for bytes that do not load.
        """
        ...

    def forget(self, key: str) -> None:
        """Drop an adapter, if resident."""
        ...

    def alive(self) -> bool:
        """Whether calls are being answered at all."""
        ...


@dataclass(frozen=True)
class Answer:
    """`labels` in the order of each row's probabilities; `truncated`: which texts were cut."""

    labels: tuple[str, ...]
    probabilities: list[list[float]]
    truncated: list[int]


@dataclass
class _Call:
    key: str
    adapter: Adapter | None
    ids: list[list[int]]
    truncated: list[int]
    future: "Future[Answer]" = field(default_factory=Future)


class InProcessPredictor:
    """Batches whatever calls are waiting, of any adapters, up to `rows` rows a forward pass."""

    def __init__(self, base: TextBase, initializations: dict[str, Initialization], *, slots: int, rows: int) -> None:
        refuse_unserved(initializations.values())
        self.base = base
        kinds = {init.delta: base.attach(init.delta) for init in initializations.values()}
        self._bank = Bank(base, list(kinds.values()), slots)
        self._known = {init.digest for init in initializations.values()}
        self._most_rows, self._most_adapters = rows, slots
        self._calls: queue.SimpleQueue[_Call | str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="predictor", daemon=True)
        self._thread.start()

    def resident(self, key: str) -> bool:
        return key in self._bank

    def submit(self, key: str, content: bytes | None, texts: Sequence[str]) -> "Future[Answer]":
        adapter = self._load(content) if content is not None else None
        ids, cut = self.base.encode(texts)
        call = _Call(key, adapter, ids, [i for i, was_cut in enumerate(cut) if was_cut])
        self._calls.put(call)
        return call.future

    def _load(self, content: bytes) -> Adapter:
        """Only adapters of initializations that are here: the bank was made for their deltas, and they were probed."""
        digest = adapter_metadata(content).initialization_digest
        if digest not in self._known:
            raise ArtifactError(f"its initialization, with digest {digest[:12]}…, is not one of this service")
        return adapter_from_bytes(content, self.base)

    def forget(self, key: str) -> None:
        self._calls.put(key)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer what is waiting, then stop."""
        self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            if isinstance(item, str):
                self._bank.drop(item)
                continue
            waiting, rows = [item], len(item.ids)
            while rows < self._most_rows and len(waiting) < self._most_adapters and not self._calls.empty():
                following = self._calls.get()
                if not isinstance(following, _Call):
                    self._calls.put(following)
                    break
                waiting.append(following)
                rows += len(following.ids)
            self._answer(waiting)

    def _answer(self, calls: list[_Call]) -> None:
        """One or more forward passes for `calls`. An adapter that cannot be made resident fails its own call alone."""
        ready: list[_Call] = []
        keep = [call.key for call in calls]
        for call in calls:
            if not call.future.set_running_or_notify_cancel():
                continue
            try:
                if call.adapter is not None:
                    self._bank.put(call.key, call.adapter, keep)
                if call.key not in self._bank:
                    raise NotResident(call.key)
                ready.append(call)
            except Exception as error:  # whatever it is, its caller is told and the thread lives on
                call.future.set_exception(error)
        keys = [call.key for call in ready for _ in call.ids]
        ids = [row for call in ready for row in call.ids]
        try:
            rows: list[list[float]] = []
            for start in range(0, len(ids), self._most_rows):
                stop = start + self._most_rows
                rows += self._bank.probabilities(keys[start:stop], ids[start:stop])
        except Exception as error:  # the thread must outlive any one batch; every caller of it is told
            for call in ready:
                call.future.set_exception(error)
            return
        taken = iter(rows)
        for call in ready:
            own = [next(taken) for _ in call.ids]
            call.future.set_result(Answer(self._bank.labels(call.key), own, call.truncated))
