import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from metatrain.errors import DataError
from metatrain.tasks.episodes import (
    Dataset,
    EpisodeSampler,
    EpisodeShape,
    assert_class_disjoint,
    draw_shape,
    largest_shapes,
    manifest_digest,
)
from metatrain.tasks.labels import label_words
from metatrain.tasks.normal_form import normal_form
from metatrain.tasks.table import STARTER, read_table


def dataset(name: str = "d", classes: int = 6, texts: int = 8) -> Dataset:
    return Dataset(name, {f"c{c}": tuple(f"text {c} {i}" for i in range(texts)) for c in range(classes)})


def test_episodes_depend_only_on_seed_and_index_and_are_valid() -> None:
    sampler, shape = EpisodeSampler([dataset()], seed=3), EpisodeShape(4, 2, 3)
    first = [sampler.episode(i, shape) for i in range(5)]
    assert first == [EpisodeSampler([dataset()], seed=3).episode(i, shape) for i in range(5)]
    assert first != [EpisodeSampler([dataset()], seed=4).episode(i, shape) for i in range(5)]
    assert manifest_digest(first) == manifest_digest(list(first)) != manifest_digest(first[::-1])
    for episode in first:
        assert len(set(episode.labels)) == 4
        assert [c for _, c in episode.support] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len(episode.query) == 12
        texts = [text for text, _ in (*episode.support, *episode.query)]
        assert len(set(texts)) == len(texts)
        assert all(text in dataset().texts[episode.labels[c]] for text, c in (*episode.support, *episode.query))


def test_the_error_for_a_shape_that_cannot_be_filled_says_how_many_classes_exist() -> None:
    with pytest.raises(DataError, match="7-way with 2 shots and 2 queries needs 7 classes of 4 texts; at most 6"):
        EpisodeSampler([dataset()], 0).episode(0, EpisodeShape(7, 2, 2))
    with pytest.raises(DataError, match="at most 0 classes"):
        EpisodeSampler([dataset()], 0).episode(0, EpisodeShape(2, 8, 1))


def test_messages_name_the_first_five_labels() -> None:
    assert dataset(classes=5).some_labels == "c0, c1, c2, c3, c4"
    assert dataset(classes=6).some_labels == "c0, c1, c2, c3, c4, …"


def test_drawn_shapes_stay_in_their_ranges_and_reach_both_ends() -> None:
    shapes = [draw_shape(0, i, (2, 10), (1, 5), 4) for i in range(400)]
    assert {s.ways for s in shapes} == set(range(2, 11))
    assert {s.shots for s in shapes} == set(range(1, 6))


def test_shapes_are_redrawn_until_a_task_fits() -> None:
    shapes = [draw_shape(0, i, (2, 50), (1, 10), 3, 100) for i in range(300)]
    assert all(s.ways * (s.shots + s.queries) <= 100 for s in shapes)
    assert max(s.ways for s in shapes) > 20 and max(s.shots for s in shapes) == 10
    largest = {shape.shots: shape for shape in largest_shapes((2, 50), (1, 10), 3, 100)}
    assert all(s.ways <= largest[s.shots].ways for s in shapes)
    assert largest[1] == EpisodeShape(25, 1, 3) and largest[10].ways == 7 and list(largest) == list(range(1, 11))
    assert [s.shots for s in largest_shapes((20, 50), (1, 10), 3, 100)] == [1, 2]


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.5), (0.5, 1 / 3), (1.0, 0.2)])
def test_a_data_set_is_drawn_by_its_number_of_classes_to_the_temperature(temperature: float, share: float) -> None:
    """Draw 3-way tasks from data sets with 4, 16 and 2 classes.

    At temperature t the weights of the first two are 4^t and 16^t. The third is too small for a 3-way task.
    """
    sets = [dataset("small", classes=4), dataset("large", classes=16), dataset("tiny", classes=2)]
    sampler = EpisodeSampler(sets, 0, temperature=temperature)
    drawn = [sampler.episode(index, EpisodeShape(3, 1, 1)).dataset for index in range(600)]
    assert drawn.count("tiny") == 0 and drawn.count("small") / 600 == pytest.approx(share, abs=0.06)


def test_a_share_of_the_episodes_is_merged() -> None:
    sampler = EpisodeSampler([dataset(classes=8)], 0, merge=0.25)
    merged = [any("+" in label for label in sampler.episode(i, EpisodeShape(3, 1, 1)).labels) for i in range(300)]
    assert sum(merged) / 300 == pytest.approx(0.25, abs=0.08)


def test_a_share_of_the_episodes_is_near_miss() -> None:
    """Draw episodes from classes on a line, and count the near-miss episodes.

    The classes of a near-miss episode lie within 2·ways of each other. In other episodes this hardly ever happens.
    """
    line = np.arange(100, dtype=np.float32)
    similarity = [-np.abs(line[:, None] - line[None, :])]
    sampler = EpisodeSampler([dataset(classes=100)], 0, near_miss=0.25, similarity=similarity)
    drawn = [[int(label[1:]) for label in sampler.episode(i, EpisodeShape(3, 1, 1)).labels] for i in range(300)]
    assert sum(max(classes) - min(classes) <= 6 for classes in drawn) / 300 == pytest.approx(0.25, abs=0.08)


def test_near_miss_episodes_draw_similar_classes() -> None:
    """Draw episodes from classes on a line, where closer classes are more similar.

    The classes of one episode must lie within 2·ways of each other.
    """
    line = np.arange(30, dtype=np.float32)
    similarity = [-np.abs(line[:, None] - line[None, :])]
    sampler = EpisodeSampler([dataset(classes=30)], 0, near_miss=1.0, similarity=similarity)
    for i in range(50):
        episode = sampler.episode(i, EpisodeShape(3, 1, 1))
        positions = [int(label[1:]) for label in episode.labels]
        assert max(positions) - min(positions) <= 6
    wide = EpisodeSampler([dataset(classes=30)], 0).episode(0, EpisodeShape(3, 1, 1))
    assert max(int(label[1:]) for label in wide.labels) - min(int(label[1:]) for label in wide.labels) > 6
    with pytest.raises(DataError, match="need the similarity"):
        EpisodeSampler([dataset()], 0, near_miss=0.5)


def test_a_merged_label_alternates_between_two_classes() -> None:
    episode = EpisodeSampler([dataset(classes=8)], 0, merge=1.0).episode(0, EpisodeShape(3, 2, 2))
    assert len(set(episode.labels)) == 3
    for c, label in enumerate(episode.labels):
        first, second = label.split(" + ")
        for rows in (episode.support, episode.query):
            label_texts = [text for text, row_label in rows if row_label == c]
            assert sorted({f"c{text.split()[1]}" for text in label_texts}) == sorted((first, second))
    texts = [text for text, _ in (*episode.support, *episode.query)]
    assert len(set(texts)) == len(texts)
    too_few = EpisodeSampler([dataset(classes=5)], 0, merge=1.0).episode(0, EpisodeShape(3, 2, 2))
    assert not any("+" in label for label in too_few.labels)


def test_classes_on_both_sides_are_named() -> None:
    assert_class_disjoint([dataset("a")], [dataset("b")], "splits")
    with pytest.raises(DataError, match="splits: class 'c0' of a is on both sides"):
        assert_class_disjoint([dataset("a")], [dataset("a")], "splits")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', ":2: expected one JSON object in each line"),
        ('["a", "b"]', ":2: expected a JSON object with the columns as keys, got a list"),
        ('{"text": "", "label": "x"}', ":2: expected a text as 'text', got an empty value"),
        ('{"text": "a", "label": 3}', ":2: expected a label as 'label', got the number 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine", "label": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_jsonl_reads_gzip_keeps_order_and_drops_exact_repeats(tmp_path: Path) -> None:
    rows = [("b", "one"), ("a", "two"), ("b", "one"), ("b", "three")]
    content = "\n".join(json.dumps({"text": text, "label": label, "more": 1}) for label, text in rows)
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(content.encode()))
    assert read_table(path).texts == {"b": ("one", "three"), "a": ("two",)}
    assert read_table(path).name == "set"
    with pytest.raises(DataError, match="no file at"):
        read_table(tmp_path / "none.jsonl")


def test_the_shipped_task_set_is_large_enough_and_has_no_repeats() -> None:
    starter = read_table(STARTER)
    domains = {label.split("/")[0] for label in starter.texts}
    assert len(starter.texts) >= 40 and len(domains) >= 8
    assert all(len(texts) >= 12 for texts in starter.texts.values())
    all_texts = [normal_form(text) for texts in starter.texts.values() for text in texts]
    assert len(set(all_texts)) == len(all_texts)


def test_a_label_is_split_into_words() -> None:
    words = {
        "card_arrival": "card arrival",
        "user:thank-you": "user thank you",
        "cancelOrder": "cancel Order",
        "gym/off": "gym off",
    }
    words |= {"HTTP": "HTTP", "T1059.003": "T1059 003", "7": "7", "__": "__", "déjà_vu": "déjà vu", " padded ": "padded"}
    assert {label: label_words(label) for label in words} == words
