import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from service.predicting.shelf import Shelf


@dataclass(frozen=True)
class Thing:
    name: str
    nbytes: int


def at_once(run: Callable[[], None]) -> None:
    run()


def never() -> Thing:
    raise AssertionError("it is there")


def test_the_least_recently_used_goes_by_bytes() -> None:
    shelf: Shelf[Thing] = Shelf(100)
    for name in "abc":
        shelf.put(name, Thing(name, 30))
    assert shelf.get("a", never, at_once).result().name == "a"
    shelf.put("d", Thing("d", 40))
    assert (len(shelf), shelf.nbytes) == (3, 100)
    assert shelf.get("b", lambda: Thing("again", 30), at_once).result().name == "again"  # which lets c go
    assert shelf.get("a", never, at_once).result().name == "a"
    assert shelf.get("d", never, at_once).result().name == "d"
    shelf.put("huge", Thing("huge", 101))
    assert shelf.nbytes == len(shelf) == 0
    shelf.put("x", Thing("x", 10))
    shelf.put("x", Thing("x", 20))
    assert (len(shelf), shelf.nbytes) == (1, 20)


def test_one_load_however_many_ask() -> None:
    shelf: Shelf[Thing] = Shelf(100)
    loads, go = [], threading.Event()

    def load() -> Thing:
        loads.append(1)
        assert go.wait(10)
        return Thing("a", 10)

    with ThreadPoolExecutor(8) as pool:
        asked = [shelf.get("a", load, pool.submit) for _ in range(20)]
        go.set()
        assert {future.result(10).name for future in asked} == {"a"}
    assert len(loads) == 1


def test_a_failed_load_is_told_to_all_and_tried_again_by_the_next() -> None:
    shelf: Shelf[Thing] = Shelf(100)

    def fails() -> Thing:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        shelf.get("a", fails, at_once).result()
    assert shelf.get("a", lambda: Thing("a", 10), at_once).result().name == "a"


def test_what_is_dropped_while_it_is_loaded_is_not_kept() -> None:
    shelf: Shelf[Thing] = Shelf(100)

    def load() -> Thing:
        shelf.drop("a")
        return Thing("a", 10)

    assert shelf.get("a", load, at_once).result().name == "a"
    assert len(shelf) == 0
