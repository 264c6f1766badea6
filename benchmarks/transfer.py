"""`make bench-transfer`: what meta-training and a second of adaptation are worth on data sets that were never seen.

Three folds (`benchmarks.folds`), each trained without the fold's data and tested on it, and far transfer: the validation sets of
`text_mix`, which no fold trains on, under the first fold's initialization. Every system meets the same episodes; SetFit, which
takes most of the time, some of them. Accuracy runs several tasks a pass; seconds are taken on single tasks, with `--seconds`, on a
machine with nothing else to do. Resumes; `--part` and `--system` share the work between processes.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from benchmarks.folds import FOLDS, fold_initialization
from benchmarks.record import Progress, Row, write
from benchmarks.systems import Answer, accuracy, linear_probe, setfit
from metatrain.artifact import Initialization, load_initialization
from metatrain.base.text import TextBase, load_text_base
from metatrain.baselines import frozen_prototypes, lora_from_zero
from metatrain.data.jsonl import read_jsonl
from metatrain.episode import Episode, EpisodeSampler, EpisodeShape, manifest_digest
from metatrain.evaluate import evaluate_steps, paired_interval
from metatrain.taskbatch import Tokenized

FAR = ("csabstruct", "emobank_genre", "opentrivia", "ukp_debate")
STEPS = (0, 1, 3, 5, 10)
SHOTS = {"near": (1, 5, 10), "far": (5, 10)}
TIMED = 5
FROZEN, PROBE, PLAIN, SETFIT = "frozen prototypes", "linear probe", "plain LoRA from zero", "SetFit"
CONTRASTIVE = "contrastive LoRA from zero"
OURS = "quickstudy"
SYSTEMS = (FROZEN, PROBE, PLAIN, CONTRASTIVE, SETFIT, OURS)


@dataclass(frozen=True)
class Part:
    """Episodes of one case: `fold` names the initialization that has not seen them."""

    fold: str
    case: str
    episodes: list[Episode]


def parts(data: Path, names: tuple[str, ...], count: int) -> Iterator[Part]:
    for fold, sets in FOLDS.items():
        if not names or fold in names:
            for shots in SHOTS["near"]:
                paths = [data / name / "full.jsonl.gz" for name in sets]
                yield Part(fold, f"{fold}, 5-way {shots}-shot", _episodes(paths, shots, count))
    for name in FAR:
        if not names or "far" in names:
            for shots in SHOTS["far"]:
                episodes = _episodes([data / "text_mix" / name / "full.jsonl.gz"], shots, count)
                yield Part(next(iter(FOLDS)), f"far: {name}, {len(episodes[0].labels)}-way {shots}-shot", episodes)


def _episodes(paths: list[Path], shots: int, count: int) -> list[Episode]:
    """The same number from each data set, in turn."""
    samplers = [EpisodeSampler([read_jsonl(path)], seed=4321) for path in paths]
    ways = min(5, *(len(s.datasets[0].texts) for s in samplers))
    drawn = [samplers[i % len(samplers)].episode(i // len(samplers), EpisodeShape(ways, shots, 5)) for i in range(count)]
    return sorted(drawn, key=lambda episode: episode.dataset)


class Arena:
    """Runs systems on episodes, keeping what is finished."""

    def __init__(self, base: TextBase, progress: Progress, setfit_episodes: int) -> None:
        self.base, self.progress, self.setfit_episodes = base, progress, setfit_episodes
        self.tokenized = Tokenized(base)
        zero = lora_from_zero(base)
        contrastive = zero.inner.model_copy(update={"objective": {"supervised_contrastive": 1.0}, "head": "prototypes"})
        self.fixed = {
            FROZEN: (frozen_prototypes(base), (0,)),
            PLAIN: (zero, (zero.inner.steps,)),
            CONTRASTIVE: (Initialization(**{**vars(zero), "inner": contrastive}), (zero.inner.steps,)),
        }

    def run(self, part: Part, system: str, init: Initialization | None) -> dict[str, list[float]]:
        """Accuracy of each episode, by system (ours: one for each number of steps)."""
        digest = manifest_digest(part.episodes)
        if system == SETFIT:
            return {SETFIT: [self._one(part, i, digest)[0] for i in self._setfit_numbers(part)]}
        own, marks = (init, STEPS) if init is not None else self.fixed.get(system, (None, ()))
        key = json.dumps([part.case, system, own.digest if own else "", marks, str(self.base.dtype), digest])
        if self.progress.get(key) is None:
            self.progress.put(key, self._accuracies(part, system, init))
        result: dict[str, list[float]] = self.progress.get(key)
        return result

    def _accuracies(self, part: Part, system: str, init: Initialization | None) -> dict[str, list[float]]:
        with tqdm(total=len(part.episodes), desc=f"{part.case}, {system}", leave=False, disable=None) as bar:
            if system == PROBE:
                scores = []
                for episode in part.episodes:
                    scores.append(accuracy(self._probe(episode), episode))
                    bar.update()
                return {PROBE: scores}
            if init is not None:
                marks = STEPS if _teachable(part, init) else (0,)
                by_step = evaluate_steps(self.base, init, part.episodes, marks, tokenized=self.tokenized, progress=bar.update)
                return {f"{OURS}, {step} steps": list(scores.accuracy) for step, scores in by_step.items()}
            own, steps = self.fixed[system]
            if not _teachable(part, own):
                steps = (0,)
            by_step = evaluate_steps(self.base, own, part.episodes, steps, tokenized=self.tokenized, progress=bar.update)
            return {system: list(next(iter(by_step.values())).accuracy)}

    def seconds(self, part: Part, system: str, init: Initialization | None) -> dict[str, list[float]]:
        """Seconds to adapt single tasks, one at a time."""
        found: dict[str, list[float]] = {}
        for episode in part.episodes[:: max(1, len(part.episodes) // TIMED)][:TIMED]:
            if system == SETFIT:
                found.setdefault(SETFIT, []).append(setfit(episode.support, [episode.query[0][0]]).seconds)
            elif system == PROBE:
                found.setdefault(PROBE, []).append(self._probe(episode).seconds)
            else:
                own, marks = (init, STEPS) if init is not None else self.fixed[system]
                if not _teachable(part, own):
                    marks = (0,)
                evaluate_steps(self.base, own, [episode], marks[:1], tokenized=self.tokenized)
                for step, scores in evaluate_steps(self.base, own, [episode], marks, tokenized=self.tokenized).items():
                    found.setdefault(f"{OURS}, {step} steps" if init is not None else system, []).append(scores.seconds_per_task)
        return found

    def _probe(self, episode: Episode) -> Answer:
        return linear_probe(self.base, self.tokenized, episode.support, [text for text, _ in episode.query])

    def _setfit_numbers(self, part: Part) -> list[int]:
        """Spread over the episodes, so that every data set of the part is met."""
        every = max(1, len(part.episodes) // self.setfit_episodes)
        return list(range(0, len(part.episodes), every))[: self.setfit_episodes]

    def _one(self, part: Part, number: int, digest: str) -> tuple[float, float]:
        key = json.dumps([part.case, SETFIT, number, digest])
        if self.progress.get(key) is None:
            episode = part.episodes[number]
            answer = setfit(episode.support, [text for text, _ in episode.query])
            self.progress.put(key, [accuracy(answer, episode), answer.seconds])
        score, seconds = self.progress.get(key)
        return score, seconds


def _teachable(part: Part, init: Initialization) -> bool:
    return init.inner.teaches_one_shot or len(part.episodes[0].support) > len(part.episodes[0].labels)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--episodes", "count", default=200, show_default=True)
@click.option("--setfit-episodes", default=40, show_default=True)
@click.option("--part", "names", type=click.Choice([*FOLDS, "far"]), multiple=True, help="Only this part.")
@click.option("--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="Only this system.")
@click.option("--seconds/--no-seconds", default=True, help="Time single tasks too; wants a machine at rest.")
def main(data: Path, count: int, setfit_episodes: int, names: tuple[str, ...], systems: tuple[str, ...], seconds: bool) -> None:
    base = load_text_base()
    progress = Progress("transfer")
    arena, rows = Arena(base, progress, setfit_episodes), []
    began = time.strftime("%Y-%m-%d")
    for part in parts(data, names, count):
        results: dict[str, list[float]] = {}
        times: dict[str, list[float]] = {}
        init = load_initialization(fold_initialization(part.fold), base) if not systems or OURS in systems else None
        for system in systems or SYSTEMS:
            own = init if system == OURS else None
            results |= arena.run(part, system, own)
            if seconds:
                key = json.dumps([part.case, "seconds", system, own.digest if own else "", str(base.dtype)])
                if progress.get(key) is None:
                    progress.put(key, arena.seconds(part, system, own))
                times |= progress.get(key)
        rows += _rows(part, results, times, arena)
        _print(part.case, results, times)
    if not names and not systems:
        about = {"begun": began, "episodes": count, "setfit_episodes": setfit_episodes, "precision": str(base.dtype)}
        print(f"\nwrote {write('transfer', rows, **about)}")


def _rows(part: Part, results: dict[str, list[float]], times: dict[str, list[float]], arena: Arena) -> list[Row]:
    rows = []
    for system, scores in results.items():
        rows.append(Row(part.case, system, "accuracy", sum(scores) / len(scores), "share"))
        for other in (FROZEN, f"{OURS}, 0 steps", SETFIT):
            pair = _paired(arena, part, system, other, results)
            if pair is not None and other != system:
                rows.append(Row(part.case, system, f"over {other}", pair[0], "share"))
                rows.append(Row(part.case, system, f"over {other}, 95 % interval, half", pair[1], "share"))
        if system in times:
            rows.append(Row(part.case, system, "seconds to adapt", sum(times[system]) / len(times[system]), "s"))
    return rows


def _paired(arena: Arena, part: Part, left: str, right: str, results: dict[str, list[float]]) -> tuple[float, float] | None:
    """On the episodes that both have met."""
    if left not in results or right not in results:
        return None
    numbers = arena._setfit_numbers(part)
    a, b = results[left], results[right]
    if SETFIT in (left, right):
        a = a if left == SETFIT else [a[i] for i in numbers]
        b = b if right == SETFIT else [b[i] for i in numbers]
    return paired_interval(a, b)


def _print(case: str, results: dict[str, list[float]], times: dict[str, list[float]]) -> None:
    print(f"\n{case}")
    frozen = results.get(FROZEN)
    for system, scores in results.items():
        over = ""
        if frozen is not None and len(frozen) == len(scores):
            difference, half = paired_interval(scores, frozen)
            over = f"{100 * difference:+.2f} ± {100 * half:.2f}"
        spent = f"{sum(times[system]) / len(times[system]):.3f} s" if system in times else ""
        print(f"  {system:<28} {sum(scores) / len(scores):>8.2%} {over:>15} {spent:>10}  ({len(scores)} episodes)")


def rows_by(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Results read back: (case, system, metric) → value."""
    return {(row["case"], row["system"], row["metric"]): row["value"] for row in rows}


if __name__ == "__main__":
    main()
