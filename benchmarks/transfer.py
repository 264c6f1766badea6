"""`make bench-transfer`: what meta-training and a second of adaptation are worth on data sets that were never seen.

Three folds (`benchmarks.folds`), each trained without the fold's data and tested on it, and far transfer: the published validation
sets of `text_mix`, which nothing is trained on, under the first fold's initialization. Every system meets the same
episodes; SetFit, which takes most of the time, some of them. Ours is scored after several numbers of steps, and as a request would
take them ("quickstudy"). Accuracy runs several tasks a pass and is kept in `results/parts/transfer.json`, with the results, by the
precision of the base model; seconds are taken with `--seconds`, on single tasks of the folds, on a machine with nothing else to do,
with the shipped default, for they do not depend on what was learned, and have results of their own (`transfer-seconds`). Resumes;
`--part` and `--system` share the work between processes.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import torch
from tqdm import tqdm

from benchmarks.folds import FOLDS, fold_initialization, fold_recipe
from benchmarks.record import Progress, Row, difference_rows, machine, write
from benchmarks.systems import SETFIT_VERSION, Answer, accuracy, linear_probe, setfit, with_label_words
from metatrain.artifacts.baselines import SCALE, frozen_prototypes, lora_from_zero
from metatrain.artifacts.initialization import Initialization, load_initialization
from metatrain.cli import DEFAULT_INITIALIZATION
from metatrain.inner.encoded import Encoded
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.models.precision import Precision
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.tasks.episodes import Episode, EpisodeSampler, EpisodeShape, manifest_digest
from metatrain.tasks.jsonl import read_jsonl
from metatrain.training.evaluate import evaluate, evaluate_steps, own_steps, paired_interval
from metatrain.training.recipe import Recipe

FAR = ("csabstruct", "emobank_genre", "opentrivia", "ukp_debate")
STEPS, PLAIN_STEPS = (0, 1, 2, 3, 5, 10), 10
SHOTS = {"near": (1, 5, 10), "far": (5, 10)}
TIMED, TIMED_SETFIT = 5, 2  # single tasks
FROZEN, PROBE, PLAIN, SETFIT = "frozen prototypes", "linear probe", "plain LoRA from zero", "SetFit"
SAME_LOOP, OURS = "our inner loop from zero", "quickstudy"
FROZEN_WORDS, OURS_WORDS = "frozen prototypes, label words", "quickstudy, label words"
SYSTEMS = (FROZEN, PROBE, PLAIN, SAME_LOOP, SETFIT, OURS, FROZEN_WORDS, OURS_WORDS)
MARKS: dict[str, tuple[int, ...] | None] = {
    FROZEN: (0,),
    FROZEN_WORDS: (0,),
    PLAIN: (PLAIN_STEPS,),
    SAME_LOOP: STEPS[1:],
    OURS: STEPS,
    OURS_WORDS: None,
}
"""The numbers of inner steps that a system is scored after; None: its own."""
Scores = dict[str, list[float]]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Part:
    """Episodes of one case. `fold` names the initialization that has not seen them, `few` the numbers of those for SetFit."""

    fold: str
    case: str
    shots: int
    episodes: list[Episode]
    few: list[int]

    @property
    def near(self) -> bool:
        """Of the fold's own sets."""
        return self.case.startswith(self.fold)


def parts(data: Path, names: Sequence[str], near: int, far: int, setfit_near: int, setfit_far: int) -> Iterator[Part]:
    for fold, sets in FOLDS.items():
        if not names or fold in names:
            for shots in SHOTS["near"]:
                episodes = _episodes([data / name / "full.jsonl.gz" for name in sets], shots, near)
                few = _spread(near, _setfit_share(shots, setfit_near))
                yield Part(fold, f"{fold}, 5-way {shots}-shot", shots, episodes, few)
    for name in FAR:
        if not names or "far" in names:
            for shots in SHOTS["far"]:
                episodes = _episodes([data / "text_mix" / name / "full.jsonl.gz"], shots, far)
                case = f"far: {name}, {len(episodes[0].labels)}-way {shots}-shot"
                yield Part(next(iter(FOLDS)), case, shots, episodes, _spread(far, _setfit_share(shots, setfit_far)))


def _episodes(paths: list[Path], shots: int, count: int) -> list[Episode]:
    """The same number from each data set, in turn."""
    samplers = [EpisodeSampler([read_jsonl(path)], seed=4321) for path in paths]
    ways = min(5, *(len(s.datasets[0].texts) for s in samplers))
    drawn = [samplers[i % len(samplers)].episode(i // len(samplers), EpisodeShape(ways, shots, 5)) for i in range(count)]
    return sorted(drawn, key=lambda episode: episode.dataset)


def _spread(count: int, some: int) -> list[int]:
    """`some` numbers below `count` at equal distances, so that every data set of a part is met."""
    return [i * count // some for i in range(some)] if some < count else list(range(count))


def _setfit_share(shots: int, episodes: int) -> int:
    """At 10 shots SetFit walks through 2,000 pairs a task, more than a minute on a core: a quarter of the episodes there."""
    return max(1, episodes // 4) if shots == 10 else episodes


class Unfinished(Exception):
    """Of a report: this has not been run."""


class Arena:
    """Runs systems on the episodes of one part, keeping what is finished: accuracies, and of this machine alone, seconds. Ours is
    the fold's initialization, or the `shipped` one. Where it is to `report`, it runs nothing and raises Unfinished."""

    def __init__(self, base: Base, encoded: Encoded, part: Part, *, shipped: bool, report: bool) -> None:
        self.base, self.encoded, self.part, self.shipped, self.report = base, encoded, part, shipped, report
        self._accuracies, self._seconds = Progress("transfer", kept=True), Progress("transfer-seconds")
        self.digest = manifest_digest(part.episodes)
        self.worded = [with_label_words(episode) for episode in part.episodes]

    @cached_property
    def ours(self) -> Initialization:
        """What peers and baselines do without."""
        return load_initialization(DEFAULT_INITIALIZATION if self.shipped else fold_initialization(self.part.fold), self.base)

    def _start(self, system: str) -> Initialization:
        """What a system adapts from."""
        if system in (FROZEN, FROZEN_WORDS):
            return frozen_prototypes(self.base)
        if system == PLAIN:
            return lora_from_zero(self.base, steps=PLAIN_STEPS)
        return _from_zero(self.base, fold_recipe(self.part.fold)) if system == SAME_LOOP else self.ours

    def accuracies(self, system: str) -> Scores:
        """Accuracy of each episode, under the system's name, or one for each number of steps where it is tried at several."""
        if system == SETFIT:
            return {SETFIT: [self._setfit_accuracy(self.part.episodes[i]) for i in self.part.few]}
        what = self._what(self._identity(system))
        found = self._kept(self._accuracies, what, lambda: self._run(system, self._episodes(system))[0])
        if system != OURS:
            return found
        own = self._kept(
            self._accuracies,
            self._what(["own steps", fold_recipe(self.part.fold).digest, str(self.base.dtype)]),
            lambda: self._own_steps(self.part.episodes),
        )
        return found | _as_served(found, own)

    def _own_steps(self, episodes: Sequence[Episode]) -> Sequence[int]:
        """That a request with each of these would take."""
        return own_steps(self.base, self.ours, episodes, encoded=self.encoded)

    def _setfit_accuracy(self, episode: Episode) -> float:
        what = [SETFIT, SETFIT_VERSION, manifest_digest([episode])]
        return self._kept(self._accuracies, what, lambda: accuracy(_setfit(episode), episode))

    def seconds(self, system: str) -> Scores:
        """Seconds to adapt single tasks, one at a time, the first of them twice, for nothing is warm at first (not so SetFit, which
        takes too long)."""
        if system == SETFIT:
            timed = [self.part.episodes[i] for i in _spread(len(self.part.episodes), TIMED_SETFIT)]
            what = self._what([SETFIT, SETFIT_VERSION, machine()])
            return self._kept(self._seconds, what, lambda: {SETFIT: [_setfit(e).seconds for e in timed]})
        episodes = [self._episodes(system)[i] for i in _spread(len(self.part.episodes), TIMED)]

        def measure() -> Scores:
            found: Scores = {}
            for episode in [episodes[0], *episodes]:
                for name, seconds in self._run(system, [episode])[1].items():
                    found.setdefault(name, []).append(seconds)
            found = {name: values[1:] for name, values in found.items()}
            return found | _as_served(found, self._own_steps(episodes)) if system == OURS else found

        return self._kept(self._seconds, self._what([*self._identity(system), machine()]), measure)

    def _episodes(self, system: str) -> list[Episode]:
        return self.worded if system in (FROZEN_WORDS, OURS_WORDS) else self.part.episodes

    def _run(self, system: str, episodes: Sequence[Episode]) -> tuple[Scores, dict[str, float]]:
        """Accuracy of each episode and seconds a task, by name."""
        if system == PROBE:
            answers = [linear_probe(self.encoded, e.support, [text for text, _ in e.query]) for e in episodes]
            scores = [accuracy(answer, episode) for answer, episode in zip(answers, episodes, strict=True)]
            return {PROBE: scores}, {PROBE: statistics.fmean(answer.seconds for answer in answers)}
        init, marks = self._start(system), MARKS[system]
        one_shot = len(episodes[0].support) == len(episodes[0].labels)
        if one_shot and not init.inner.teaches_one_shot(len(episodes[0].support)) and marks is not None:
            marks = tuple(mark for mark in marks if mark == 0)
            if not marks:
                return {}, {}
        with tqdm(total=len(episodes), desc=f"{self.part.case}, {system}", leave=False, disable=None) as bar:
            if marks is None:
                own = evaluate(self.base, init, episodes, encoded=self.encoded, progress=bar.update)
                return {system: list(own.accuracy)}, {system: own.seconds_per_task}
            by_step = evaluate_steps(self.base, init, episodes, marks, encoded=self.encoded, progress=bar.update)
        names = {mark: _after(system, mark) if system in (SAME_LOOP, OURS) else system for mark in by_step}
        return {names[m]: list(s.accuracy) for m, s in by_step.items()}, {names[m]: s.seconds_per_task for m, s in by_step.items()}

    def _identity(self, system: str) -> list[Any]:
        if system == PROBE:
            return [PROBE, str(self.base.dtype)]
        # What a fold has trained goes by its recipe, for training again on another machine may round otherwise.
        of_fold = system in (OURS, OURS_WORDS) and not self.shipped
        made_by = fold_recipe(self.part.fold).digest if of_fold else self._start(system).digest
        return [system, made_by, MARKS[system], str(self.base.dtype)]

    def _what(self, what: list[Any]) -> list[Any]:
        return [self.part.case, self.digest, *what]

    def _kept(self, progress: Progress, what: list[Any], make: Callable[[], Kept]) -> Kept:
        key = json.dumps(what)
        if progress.get(key) is None:
            if self.report:
                raise Unfinished
            progress.put(key, make())
        kept: Kept = progress.get(key)
        return kept


def _setfit(episode: Episode) -> Answer:
    return setfit(episode.support, [text for text, _ in episode.query])


def _after(system: str, steps: int) -> str:
    return f"{system}, {steps} steps"


def _as_served(by_step: Scores, own: Sequence[int]) -> Scores:
    """Ours, each episode after its own number of steps."""
    return {OURS: [by_step[_after(OURS, steps)][episode] for episode, steps in enumerate(own)]}


def _from_zero(base: Base, recipe: Recipe) -> Initialization:
    """Our delta, objective and head, with nothing learned: LoRA as PEFT starts it and one plain rate."""
    theta = base.attach(recipe.delta).initial(torch.Generator().manual_seed(0))
    rates = {name: torch.tensor([3e-3 if name in HEAD_LEAVES else 1e-3]) for name in (*theta, *HEAD_LEAVES)}
    return Initialization("from-zero", base.spec, recipe.delta, recipe.recorded_inner, theta, rates, SCALE, "none", {})


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--episodes", default=200, show_default=True)
@click.option("--far-episodes", default=60, show_default=True)
@click.option("--setfit-episodes", default=40, show_default=True)
@click.option("--far-setfit-episodes", default=12, show_default=True)
@click.option("--part", "names", type=click.Choice([*FOLDS, "far"]), multiple=True, help="Only this part.")
@click.option("--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="Only this system.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="auto", show_default=True, help="Of the base model.")
@click.option("--seconds", is_flag=True, help="Time single tasks of the folds instead, on a machine at rest.")
@click.option("--report", is_flag=True, help="Run nothing; write the results of what is finished, of all parts and systems.")
def main(
    data: Path,
    episodes: int,
    far_episodes: int,
    setfit_episodes: int,
    far_setfit_episodes: int,
    names: tuple[str, ...],
    systems: tuple[str, ...],
    precision: Precision,
    seconds: bool,
    report: bool,
) -> None:
    base = load_base(precision=precision)
    encoded, rows, unfinished = Encoded(base), [], []
    began = time.strftime("%Y-%m-%d")
    whole = not names and not systems
    of_folds: dict[int, list[tuple[Part, Scores]]] = {}
    if seconds:
        names = names or tuple(FOLDS)
    for part in parts(data, names, episodes, far_episodes, setfit_episodes, far_setfit_episodes):
        arena = Arena(base, encoded, part, shipped=seconds, report=report)
        found: Scores = {}
        for system in [s for s in systems or SYSTEMS if s != SETFIT or len(part.few) > 1]:
            try:
                found |= arena.seconds(system) if seconds else arena.accuracies(system)
            except Unfinished:
                unfinished.append(f"{part.case}: {system}")
        rows += _seconds_rows(part, found) if seconds else _rows(part, found)
        (_print_seconds if seconds else _print)(part.case, found)
        if part.near:
            of_folds.setdefault(part.shots, []).append((part, found))
    if not names:
        for shots, own in of_folds.items():
            part, found = _together(f"all folds, 5-way {shots}-shot", own)
            rows += _rows(part, found)
            _print(part.case, found)
    if report and all(row.system == SETFIT for row in rows):
        raise click.ClickException(f"nothing but SetFit is finished in {base.precision}; another --precision? Nothing was written")
    if whole:
        about: dict[str, Any] = {"begun": began, "precision": str(base.dtype), "unfinished": unfinished}
        if not seconds:
            about |= {"episodes": episodes, "far_episodes": far_episodes}
            about |= {"setfit_episodes": setfit_episodes, "far_setfit_episodes": far_setfit_episodes}
        print(f"\nwrote {write('transfer-seconds' if seconds else 'transfer', rows, **about)}")


def _rows(part: Part, results: Scores) -> list[Row]:
    rows = []
    for system, scores in results.items():
        rows.append(Row(part.case, system, "accuracy", statistics.fmean(scores), "share"))
        for other in (FROZEN, f"{OURS}, 0 steps", SETFIT):
            if other in results and other != system:
                rows += difference_rows(part.case, system, other, *_met_by_both(part, system, other, results))
    return rows


def _together(case: str, parts_found: list[tuple[Part, Scores]]) -> tuple[Part, Scores]:
    """The episodes of several parts as those of one, for the systems that have met them all."""
    everywhere = set.intersection(*(set(found) for _, found in parts_found))
    scores = {
        system: [s for _, found in parts_found for s in found[system]] for system in parts_found[0][1] if system in everywhere
    }
    first, episodes, few = parts_found[0][0], list[Episode](), list[int]()
    for part, _ in parts_found:
        few += [len(episodes) + i for i in part.few]
        episodes += part.episodes
    return replace(first, case=case, episodes=episodes, few=few), scores


def _seconds_rows(part: Part, times: Scores) -> list[Row]:
    return [Row(part.case, system, "seconds to adapt", statistics.median(values), "s") for system, values in times.items()]


def _met_by_both(part: Part, left: str, right: str, results: Scores) -> tuple[list[float], list[float]]:
    """SetFit met some of the episodes: the others' scores on the same."""
    few = SETFIT in (left, right)
    a, b = ([results[s][i] for i in part.few] if few and s != SETFIT else results[s] for s in (left, right))
    return a, b


def _print(case: str, results: Scores) -> None:
    print(f"\n{case}")
    frozen = results.get(FROZEN)
    for system, scores in results.items():
        over = ""
        if frozen is not None and len(frozen) == len(scores):
            difference, half = paired_interval(scores, frozen)
            over = f"{100 * difference:+.2f} ± {100 * half:.2f}"
        print(f"  {system:<36} {statistics.fmean(scores):>8.2%} {over:>15}  ({len(scores)} episodes)", flush=True)


def _print_seconds(case: str, times: Scores) -> None:
    print(f"\n{case}")
    for system, values in times.items():
        print(f"  {system:<36} {statistics.median(values):>8.3f} s  ({len(values)} tasks)", flush=True)


def rows_by(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Results read back: (case, system, metric) → value."""
    return {(row["case"], row["system"], row["metric"]): row["value"] for row in rows}


if __name__ == "__main__":
    main()
