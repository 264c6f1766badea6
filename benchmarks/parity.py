"""Features against the vectors of sentence-transformers, over a matrix of saved folders.

    make bench-parity

Each folder is made from a tiny model with random weights, loaded by both, and compared on the same texts. Vectors are compared at
length 1, because a readout sees features of length 1 (docs/decisions/0019). The table has the largest difference for each value of
each dimension of the matrix. The last rows are folders that are refused, with the reason.
"""

import logging
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from benchmarks.record import Row, write
from benchmarks.saved_folders import Saved, matrix, refused, save
from metatrain.errors import BaseModelError
from metatrain.models.loading import describe_base, load_base

TOLERANCE = 1e-5
TEXTS = (
    "order pizza",
    "Order PIZZA Now please",
    "i want to close my account now please " * 9,
    "zebra",
    "a",
    "refund the ticket, the flight is late",
    "to log in to my account",
)


def difference(folder: Path) -> float:
    """Return the largest difference between our features and sentence-transformers' vectors.

    Both have length 1. Raises BaseModelError if the folder is refused, and AssertionError if the description of the base model,
    which is made without weights, differs from it.
    """
    base = load_base(str(folder), precision="float32", device=torch.device("cpu"))
    described = describe_base(str(folder), precision="float32", device=torch.device("cpu"))
    ours = base.features(None, base.collate(base.inputs.encode(TEXTS)))
    assert (described.digest, described.feature_size) == (base.digest, base.feature_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sentence-transformers warns of old keys
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        theirs: Any = model.encode(list(TEXTS), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
    assert ours.shape == theirs.shape == (len(TEXTS), base.feature_size)
    return float((ours - theirs).abs().max())


def main() -> None:
    """Run the whole matrix, print the tables, and write the results. Exits with 1 if a folder differs."""
    logging.disable(logging.WARNING)
    cast(Any, transformers_logging).disable_progress_bar()
    found: dict[Saved, float] = {}
    with tempfile.TemporaryDirectory() as place:
        parts = Path(place) / "parts"
        for saved in tqdm(list(matrix()), unit="folder"):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                found[saved] = difference(save(saved, parts, Path(folder) / "saved"))
        reasons = {name: _reason(make(parts, Path(place) / f"refused-{i}")) for i, (name, make) in enumerate(refused().items())}
    rows = _rows(found)
    print(_table(rows, reasons))
    write("parity", rows, tolerance=TOLERANCE, folders=len(found), refused=reasons)
    sys.exit(any(largest > TOLERANCE for largest in found.values()))


def _rows(found: dict[Saved, float]) -> list[Row]:
    """Return the number of folders and the largest difference for each value of each dimension."""
    by_value: dict[str, list[float]] = defaultdict(list)
    for saved, gap in found.items():
        for dimension, value in saved.values().items():
            by_value[f"{dimension}: {value}"].append(gap)
    metrics: list[tuple[str, Callable[[list[float]], float]]] = [("folders", len), ("largest difference", max)]
    return [Row(case, "ours", name, measure(gaps), "1") for case, gaps in by_value.items() for name, measure in metrics]


def _reason(folder: Path) -> str:
    try:
        return f"loaded, difference {difference(folder):.1e}"
    except BaseModelError as error:
        return str(error).partition(" does not load as a text encoder: ")[2]


def _table(rows: list[Row], reasons: dict[str, str]) -> str:
    by_case: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        by_case[row.case][row.metric] = row.value
    lines = ["| folders with | number | largest difference |", "|---|---|---|"]
    lines += [f"| {case} | {values['folders']} | {values['largest difference']:.1e} |" for case, values in sorted(by_case.items())]
    lines += ["", "| refused | reason |", "|---|---|", *(f"| {name} | {reason} |" for name, reason in reasons.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
