"""Read the data sets of a training run, and draw its training and validation episodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metatrain.errors import DataError
from metatrain.inner.encoded import Encoded
from metatrain.tasks.episodes import (
    Dataset,
    Episode,
    EpisodeSampler,
    EpisodeShape,
    assert_class_disjoint,
    assert_enough,
    draw_shape,
    largest_shapes,
)
from metatrain.tasks.overlap import Removal, without_overlap
from metatrain.training.recipe import Recipe

VALIDATION_QUERIES = 5


def read_data(recipe: Recipe, data: Path) -> tuple[list[Dataset], list[Dataset], list[Removal]]:
    """Return the training sets, the validation sets, and what was removed from each class that lost texts.

    Classes and texts of the held-out data are removed from the training sets. Classes and texts of the training or held-out data
    are removed from the validation sets. A validation set with fewer classes left than `validation.ways` is not used.

    Raises DataError if one class is listed in two of `data.train`, `data.valid` and `data.held_out`, or if no training or
    validation data is left.
    """
    train_sets = [source.read(data) for source in recipe.data.train]
    valid_sets = [source.read(data) for source in recipe.data.valid]
    held_out = [source.read(data) for source in recipe.data.held_out]
    assert_class_disjoint(train_sets, valid_sets, "data.train and data.valid")
    assert_class_disjoint(train_sets, held_out, "data.train and data.held_out")
    assert_class_disjoint(valid_sets, held_out, "data.valid and data.held_out")
    kept, removed = without_overlap(train_sets, held_out)
    if not kept:
        raise DataError(f"data.train: nothing is left without the texts of data.held_out. {removed[0].message_with_example}")
    unseen, removed_valid = without_overlap(valid_sets, [*kept, *held_out])
    usable = [d for d in unseen if len(d.texts) >= recipe.validation.ways]
    if not usable:
        raise _no_validation_data(recipe.validation.ways, valid_sets, unseen, removed_valid)
    return kept, usable, removed + removed_valid


def _no_validation_data(ways: int, before: list[Dataset], after: list[Dataset], removed: list[Removal]) -> DataError:
    """Return the error for validation sets that all have too few classes, with the reason."""
    most_before, most_after = (max((len(d.texts) for d in sets), default=0) for sets in (before, after))
    expected = f"data.valid: expected a set of {ways} classes (validation.ways), got at most"
    if most_before < ways:
        return DataError(f"{expected} {most_before}")
    return DataError(f"{expected} {most_after} that other data do not have. {removed[0].message_with_example}")


def assert_episodes(recipe: Recipe, train_sets: list[Dataset], valid_sets: list[Dataset]) -> None:
    """Raise DataError if the data is too small for the largest training or validation episodes."""
    drawn = recipe.episodes
    for shape in largest_shapes(drawn.ways, drawn.shots, drawn.queries, drawn.rows):
        assert_enough(train_sets, shape, "episodes:")
    for shots in recipe.validation.shots:
        shape = EpisodeShape(recipe.validation.ways, shots, VALIDATION_QUERIES)
        for one_set in valid_sets:
            assert_enough([one_set], shape, f"validation: of data.valid, {one_set.name}:")


def class_similarity(encoded: Encoded, datasets: list[Dataset], *, texts: int = 16) -> list[NDArray[np.float32]]:
    """Return the similarity of every pair of classes, [C, C] for each data set.

    It is the cosine between the means of the base model's features. A mean uses the first `texts` texts of the class.
    """
    similarities = []
    for dataset in datasets:
        means = []
        for class_texts in dataset.texts.values():
            means.append(nn.functional.normalize(encoded.features(class_texts[:texts]).mean(0), dim=0))
        stacked = torch.stack(means).cpu()
        similarities.append((stacked @ stacked.T).numpy())
    return similarities


def validation_episodes(recipe: Recipe, valid_sets: list[Dataset]) -> list[Episode]:
    """Return the fixed list of episodes that every validation uses.

    For each number of shots, the episodes cycle through the data sets.
    """
    episodes = []
    for shots in recipe.validation.shots:
        shape = EpisodeShape(recipe.validation.ways, shots, VALIDATION_QUERIES)
        for number in range(recipe.validation.episodes):
            one_set = valid_sets[number % len(valid_sets)]
            episodes.append(EpisodeSampler([one_set], recipe.seed + 1).episode(number, shape))
    return episodes


def training_sampler(recipe: Recipe, encoded: Encoded, train_sets: list[Dataset]) -> EpisodeSampler:
    drawn = recipe.episodes
    return EpisodeSampler(
        train_sets,
        recipe.seed,
        temperature=drawn.temperature,
        near_miss=drawn.near_miss,
        merge=drawn.merge,
        unequal=drawn.unequal,
        similarity=class_similarity(encoded, train_sets) if drawn.near_miss else (),
    )


def meta_batch(recipe: Recipe, sampler: EpisodeSampler, step: int) -> list[Episode]:
    """Draw the meta-batch of outer step number `step`: `outer.tasks` episodes, all of one shape."""
    drawn = recipe.episodes
    shape = draw_shape(recipe.seed, step, drawn.ways, drawn.shots, drawn.queries, drawn.rows)
    return sampler.batch(step, shape, recipe.outer.tasks)


def micro_batches(episodes: Sequence[Episode], rows_at_once: int) -> list[list[Episode]]:
    """Split a meta-batch into micro-batches of at most `rows_at_once` support and query rows.

    An episode with more rows than that is a micro-batch of its own.
    """
    largest = max(len(episode.support) + len(episode.query) for episode in episodes)
    size = max(1, rows_at_once // largest)
    return [list(episodes[i : i + size]) for i in range(0, len(episodes), size)]
