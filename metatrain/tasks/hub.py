"""A data set of the Hugging Face hub by its name, or of a local folder in its format. Needs the package `datasets`."""

from typing import Any

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.table import by_class


def read_hub(name: str, *, split: str = "train", text: str = "text", label: str = "label") -> Dataset:
    """One split of the data set `name`, from the columns `text` and `label`; a label that the data set numbers gets its name.

    Raises DataError where `datasets` is not installed, the data set or split cannot be loaded, or a column is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hub:{name} needs the package datasets: pip install datasets") from error
    try:
        rows: Any = datasets.load_dataset(name, split=split)
    except Exception as error:  # its errors are of many kinds: no network, no such name, no such split, files it cannot read
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"hub:{name}, split {split!r}: {reason}") from error
    for column in (text, label):
        if column not in rows.column_names:
            raise DataError(f"hub:{name}: no column {column!r}, has {', '.join(rows.column_names)}")
    numbered = getattr(rows.features[label], "int2str", None)
    unknown = [value for value in rows[label] if numbered and (value is None or value < 0)]
    if unknown:
        raise DataError(f"hub:{name}, split {split!r}: {label} is not given for {len(unknown)} examples")
    labels = [numbered(value) if numbered else str(value) for value in rows[label]]
    return by_class(name.rstrip("/").split("/")[-1], f"hub:{name}", zip(range(len(labels)), rows[text], labels, strict=True))
