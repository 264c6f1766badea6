"""`make bench-label-words`: compare rules that decide whether label words are used as examples.

Prototypes on the features of the shipped default, without inner steps, on episodes of the data sets in `--data`. The labels are the
true ones, the true ones in another order, those of other classes, codes, or the first three letters of each word. A cell is a data
set with a kind of labels and a number of ways and shots. The loss of a rule in a cell is the accuracy of the better one of "never"
and "always" minus its own, in points. It can be below zero, because a rule decides for each episode.

The default was trained on most of these data, so the accuracies themselves mean nothing; the four sets in `FAR` are unseen.
"""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.record import Row, write
from benchmarks.transfer import FAR
from metatrain.artifacts.catalog import SHIPPED
from metatrain.artifacts.initialization import load_initialization
from metatrain.inner.encoded import Encoded
from metatrain.models.loading import load_base
from metatrain.readouts.label_words import gain
from metatrain.tasks.labels import label_words
from metatrain.tasks.table import read_table

NEAR = ("banking77", "clinc150", "hwu64", "liu54")
KINDS = ("true", "exchanged", "other classes", "codes", "abbreviated")
WAYS, SHOTS, QUERIES = (2, 5, 20), (1, 2, 5), 10
MOST_CLASSES, TEXTS = 40, 16
Cell = tuple[str, str, int, int]


@dataclass(frozen=True)
class Features:
    """The features of a data set.

    `texts` [C, n, D]: those of n texts of each class. `words`: those of the labels of each kind, [C, D].
    """

    texts: Tensor
    words: dict[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """The scores of one support set that the rules read."""

    gain: float
    z: float
    margin: float
    t: float


RULES: dict[str, Callable[[Scores], bool]] = {
    "never": lambda _: False,
    "always": lambda _: True,
    "permutation test, z > 1": lambda s: s.z > 1,
    "permutation test, z > 2": lambda s: s.z > 2,
    "t of the mean margin > 1.7": lambda s: s.t > 1.7,
    "mean margin > 0.02": lambda s: s.margin > 0.02,
    "gain > 0.2": lambda s: s.gain > 0.2,
    "gain > 0.1": lambda s: s.gain > 0.1,
    "gain > 0.05": lambda s: s.gain > 0.05,
    "gain > 0": lambda s: s.gain > 0,
}


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--episodes", default=60, show_default=True, help="Episodes in each cell.")
def main(data: Path, episodes: int) -> None:
    base = load_base(precision="float32")
    init = load_initialization(SHIPPED / "default", base)
    encoded, kind = Encoded(base, max_length=48), base.attach(init.delta)
    losses: dict[str, dict[Cell, float]] = {rule: {} for rule in RULES}
    used: dict[str, defaultdict[str, list[bool]]] = {rule: defaultdict(list) for rule in RULES}
    folders = {**{name: data / name for name in NEAR}, **{path.name: path for path in sorted((data / "text_mix").iterdir())}}
    for name, folder in tqdm(folders.items(), disable=None):
        if not (folder / "full.jsonl.gz").is_file():
            continue
        rng = np.random.default_rng(0)
        of_set = _features(folder, rng, lambda texts: encoded.features(texts, kind, init.theta))
        for labels, ways, shots in itertools.product(KINDS, WAYS, SHOTS):
            drawn = list(itertools.islice(_episodes(of_set, labels, ways, shots, init.scale, rng), episodes))
            if not drawn:
                continue
            for rule, uses in RULES.items():
                decided = [uses(scores) for scores, _, _ in drawn]
                used[rule][labels] += decided
                own = statistics.fmean(on if use else off for use, (_, off, on) in zip(decided, drawn, strict=True))
                better = max(statistics.fmean(off for _, off, _ in drawn), statistics.fmean(on for _, _, on in drawn))
                losses[rule][(name, labels, ways, shots)] = 100 * (better - own)
    rows = list(_rows(losses, used))
    print(f"\nwrote {write('label-words', rows, episodes=episodes)}")


def _features(folder: Path, rng: np.random.Generator, features: Callable[[Sequence[str]], Tensor]) -> Features:
    texts_by_label = read_table(folder / "full.jsonl.gz").texts
    texts_of = {label: sorted(set(texts)) for label, texts in texts_by_label.items()}
    labels = sorted(label for label, texts in texts_of.items() if len(texts) >= TEXTS)
    labels = sorted(rng.permutation(labels)[:MOST_CLASSES].tolist())
    texts = [str(text) for label in labels for text in rng.permutation(texts_of[label])[:TEXTS]]
    spelled = {
        "true": [label_words(label) for label in labels],
        "codes": ["".join(rng.choice(list("ABCDEFGHK"), 2)) + str(rng.integers(1, 99)) for _ in labels],
        "abbreviated": [" ".join(word[:3] for word in label_words(label).split()) for label in labels],
    }
    return Features(features(texts).view(len(labels), TEXTS, -1), {name: features(words) for name, words in spelled.items()})


def _episodes(
    of_set: Features, labels: str, ways: int, shots: int, scale: float, rng: np.random.Generator
) -> Iterator[tuple[Scores, float, float]]:
    """Yield the scores of an episode, and the accuracies without and with label words."""
    classes = len(of_set.texts)
    needed = 2 * ways if labels == "other classes" else ways
    while classes >= needed:
        drawn = rng.permutation(classes)
        chosen, others = drawn[:ways].tolist(), drawn[ways : 2 * ways].tolist()
        order = rng.permutation(TEXTS)
        support = of_set.texts[chosen][:, order[:shots].tolist()]
        query = of_set.texts[chosen][:, order[shots : shots + QUERIES].tolist()]
        named = {"exchanged": rng.permutation(chosen).tolist(), "other classes": others}.get(labels, chosen)
        words = of_set.words["true" if labels in ("exchanged", "other classes") else labels][named]
        off, on = (_accuracy(support.sum(1) + used * words, query) for used in (False, True))
        yield _scores(support, words, scale), off, on


def _accuracy(sums: Tensor, query: Tensor) -> float:
    prototypes = torch.nn.functional.normalize(sums, dim=-1)
    return float(((query @ prototypes.T).argmax(-1) == torch.arange(len(query)).unsqueeze(1)).float().mean())


def _scores(support: Tensor, words: Tensor, scale: float) -> Scores:
    ways, shots, _ = support.shape
    features, labels = support.flatten(0, 1), torch.arange(ways).repeat_interleave(shots)
    cosines = features @ words.T
    own = cosines[torch.arange(len(labels)), labels]
    margins = own - cosines.scatter(1, labels.unsqueeze(1), -2.0).amax(1)
    deviation = float(margins.std()) / math.sqrt(len(margins)) if len(margins) > 1 else 0.0
    mean = float(margins.mean())
    return Scores(
        gain(features, labels, words, torch.tensor(scale)),
        _z((scale * cosines).log_softmax(-1)[:, labels]),
        mean,
        mean / (deviation + 1e-3),
    )


def _z(scores: Tensor) -> float:
    """Return the exact z-score of the trace over all permutations of the labels (Hoeffding 1951).

    `scores` [M, M]: the score of example i with the label of example j.
    """
    centred = scores - scores.mean(0, keepdim=True) - scores.mean(1, keepdim=True) + scores.mean()
    variance = float(centred.square().sum()) / max(1, len(scores) - 1)
    return float(scores.trace() - scores.sum() / len(scores)) / math.sqrt(variance + 1e-12)


def _rows(losses: Mapping[str, Mapping[Cell, float]], used: Mapping[str, Mapping[str, Sequence[bool]]]) -> Iterator[Row]:
    print(f"{'rule':<28} {'mean':>6} {'worst':>6} {'unseen':>6}  " + "  ".join(f"{kind:>13}" for kind in KINDS))
    for rule, cells in losses.items():
        unseen = statistics.fmean(loss for (name, *_), loss in cells.items() if name in FAR)
        yield Row("all cells", rule, "mean loss", statistics.fmean(cells.values()), "points")
        yield Row("all cells", rule, "worst cell", max(cells.values()), "points")
        yield Row("unseen data sets", rule, "mean loss", unseen, "points")
        by_kind = []
        for labels in KINDS:
            loss = statistics.fmean(value for (_, kind, *_), value in cells.items() if kind == labels)
            share = statistics.fmean(used[rule][labels])
            yield Row(f"labels: {labels}", rule, "mean loss", loss, "points")
            yield Row(f"labels: {labels}", rule, "used", share, "share")
            by_kind.append(f"{loss:>6.2f} ({share:>4.0%})")
        for (name, labels, ways, shots), loss in cells.items():
            yield Row(f"{name}, {labels}, {ways}-way {shots}-shot", rule, "loss", loss, "points")
        print(
            f"{rule:<28} {statistics.fmean(cells.values()):>6.2f} {max(cells.values()):>6.2f} {unseen:>6.2f}  " + "  ".join(by_kind)
        )


if __name__ == "__main__":
    main()
