"""Array examples for small nets: readers of `.npz` files and image folders, and a sampler of tasks."""

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
    """A data set of arrays: for each class, its n examples as one array [n, …].

    All examples have the same shape and dtype.
    """

    name: str
    classes: Mapping[str, NDArray[np.generic]]

    def only(self, labels: list[str]) -> "Arrays":
        """Return only the classes `labels`. Raises DataError for an unknown class."""
        missing = [label for label in labels if label not in self.classes]
        if missing:
            raise DataError(f"{self.name}: no class {missing[0]!r} (has {len(self.classes)})")
        return Arrays(self.name, {label: self.classes[label] for label in labels})


def from_arrays(name: str, examples: NDArray[np.generic], labels: NDArray[np.generic]) -> Arrays:
    """Group examples [n, …] by their labels [n]. Raises DataError if the lengths differ or are zero."""
    if len(examples) != len(labels) or not len(labels):
        raise DataError(f"{name}: expected as many examples as labels and at least one, got {len(examples)} and {len(labels)}")
    return Arrays(name, {str(label): examples[labels == label] for label in np.unique(labels)})


def read_npz(path: Path, *, examples: str = "images", labels: str = "labels") -> Arrays:
    """Read the arrays `examples` and `labels` of an `.npz` file. Nothing in it is unpickled.

    Raises DataError for a file that is not an `.npz` file, and for a missing array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in (examples, labels):
                if key not in file:
                    raise DataError(f"{path}: no array {key!r}, has {', '.join(file)}")
            return from_arrays(path.stem, file[examples], file[labels])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays: {error}") from error


def read_images(folder: Path, size: int) -> Arrays:
    """Read a folder that has one folder of images for each class, as uint8 arrays [n, 3, size, size].

    Each image is cropped to its central square and resized. Raises DataError if the package pillow is not installed, for a folder
    without images, and for a file that is not an image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need the package pillow: pip install pillow") from error
    classes: dict[str, NDArray[np.generic]] = {}
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
        rows = []
        for path in sorted(class_folder.iterdir()):
            try:
                with Image.open(path) as image:
                    side = min(image.size)
                    left, top = ((length - side) // 2 for length in image.size)
                    square = image.convert("RGB").crop((left, top, left + side, top + side)).resize((size, size))
            except OSError as error:
                raise DataError(f"{path}: not an image: {error}") from error
            rows.append(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
        if not rows:
            raise DataError(f"{class_folder}: no images")
        classes[class_folder.name] = np.stack(rows)
    if not classes:
        raise DataError(f"{folder}: expected a folder of images for each class")
    return Arrays(folder.name, classes)


class ArraySampler:
    """A sampler of meta-batches of T tasks. Each draw depends only on (seed, index).

    `rotations`: add three classes for each class, its examples rotated by 90, 180 and 270 degrees (Santoro et al. 2016, for
    Omniglot). This needs square examples.
    """

    def __init__(self, arrays: Arrays, seed: int, *, rotations: bool = False) -> None:
        self.arrays, self.seed = arrays, seed
        self.turns = 4 if rotations else 1
        self._classes = list(arrays.classes.values())

    def tasks(self, index: int, shape: EpisodeShape, count: int) -> tuple[Examples, Examples]:
        """Draw meta-batch number `index`: support [T, N·K, …] and query [T, N·Q, …], float32.

        T is `count`, and N, K and Q are the ways, shots and queries of `shape`. Labels are [T, N·K] and [T, N·Q], 0 … N−1, class by
        class. Raises DataError if there are too few classes or examples.
        """
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
