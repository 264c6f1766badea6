"""Read data sets from the Hugging Face hub, or from local folders in its format.

Needs the package `datasets`.
"""

from typing import Any

from quickstudy.tables import label_problem, text_problem

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.table import by_class


def read_hub(name: str, *, split: str = "train", text: str = "text", label: str = "label") -> Dataset:
    """Read one split of the data set `name`, from the columns `text` and `label`.

    Labels that the data set stores as numbers are replaced by their names. Raises DataError if `datasets` is not installed, the
    data set or split cannot be loaded, a column is missing, or an example has no text or label.
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
    examples = []
    for row, (text_value, label_value) in enumerate(zip(rows[text], rows[label], strict=True)):
        # A column of whole numbers is one of classes: unlike a file's, its type was declared.
        as_text = name_of(label_value) if name_of else str(label_value) if type(label_value) is int else label_value
        if (problem := text_problem(text_value, text) or label_problem(as_text, label)) is not None:
            raise DataError(f"hub:{name}, split {split!r}, row {row}: {problem}")
        examples.append((row, text_value, as_text))
    return by_class(name.rstrip("/").split("/")[-1], f"hub:{name}", examples)
