"""Adapters that have left the device, or not reached it yet, in this process's memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


V = TypeVar("V", bound=Sized)


class Shelf(Generic[V]):
    """Least recently used first, `most_bytes` in all. Safe to use from any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[str, V] = OrderedDict()
        self._loading: dict[str, Future[V]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: str, value: V) -> None:
        """Keep a value, and let the least recently used go for it; one that is larger than the whole shelf is not kept."""
        with self._lock:
            self._drop(key)
            self._kept[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._most:
                self._drop(next(iter(self._kept)))

    def drop(self, key: str) -> None:
        with self._lock:
            self._drop(key)
            self._loading.pop(key, None)  # what is being loaded is handed to those that wait, and not kept

    def _drop(self, key: str) -> None:
        value = self._kept.pop(key, None)
        if value is not None:
            self._bytes -= value.nbytes

    def get(self, key: str, load: Callable[[], V], start: Callable[[Callable[[], None]], object]) -> "Future[V]":
        """The value, which `load` makes where it is not kept: once, however many ask meanwhile. `start` runs it elsewhere."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                found: Future[V] = Future()
                found.set_result(self._kept[key])
                return found
            if key in self._loading:
                return self._loading[key]
            loading: Future[V] = Future()
            self._loading[key] = loading

        def run() -> None:
            try:
                value = load()
            except BaseException as error:
                self._loaded(key, loading)
                loading.set_exception(error)
                return
            if self._loaded(key, loading):
                self.put(key, value)
            loading.set_result(value)

        start(run)
        return loading

    def _loaded(self, key: str, loading: "Future[V]") -> bool:
        """Whether it is still wanted on the shelf."""
        with self._lock:
            wanted = self._loading.get(key) is loading
            if wanted:
                del self._loading[key]
            return wanted
