"""The shelf: adapters in host memory that are not on the device, evicted from it or not there yet."""

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
        """Store a value and evict the least recently used ones.

        A value larger than the whole shelf is not stored, and then the shelf is empty."""
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._most:
                self._drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        with self._lock:
            self._drop(key)
            self._loading.pop(key, None)  # a value that is still loading goes to its callers and is not stored

    def _drop(self, key: str) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._bytes -= value.nbytes

    def get(self, key: str, load: Callable[[], V], start: Callable[[Callable[[], None]], object]) -> "Future[V]":
        """Return a future of the value; if the shelf does not have it, `load` makes it and it is stored.

        Calls for the same key during a load share that load. `start` is called with the function that runs it, for example a
        thread pool's `submit`.
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
        """Return True if the value should be stored: it was not dropped during the load."""
        with self._lock:
            current = self._loading.get(key) is loading
            if current:
                del self._loading[key]
            return current
