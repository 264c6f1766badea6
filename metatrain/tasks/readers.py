"""Readers of the data sources that recipes name. `READERS` has one line for each place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from metatrain.tasks.episodes import Dataset
from metatrain.tasks.hub import read_hub
from metatrain.tasks.table import STARTER, read_table

_HUB = "hub:"


class Columns(BaseModel):
    """The names of the columns of texts and labels, and of the split of a Hugging Face data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = "text"
    label: str = "label"
    split: str = "train"


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of source.

    `accepts`: a function that returns True for the source names that this reader can read. `read`: a function from (source name,
    data folder, columns) to the examples.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str, Path, Columns], Dataset]


def _starter(name: str, data: Path, columns: Columns) -> Dataset:
    return read_table(STARTER)


def _hub(name: str, data: Path, columns: Columns) -> Dataset:
    return read_hub(name.removeprefix(_HUB), split=columns.split, text=columns.text, label=columns.label)


def _table(name: str, data: Path, columns: Columns) -> Dataset:
    return read_table(data / name, text=columns.text, label=columns.label)


READERS = (
    Reader(lambda name: name == "starter", _starter),
    Reader(lambda name: name.startswith(_HUB), _hub),
    Reader(lambda name: True, _table),
)
"""All readers. The first one that accepts a source name reads it."""


def read_source(name: str, data: Path, columns: Columns) -> Dataset:
    """Read all examples of the source `name`: a path under the folder `data`, `starter` or `hub:NAME`.

    Raises DataError if the source cannot be read.
    """
    return next(reader for reader in READERS if reader.accepts(name)).read(name, data, columns)
