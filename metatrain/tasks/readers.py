"""Labelled examples by the name that a recipe gives them: one line in the registry for each place or format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from metatrain.tasks.episodes import Dataset
from metatrain.tasks.hub import read_hub
from metatrain.tasks.jsonl import STARTER, read_jsonl
from metatrain.tasks.table import read_table

_HUB = "hub:"


class Columns(BaseModel):
    """The columns that hold the examples of a table, and the split of a data set of the hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = "text"
    label: str = "label"
    split: str = "train"


@dataclass(frozen=True)
class Reader:
    """`accepts`: the source names that it reads. `read`: a source name, the data folder and the columns → its examples."""

    accepts: Callable[[str], bool]
    read: Callable[[str, Path, Columns], Dataset]


def _starter(name: str, data: Path, columns: Columns) -> Dataset:
    return read_jsonl(STARTER)


def _hub(name: str, data: Path, columns: Columns) -> Dataset:
    return read_hub(name.removeprefix(_HUB), split=columns.split, text=columns.text, label=columns.label)


def _table(name: str, data: Path, columns: Columns) -> Dataset:
    return read_table(data / name, text=columns.text, label=columns.label)


def _jsonl(name: str, data: Path, columns: Columns) -> Dataset:
    return read_jsonl(data / name)


READERS = (
    Reader(lambda name: name == "starter", _starter),
    Reader(lambda name: name.startswith(_HUB), _hub),
    Reader(lambda name: bool({".csv", ".tsv"} & set(Path(name).suffixes)), _table),
    Reader(lambda name: True, _jsonl),
)
"""The first that accepts a name reads it."""


def read_source(name: str, data: Path, columns: Columns) -> Dataset:
    """Read all examples of a source, a path under the folder `data` or a name. Raises DataError."""
    return next(reader for reader in READERS if reader.accepts(name)).read(name, data, columns)
