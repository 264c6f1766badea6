"""`make test` starts the slowest files first."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.order import SLOWEST, slowest_first

ROOT = Path(__file__).resolve().parents[1]


def test_the_slowest_files_exist() -> None:
    assert len(set(SLOWEST)) == len(SLOWEST) and all((ROOT / file).is_file() for file in SLOWEST)


def test_files_stay_whole_and_their_tests_in_order() -> None:
    names = ["a.py::1", "b.py::1", f"{SLOWEST[1]}::1", "b.py::2", f"{SLOWEST[0]}::2", f"{SLOWEST[0]}::1", "c.py::1"]
    items: Any = [SimpleNamespace(nodeid=name) for name in names]
    assert [item.nodeid for item in slowest_first(items)] == [
        f"{SLOWEST[0]}::2",
        f"{SLOWEST[0]}::1",
        f"{SLOWEST[1]}::1",
        "b.py::1",
        "b.py::2",
        "a.py::1",
        "c.py::1",
    ]
