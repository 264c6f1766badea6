"""Examples that are arrays, for small nets: by class, from memory, an `.npz` file or a folder of images; and T tasks drawn from
them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from metatrain.errors import DataError
from metatrain.inner.nets import Examples
from metatrain.tasks.episodes import EpisodeShape


@dataclass(frozen=True)
class Arrays:
    """Examples by class, each [n, …], of one shape and dtype."""

    name: str
    classes: Mapping[str, NDArray[np.generic]]

    def only(self, labels: list[str]) -> "Arrays":
        """The same with these classes alone. Raises DataError for one that is not there."""
        missing = [label for label in labels if label not in self.classes]
        if missing:
            raise DataError(f"{self.name}: no class {missing[0]!r} (has {len(self.classes)})")
        return Arrays(self.name, {label: self.classes[label] for label in labels})


def from_arrays(name: str, examples: NDArray[np.generic], labels: NDArray[np.generic]) -> Arrays:
    """examples [n, …] and labels [n] → by class. Raises DataError where their numbers differ or there are none."""
    if len(examples) != len(labels) or not len(labels):
        raise DataError(f"{name}: expected as many examples as labels and at least one, got {len(examples)} and {len(labels)}")
    return Arrays(name, {str(label): examples[labels == label] for label in np.unique(labels)})


def read_npz(path: Path, *, examples: str = "images", labels: str = "labels") -> Arrays:
    """Two arrays of an `.npz` file; nothing in it is unpickled. Raises DataError where they are not there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in (examples, labels):
                if key not in file:
                    raise DataError(f"{path}: no array {key!r}, has {', '.join(file)}")
            return from_arrays(path.stem, file[examples], file[labels])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays: {error}") from error


def read_images(folder: Path, size: int) -> Arrays:
    """A folder with a folder of images for each class → uint8 [n, 3, size, size], cut to the middle square. Needs the package
    pillow. Raises DataError for a folder without images and a file that is none."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need the package pillow: pip install pillow") from error
    found: dict[str, NDArray[np.generic]] = {}
    for own in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
        rows = []
        for path in sorted(own.iterdir()):
            try:
                with Image.open(path) as image:
                    side = min(image.size)
                    left, top = ((length - side) // 2 for length in image.size)
                    square = image.convert("RGB").crop((left, top, left + side, top + side)).resize((size, size))
            except OSError as error:
                raise DataError(f"{path}: not an image: {error}") from error
            rows.append(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
        if not rows:
            raise DataError(f"{own}: no images")
        found[own.name] = np.stack(rows)
    if not found:
        raise DataError(f"{folder}: expected a folder of images for each class")
    return Arrays(folder.name, found)


class ArraySampler:
    """Draws T tasks at a time that depend on (seed, index) alone.

    `rotations`: each class, turned by 90, 180 and 270 degrees, is three more classes (Santoro et al. 2016, for Omniglot), of square
    examples. Raises DataError where a task cannot be filled.
    """

    def __init__(self, arrays: Arrays, seed: int, *, rotations: bool = False) -> None:
        self.arrays, self.seed = arrays, seed
        self.turns = 4 if rotations else 1
        self._classes = list(arrays.classes.values())

    def tasks(self, index: int, shape: EpisodeShape, count: int) -> tuple[Examples, Examples]:
        """Meta-batch number `index`: support [T, N·K, …] and query [T, N·Q, …] float32, labels [T, …] 0 … N−1, class by class."""
        need = shape.shots + shape.queries
        smallest = min(len(rows) for rows in self._classes)
        if shape.ways > len(self._classes) * self.turns or need > smallest:
            raise DataError(
                f"{self.arrays.name}: {shape.ways}-way with {shape.shots} shots and {shape.queries} queries needs {shape.ways} "
                f"classes of {need} examples; it has {len(self._classes) * self.turns}, the smallest of {smallest}"
            )
        support, query = [], []
        for task in range(count):
            rng = np.random.default_rng([self.seed, index, task])
            for drawn in rng.choice(len(self._classes) * self.turns, shape.ways, replace=False):
                rows = self._classes[drawn // self.turns]
                picked = rows[rng.choice(len(rows), need, replace=False)]
                if drawn % self.turns:
                    picked = np.rot90(picked, drawn % self.turns, axes=(-2, -1))
                support.append(picked[: shape.shots])
                query.append(picked[shape.shots :])
        return self._examples(support, shape.ways, shape.shots, count), self._examples(query, shape.ways, shape.queries, count)

    def _examples(self, rows: list[NDArray[np.generic]], ways: int, each: int, count: int) -> Examples:
        stacked = torch.from_numpy(np.stack(rows).astype(np.float32))
        labels = torch.arange(ways).repeat_interleave(each).expand(count, ways * each)
        return Examples(stacked.view(count, ways * each, *stacked.shape[2:]), labels)
