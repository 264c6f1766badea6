"""`make bench-transfer`: measure how meta-training and adaptation improve accuracy on unseen data.

There are three folds (`benchmarks.folds`). The initialization of a fold is trained without the fold's data sets and tested on them.
For far transfer, the first fold's initialization is tested on the published validation sets of `text_mix`, which no initialization
is trained on. Every system gets the same episodes, except that SetFit, which takes most of the time, gets only some of them. Our
initialization is scored after several fixed numbers of inner steps, and after the number that a request would use ("quickstudy").

Accuracy is measured with several tasks in one batch, and stored in `results/parts/transfer.json`, with the results, separately for
each precision of the base model. With `--seconds` the benchmark measures seconds instead, on single tasks of the folds; the machine
should be idle. Seconds do not depend on the learned values, so they are measured with the shipped default initialization. They are
written to separate results (`transfer-seconds`). The benchmark can be resumed. To share the work between processes, use `--part`
and `--system`.
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
from metatrain.tasks.table import read_table
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
"""The numbers of inner steps after which a system is scored; None: the system chooses."""
Scores = dict[str, list[float]]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Part:
    """The episodes of one case.

    `fold`: the fold whose initialization was not trained on their data sets. `for_setfit`: the indices of the episodes that SetFit
    gets.
    """

    fold: str
    case: str
    shots: int
    episodes: list[Episode]
    for_setfit: list[int]

    @property
    def near(self) -> bool:
        """True if the episodes are from the data sets of the fold, and False for far transfer."""
        return self.case.startswith(self.fold)


def parts(data: Path, names: Sequence[str], near: int, far: int, setfit_near: int, setfit_far: int) -> Iterator[Part]:
    """Yield the parts of the folds in `names`, and those of far transfer if `names` has "far".

    An empty `names` selects all parts. `near` and `far`: the number of episodes in a part of a fold or of far transfer.
    `setfit_near` and `setfit_far`: the same for SetFit, which gets only a quarter of these episodes at 10 shots.
    """
    for fold, sets in FOLDS.items():
        if not names or fold in names:
            for shots in SHOTS["near"]:
                episodes = _episodes([data / name / "full.jsonl.gz" for name in sets], shots, near)
                for_setfit = _spread(near, _setfit_count(shots, setfit_near))
                yield Part(fold, f"{fold}, 5-way {shots}-shot", shots, episodes, for_setfit)
    for name in FAR:
        if not names or "far" in names:
            for shots in SHOTS["far"]:
                episodes = _episodes([data / "text_mix" / name / "full.jsonl.gz"], shots, far)
                case = f"far: {name}, {len(episodes[0].labels)}-way {shots}-shot"
                yield Part(next(iter(FOLDS)), case, shots, episodes, _spread(far, _setfit_count(shots, setfit_far)))


def _episodes(paths: list[Path], shots: int, count: int) -> list[Episode]:
    """Draw `count` episodes, from the data sets in turn, and sort them by data set."""
    samplers = [EpisodeSampler([read_table(path)], seed=4321) for path in paths]
    ways = min(5, *(len(s.datasets[0].texts) for s in samplers))
    drawn = [samplers[i % len(samplers)].episode(i // len(samplers), EpisodeShape(ways, shots, 5)) for i in range(count)]
    return sorted(drawn, key=lambda episode: episode.dataset)


def _spread(count: int, some: int) -> list[int]:
    """Return `some` evenly spaced indices below `count`, or all of them if `some` is at least `count`.

    The episodes of a part are sorted by data set, so even spacing includes every data set.
    """
    return [i * count // some for i in range(some)] if some < count else list(range(count))


def _setfit_count(shots: int, episodes: int) -> int:
    # At 10 shots SetFit trains on 2,000 pairs a task, more than a minute on one core, so it gets a quarter of the episodes.
    return max(1, episodes // 4) if shots == 10 else episodes


class Unfinished(Exception):
    """A measurement that a report needs has not been run."""


class Arena:
    """A runner of systems on the episodes of one part, which stores finished measurements.

    A stored accuracy is used on all machines, stored seconds only on the machine that measured them. `shipped`: True uses the
    shipped default initialization as ours, False that of the fold. `report`: True runs nothing and raises Unfinished if a
    measurement is missing.
    """

    def __init__(self, base: Base, encoded: Encoded, part: Part, *, shipped: bool, report: bool) -> None:
        self.base, self.encoded, self.part, self.shipped, self.report = base, encoded, part, shipped, report
        self._accuracies, self._seconds = Progress("transfer", kept=True), Progress("transfer-seconds")
        self.digest = manifest_digest(part.episodes)
        self.episodes_with_label_words = [with_label_words(episode) for episode in part.episodes]

    @cached_property
    def ours(self) -> Initialization:
        """Our meta-trained initialization. It is loaded only when a system needs it."""
        return load_initialization(DEFAULT_INITIALIZATION if self.shipped else fold_initialization(self.part.fold), self.base)

    def _start(self, system: str) -> Initialization:
        """Return the initialization that a system adapts from."""
        if system in (FROZEN, FROZEN_WORDS):
            return frozen_prototypes(self.base)
        if system == PLAIN:
            return lora_from_zero(self.base, steps=PLAIN_STEPS)
        return _from_zero(self.base, fold_recipe(self.part.fold)) if system == SAME_LOOP else self.ours

    def accuracies(self, system: str) -> Scores:
        """Return the accuracies of a system on the episodes, by the system's name.

        For a system that is scored after several numbers of inner steps, there is one entry for each number.
        """
        if system == SETFIT:
            return {SETFIT: [self._setfit_accuracy(self.part.episodes[i]) for i in self.part.for_setfit]}
        key = self._key(self._identity(system))
        scores = self._kept(self._accuracies, key, lambda: self._run(system, self._episodes(system))[0])
        if system != OURS:
            return scores
        served_steps = self._kept(
            self._accuracies,
            self._key(["own steps", fold_recipe(self.part.fold).digest, str(self.base.dtype)]),
            lambda: self._served_steps(self.part.episodes),
        )
        return scores | _as_served(scores, served_steps)

    def _served_steps(self, episodes: Sequence[Episode]) -> Sequence[int]:
        """Return the number of inner steps that a request with each of these episodes would take."""
        return own_steps(self.base, self.ours, episodes, encoded=self.encoded)

    def _setfit_accuracy(self, episode: Episode) -> float:
        key = [SETFIT, SETFIT_VERSION, manifest_digest([episode])]
        return self._kept(self._accuracies, key, lambda: accuracy(_setfit(episode), episode))

    def seconds(self, system: str) -> Scores:
        """Measure a system on single tasks, and return the seconds per task, by the system's name.

        The first task runs twice, and its first run only warms up. SetFit has no warm-up, because it takes too long.
        """
        if system == SETFIT:
            timed = [self.part.episodes[i] for i in _spread(len(self.part.episodes), TIMED_SETFIT)]
            key = self._key([SETFIT, SETFIT_VERSION, machine()])
            return self._kept(self._seconds, key, lambda: {SETFIT: [_setfit(e).seconds for e in timed]})
        episodes = [self._episodes(system)[i] for i in _spread(len(self.part.episodes), TIMED)]

        def measure() -> Scores:
            times: Scores = {}
            for episode in [episodes[0], *episodes]:
                for name, seconds in self._run(system, [episode])[1].items():
                    times.setdefault(name, []).append(seconds)
            times = {name: values[1:] for name, values in times.items()}
            return times | _as_served(times, self._served_steps(episodes)) if system == OURS else times

        return self._kept(self._seconds, self._key([*self._identity(system), machine()]), measure)

    def _episodes(self, system: str) -> list[Episode]:
        return self.episodes_with_label_words if system in (FROZEN_WORDS, OURS_WORDS) else self.part.episodes

    def _run(self, system: str, episodes: Sequence[Episode]) -> tuple[Scores, dict[str, float]]:
        """Run a system on episodes, and return the accuracy of each and the seconds per task.

        Both are by the system's name, with the number of inner steps added if there are several.
        """
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
                evaluation = evaluate(self.base, init, episodes, encoded=self.encoded, progress=bar.update)
                return {system: list(evaluation.accuracy)}, {system: evaluation.seconds_per_task}
            by_step = evaluate_steps(self.base, init, episodes, marks, encoded=self.encoded, progress=bar.update)
        names = {mark: _after(system, mark) if system in (SAME_LOOP, OURS) else system for mark in by_step}
        return {names[m]: list(s.accuracy) for m, s in by_step.items()}, {names[m]: s.seconds_per_task for m, s in by_step.items()}

    def _identity(self, system: str) -> list[Any]:
        if system == PROBE:
            return [PROBE, str(self.base.dtype)]
        # A fold's initialization is identified by its recipe, because training it on another machine may round differently.
        trained_by_fold = system in (OURS, OURS_WORDS) and not self.shipped
        digest = fold_recipe(self.part.fold).digest if trained_by_fold else self._start(system).digest
        return [system, digest, MARKS[system], str(self.base.dtype)]

    def _key(self, identity: list[Any]) -> list[Any]:
        return [self.part.case, self.digest, *identity]

    def _kept(self, progress: Progress, key: list[Any], measure: Callable[[], Kept]) -> Kept:
        """Return the stored measurement for `key`. If there is none, run `measure` and store its result.

        With `report`, raises Unfinished instead of running `measure`.
        """
        text = json.dumps(key)
        if progress.get(text) is None:
            if self.report:
                raise Unfinished
            progress.put(text, measure())
        kept: Kept = progress.get(text)
        return kept


def _setfit(episode: Episode) -> Answer:
    return setfit(episode.support, [text for text, _ in episode.query])


def _after(system: str, steps: int) -> str:
    return f"{system}, {steps} steps"


def _as_served(by_step: Scores, served_steps: Sequence[int]) -> Scores:
    """Return our scores with the number of inner steps that a request would use.

    `by_step`: the scores after each number of steps. `served_steps`: the number that a request would use, for each episode.
    """
    return {OURS: [by_step[_after(OURS, steps)][episode] for episode, steps in enumerate(served_steps)]}


def _from_zero(base: Base, recipe: Recipe) -> Initialization:
    """Return an initialization with our delta, objective and head, but without meta-learned values.

    LoRA starts as in PEFT. The learning rate of the delta is 1e-3 and that of the head 3e-3.
    """
    theta = base.attach(recipe.delta).initial(torch.Generator().manual_seed(0))
    rates = {name: torch.tensor([3e-3 if name in HEAD_LEAVES else 1e-3]) for name in (*theta, *HEAD_LEAVES)}
    return Initialization("from-zero", base.spec, recipe.delta, recipe.inner, theta, rates, SCALE, "none", {})


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--episodes", default=200, show_default=True)
@click.option("--far-episodes", default=60, show_default=True)
@click.option("--setfit-episodes", default=40, show_default=True)
@click.option("--far-setfit-episodes", default=12, show_default=True)
@click.option("--part", "names", type=click.Choice([*FOLDS, "far"]), multiple=True, help="Only this part.")
@click.option("--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="Only this system.")
@click.option(
    "--precision", type=click.Choice(get_args(Precision)), default="auto", show_default=True, help="Precision of the base model."
)
@click.option("--seconds", is_flag=True, help="Measure the seconds of single tasks instead; the machine should be idle.")
@click.option("--report", is_flag=True, help="Run nothing; write the results of all finished parts and systems.")
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
    is_complete = not names and not systems
    fold_results: dict[int, list[tuple[Part, Scores]]] = {}
    if seconds:
        names = names or tuple(FOLDS)
    for part in parts(data, names, episodes, far_episodes, setfit_episodes, far_setfit_episodes):
        arena = Arena(base, encoded, part, shipped=seconds, report=report)
        results: Scores = {}
        for system in [s for s in systems or SYSTEMS if s != SETFIT or len(part.for_setfit) > 1]:
            try:
                results |= arena.seconds(system) if seconds else arena.accuracies(system)
            except Unfinished:
                unfinished.append(f"{part.case}: {system}")
        rows += _seconds_rows(part, results) if seconds else _rows(part, results)
        (_print_seconds if seconds else _print)(part.case, results)
        if part.near:
            fold_results.setdefault(part.shots, []).append((part, results))
    if not names:
        for shots, parts_results in fold_results.items():
            part, results = _combined(f"all folds, 5-way {shots}-shot", parts_results)
            rows += _rows(part, results)
            _print(part.case, results)
    if report and all(row.system == SETFIT for row in rows):
        raise click.ClickException(f"nothing written: only SetFit is finished in {base.precision}; try another --precision")
    if is_complete:
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
                rows += difference_rows(part.case, system, other, *_on_common_episodes(part, system, other, results))
    return rows


def _combined(case: str, parts_results: list[tuple[Part, Scores]]) -> tuple[Part, Scores]:
    """Combine several parts into one, with the systems that have results for all of them."""
    in_all_parts = set.intersection(*(set(results) for _, results in parts_results))
    scores = {
        system: [score for _, results in parts_results for score in results[system]]
        for system in parts_results[0][1]
        if system in in_all_parts
    }
    first, episodes, for_setfit = parts_results[0][0], list[Episode](), list[int]()
    for part, _ in parts_results:
        for_setfit += [len(episodes) + i for i in part.for_setfit]
        episodes += part.episodes
    return replace(first, case=case, episodes=episodes, for_setfit=for_setfit), scores


def _seconds_rows(part: Part, times: Scores) -> list[Row]:
    return [Row(part.case, system, "seconds to adapt", statistics.median(values), "s") for system, values in times.items()]


def _on_common_episodes(part: Part, left: str, right: str, results: Scores) -> tuple[list[float], list[float]]:
    """Return the scores of two systems on their common episodes. SetFit has only some of the episodes."""
    with_setfit = SETFIT in (left, right)
    a, b = ([results[s][i] for i in part.for_setfit] if with_setfit and s != SETFIT else results[s] for s in (left, right))
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
    """Return the values in the rows of a results file, by (case, system, metric)."""
    return {(row["case"], row["system"], row["metric"]): row["value"] for row in rows}


if __name__ == "__main__":
    main()
