"""The shelf, a cache in main memory of adapters that are not on the device.

The tests cover eviction by size, concurrent loads of one key, failed loads and loads dropped midway.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from service.predicting.shelf import Shelf


@dataclass(frozen=True)
class Value:
    name: str
    nbytes: int


def run_here(run: Callable[[], None]) -> None:
    run()


def must_not_load() -> Value:
    raise AssertionError("expected the value to be on the shelf, got a call of `load`")


def test_the_least_recently_used_value_is_evicted() -> None:
    shelf: Shelf[Value] = Shelf(100)
    for name in "abc":
        shelf.put(name, Value(name, 30))
    assert shelf.get("a", must_not_load, run_here).result().name == "a"
    shelf.put("d", Value("d", 40))
    assert (len(shelf), shelf.nbytes) == (3, 100)
    assert shelf.get("b", lambda: Value("again", 30), run_here).result().name == "again"  # evicts c
    assert shelf.get("a", must_not_load, run_here).result().name == "a"
    assert shelf.get("d", must_not_load, run_here).result().name == "d"
    before = len(shelf), shelf.nbytes
    shelf.put("huge", Value("huge", 101))
    assert (len(shelf), shelf.nbytes) == before  # it cannot be stored, so nothing makes room for it
    shelf.put("d", Value("d", 101))
    assert len(shelf) == before[0] - 1  # but the earlier value of its key is gone
    shelf.put("whole", Value("whole", 100))
    assert (len(shelf), shelf.nbytes) == (1, 100)
    shelf.drop("whole")
    shelf.put("x", Value("x", 10))
    shelf.put("x", Value("x", 20))
    assert (len(shelf), shelf.nbytes) == (1, 20)


def test_concurrent_calls_share_one_load() -> None:
    shelf: Shelf[Value] = Shelf(100)
    loads, go = [], threading.Event()

    def load() -> Value:
        loads.append(1)
        assert go.wait(10)
        return Value("a", 10)

    with ThreadPoolExecutor(8) as pool:
        futures = [shelf.get("a", load, pool.submit) for _ in range(20)]
        go.set()
        assert {future.result(10).name for future in futures} == {"a"}
    assert len(loads) == 1


def test_a_failed_load_raises_and_the_next_call_loads_again() -> None:
    shelf: Shelf[Value] = Shelf(100)

    def fails() -> Value:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        shelf.get("a", fails, run_here).result()
    assert shelf.get("a", lambda: Value("a", 10), run_here).result().name == "a"


def test_a_value_dropped_during_its_load_is_not_stored() -> None:
    shelf: Shelf[Value] = Shelf(100)

    def load() -> Value:
        shelf.drop("a")
        return Value("a", 10)

    assert shelf.get("a", load, run_here).result().name == "a"
    assert len(shelf) == 0
