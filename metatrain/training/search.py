"""Search for a delta and an inner loop, by successive halving on validation data sets.

    draw n candidates from the space; score each on b episodes; keep the better half; double b; repeat until one is left

Each round (rung) costs about the same, so most of the budget goes to the candidates that are hard to tell apart (Jamieson and
Talwalkar 2016, arXiv:1502.07943). All candidates of a rung are scored on the same episodes. One run of the inner loop scores every
number of steps in `steps`, so searching that number costs nothing extra. A candidate's score is the accuracy at its best number of
steps, as the mean over the numbers of shots.
"""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from quickstudy.one_line import shown, shown_path

from metatrain.artifacts.baselines import SCALE
from metatrain.artifacts.files import write_atomically
from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import DeltaConfig
from metatrain.errors import RecipeError, first_line
from metatrain.inner.config import InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.inner.problem import start_rates
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.pydantic_errors import first_problem
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.serving.probe import probe
from metatrain.tasks.episodes import Dataset, Episode, EpisodeSampler, EpisodeShape, manifest_digest
from metatrain.training.evaluate import evaluate_steps
from metatrain.training.events import OnEvent
from metatrain.training.recipe import BaseSection, Source, read_model

_MAX_POINTS = 1_000_000


class SearchSpace(BaseModel):
    """The configuration of a search, as read from a YAML file.

    `delta` and `inner` have a list of values for each option that is searched. `rate` has a list of inner learning rates for each
    optimizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    seed: int = Field(default=0, ge=0)
    base: BaseSection = BaseSection()
    delta: dict[str, tuple[Any, ...]] = {}
    inner: dict[str, tuple[Any, ...]] = {}
    rate: dict[Literal["sgd", "momentum", "adam"], tuple[float, ...]] = Field(
        default={"adam": (1e-3, 3e-3)}, min_length=1, description="inner learning rates to try, by optimizer"
    )
    b_std: float = Field(default=0.0, ge=0, description="standard deviation of B at the start; 0 is the base model itself")
    steps: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(default=(0, 1, 3, 5, 10), min_length=1)
    shots: tuple[int, ...] = Field(default=(5,), min_length=1)
    ways: int = Field(default=5, ge=2)
    candidates: int = Field(default=16, ge=2)
    episodes: int = Field(default=8, ge=2, description="episodes for each data set and number of shots on the first rung")
    valid: tuple[Source, ...] = Field(min_length=1)

    @field_validator("base")
    @classmethod
    def _base_is_not_updated(cls, base: BaseSection) -> BaseSection:
        if base.updated:
            raise ValueError("updated: expected nothing, because a search uses the base model itself")
        return base


class Candidate(BaseModel):
    """One point of the search space. `rate`: the inner learning rate of the delta and the head."""

    model_config = ConfigDict(frozen=True)

    delta: DeltaConfig
    inner: InnerConfig
    rate: float

    @property
    def label(self) -> str:
        objective = "+".join(self.inner.objective)
        delta = " ".join(f"{key} {value}" for key, value in self.delta.model_dump(mode="json", exclude={"kind"}).items())
        return f"{objective}, {self.inner.head} head, {self.inner.optimizer} {self.rate:g}, {self.delta.kind} {delta}"


def read_space(path: Path) -> SearchSpace:
    """Read a search space from a YAML file. Raises RecipeError if it is missing, not YAML or invalid."""
    return read_model(path, SearchSpace, "search space")


def draw_candidates(space: SearchSpace) -> list[Candidate]:
    """Draw `space.candidates` different points of the space's grid, or all points if there are fewer.

    Points that are not a valid configuration, such as a linear head without cross-entropy, are left out. Raises RecipeError if no
    point is valid.
    """
    rates = [(optimizer, rate) for optimizer, some in space.rate.items() for rate in some]
    number = len(rates) * math.prod(map(len, (*space.delta.values(), *space.inner.values())))
    if number > _MAX_POINTS:
        raise RecipeError(f"expected a search space of at most {_MAX_POINTS:,} points, got {number:,}")
    points = list(itertools.product(_grid(space.delta), _grid(space.inner), rates))
    order = np.random.default_rng(space.seed).permutation(len(points))
    candidates: list[Candidate] = []
    problem = ""
    for i in order.tolist():
        delta, inner, (optimizer, rate) = points[i]
        try:
            # 0 is a placeholder, because the search scores several numbers of steps.
            config = InnerConfig.model_validate({**inner, "optimizer": optimizer, "steps": 0})
            candidates.append(Candidate.model_validate({"delta": delta, "inner": config, "rate": rate}))
        except ValidationError as error:
            problem = first_problem(error, InnerConfig if error.title == InnerConfig.__name__ else Candidate)
        if len(candidates) == space.candidates:
            break
    if not candidates:
        raise RecipeError(f"no point of the search space is a valid inner loop: {problem}")
    return candidates


def search(space: SearchSpace, data: Path, out: Path, *, on_event: OnEvent = lambda event: None) -> list[dict[str, Any]]:
    """Run the search and return the results of all rungs (rounds), the last rung and the best score first.

    Each score is saved in `out`/search.json as soon as it is known, and the same search resumes from this file. Raises DataError,
    RecipeError and BaseModelError.
    """
    sets = [source.read(data) for source in space.valid]
    base = load_base(space.base.model, precision=space.base.precision, max_length=space.base.max_length)
    encoded = Encoded(base, space.base.train_max_length)
    remaining = draw_candidates(space)
    path = out / "search.json"
    out.mkdir(parents=True, exist_ok=True)
    scores_by_key = _finished(path)
    results: list[dict[str, Any]] = []
    settings = [space.seed, space.b_std, space.steps, space.base.train_max_length, base.spec.model_dump(), str(base.dtype)]
    rungs = math.floor(math.log2(len(remaining))) + 1
    for rung in range(rungs):
        episodes = _episodes(space, sets, space.episodes * 2**rung)
        scored = []
        for candidate in remaining:
            key = json.dumps([*settings, [manifest_digest(drawn) for drawn in episodes.values()], candidate.model_dump_json()])
            if key not in scores_by_key:
                scores_by_key[key] = _score(base, encoded, space, candidate, episodes)
                write_atomically(path, json.dumps(scores_by_key, indent=1).encode())
            result = scores_by_key[key]
            scored.append((result["score"], candidate))
            on_event({"event": "candidate", "rung": rung, "of": rungs, "label": candidate.label, **result})
            described = {"label": candidate.label, "candidate": candidate.model_dump(mode="json")}
            results.append({"rung": rung, **described, **result})
        scored.sort(key=lambda pair: -pair[0])
        remaining = [candidate for _, candidate in scored[: max(1, len(scored) // 2)]]
    return sorted(results, key=lambda result: (-result["rung"], -result["score"]))


def _score(
    base: Base, encoded: Encoded, space: SearchSpace, candidate: Candidate, episodes: dict[int, list[Episode]]
) -> dict[str, Any]:
    kind = base.attach(candidate.delta)
    probe(base, kind)
    theta = kind.initial(torch.Generator().manual_seed(space.seed), b_std=space.b_std)
    rates = start_rates([*theta, *HEAD_LEAVES], candidate.rate)
    init = Initialization("candidate", base.spec, candidate.delta, candidate.inner, theta, rates, SCALE, "none", {})
    by_shots: dict[str, dict[str, float]] = {}
    seconds = 0.0
    for shots, drawn in episodes.items():
        marks = space.steps if shots > 1 or candidate.inner.teaches_one_shot(len(drawn[0].support)) else (0,)
        scores = evaluate_steps(base, init, drawn, marks, encoded=encoded)
        by_shots[str(shots)] = {str(step): score.mean for step, score in scores.items()}
        seconds += scores[max(marks)].seconds_per_task
    best = {shots: max(by_step, key=lambda step: by_step[step]) for shots, by_step in by_shots.items()}
    score = sum(by_shots[shots][step] for shots, step in best.items()) / len(best)
    return {"score": score, "best_steps": {k: int(v) for k, v in best.items()}, "accuracy": by_shots, "seconds": seconds}


def _episodes(space: SearchSpace, sets: Sequence[Dataset], count: int) -> dict[int, list[Episode]]:
    """Draw the episodes of a rung: {shots: episodes}, with `count` episodes of each data set."""
    return {
        shots: [
            EpisodeSampler([one], space.seed + 1).episode(i, EpisodeShape(min(space.ways, len(one.texts)), shots, 5))
            for one in sets
            for i in range(count)
        ]
        for shots in space.shots
    }


def _finished(path: Path) -> dict[str, Any]:
    """Return the scores in an earlier search's file, {key: result}; an empty dict if there is no file.

    Raises RecipeError if the file is damaged.
    """
    try:
        scores = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{shown_path(path)}: not JSON: {first_line(error)}; choose another --out folder") from error
    if not isinstance(scores, dict):
        raise RecipeError(f"{shown_path(path)}: expected the scores of a search, got {shown(scores)}; choose another --out folder")
    return scores


def _grid(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
