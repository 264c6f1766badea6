"""The shelf: a cache, in host memory, of adapters that are not on the device at the moment."""

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
    """A thread-safe cache of at most `most_bytes` bytes that evicts the least recently used values first."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._values: OrderedDict[str, V] = OrderedDict()
        self._loading: dict[str, Future[V]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: str, value: V) -> None:
        """Store a value, then evict the least recently used values until the shelf is within its limit.

        A value that is larger than the limit is not stored, and evicts nothing but an earlier value of its key.
        """
        with self._lock:
            self._drop(key)
            if value.nbytes > self._most:
                return
            self._values[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._most:
                self._drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        with self._lock:
            self._drop(key)
            self._loading.pop(key, None)  # a running load still returns its value to its callers, but does not store it

    def _drop(self, key: str) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._bytes -= value.nbytes

    def get(self, key: str, load: Callable[[], V], start: Callable[[Callable[[], None]], object]) -> "Future[V]":
        """Return a future of the value for `key`. If the shelf does not have the value, load and store it.

        `load` returns the value. `start` is called with a function that runs `load`, and must call that function, usually in
        another thread; a thread pool's `submit` can be used. Calls for a key that is already loading share that load.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                stored: Future[V] = Future()
                stored.set_result(self._values[key])
                return stored
            if key in self._loading:
                return self._loading[key]
            loading: Future[V] = Future()
            self._loading[key] = loading

        def run() -> None:
            try:
                value = load()
            except BaseException as error:
                self._finish_loading(key, loading)
                loading.set_exception(error)
                return
            if self._finish_loading(key, loading):
                self.put(key, value)
            loading.set_result(value)

        start(run)
        return loading

    def _finish_loading(self, key: str, loading: "Future[V]") -> bool:
        """Mark a load as finished. Return True unless `key` was dropped meanwhile.

        The caller stores the loaded value only if the result is True.
        """
        with self._lock:
            current = self._loading.get(key) is loading
            if current:
                del self._loading[key]
            return current
