"""Read data sets from the Hugging Face hub, or from local folders in its format.

Needs the package `datasets`.
"""

from typing import Any

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.table import by_class


def read_hub(name: str, *, split: str = "train", text: str = "text", label: str = "label") -> Dataset:
    """Read one split of the data set `name`, from the columns `text` and `label`.

    Labels that the data set stores as numbers are replaced by their names. Raises DataError if `datasets` is not installed, the
    data set or split cannot be loaded, a column is missing, or an example has no label.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hub:{name} needs the package datasets: pip install datasets") from error
    try:
        rows: Any = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets raises unrelated types for no network, an unknown name or split, and unreadable files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"hub:{name}, split {split!r}: {reason}") from error
    for column in (text, label):
        if column not in rows.column_names:
            raise DataError(f"hub:{name}: no column {column!r}, has {', '.join(rows.column_names)}")
    name_of = getattr(rows.features[label], "int2str", None)
    unlabelled = [value for value in rows[label] if value is None or (name_of and value < 0)]  # a missing ClassLabel is −1
    if unlabelled:
        raise DataError(f"hub:{name}, split {split!r}: {label} is missing for {len(unlabelled)} examples")
    labels = [name_of(value) if name_of else str(value) for value in rows[label]]
    return by_class(name.rstrip("/").split("/")[-1], f"hub:{name}", zip(range(len(labels)), rows[text], labels, strict=True))
