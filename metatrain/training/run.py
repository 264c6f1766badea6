"""The outer loop: from a recipe to an initialization, resumable to the bit.

Every draw depends on (seed, step) alone and the checkpoint holds everything else (the outer leaves, Adam's moments, the best
so far), so a run that is killed and started again gives the bits of one that was not.
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metatrain.artifacts.files import write_atomically
from metatrain.artifacts.initialization import Initialization, save_initialization
from metatrain.deltas import DeltaKind
from metatrain.errors import DataError, NonFinite, RecipeError
from metatrain.inner.encoded import Encoded
from metatrain.inner.problem import Outer, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.meta.algorithms import Algorithm
from metatrain.meta.metagrad import MetaGradient
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.readouts.classes import ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.serving.probe import probe
from metatrain.tasks.episodes import (
    Dataset,
    Episode,
    EpisodeSampler,
    EpisodeShape,
    assert_class_disjoint,
    assert_enough,
    draw_shape,
    largest_shapes,
    manifest_digest,
)
from metatrain.tasks.overlap import without_overlap
from metatrain.training.evaluate import evaluate
from metatrain.training.events import OnEvent
from metatrain.training.outer_step import CHECKPOINT, OuterState, outer_step, unusable_gradient
from metatrain.training.processes import ALONE, Processes
from metatrain.training.recipe import Recipe

VALIDATION_QUERIES = 5


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    on_event: OnEvent = lambda event: None,
    max_steps: int | None = None,
    processes: Processes = ALONE,
) -> Initialization:
    """Meta-train `recipe` with its data under `data`; write checkpoints, `history.json` and the initialization to `out`.

    Continues from `out` where it holds a checkpoint of this very recipe, base model and data. `max_steps` stops early, to be
    continued. Early stopping: the best validation score's leaves are what is saved. `processes` share each meta-batch's tasks.

    Raises DataError, RecipeError, BaseModelError, NonFinite and NoMetaGradient.
    """
    run = _Run.prepare(recipe, data, out, on_event, processes)
    state = run.state
    last = recipe.outer.steps if max_steps is None else min(max_steps, recipe.outer.steps)
    if state.step == 0 and not state.history:
        run.validate()
    while state.step < last and not run.out_of_patience():
        run.outer_step()
        if state.step % recipe.validation.every == 0 or state.step == recipe.outer.steps:
            run.validate()
            run.save_checkpoint()
    run.save_checkpoint()
    result = run.initialization(state.best_leaves)
    if processes.first:
        write_atomically(out / "history.json", json.dumps(state.history, indent=1).encode())
        save_initialization(result, out / recipe.name, run.kind)
    return result


@dataclass(frozen=True)
class _Run:
    """What a run goes by, and the `state` that it moves."""

    recipe: Recipe
    kind: DeltaKind
    encoded: Encoded
    train_sets: list[Dataset]
    dropped: list[str]
    sampler: EpisodeSampler
    validation: list[Episode]
    checkpoint: Path
    digest: str
    state: OuterState
    on_event: OnEvent
    processes: Processes

    @classmethod
    def prepare(cls, recipe: Recipe, data: Path, out: Path, on_event: OnEvent, processes: Processes) -> "_Run":
        """At the checkpoint in `out`, or at the start where it holds none. Raises what `train` does before its first step."""
        train_sets, valid_sets, dropped = read_data(recipe, data)
        assert_episodes(recipe, train_sets, valid_sets)
        base = load_base(
            recipe.base.model,
            precision=recipe.base.precision,
            attention=attention_for(recipe.algorithm),
            max_length=recipe.base.max_length,
        )
        kind = base.attach(recipe.delta)
        probe(base, kind)
        encoded = Encoded(base, recipe.base.train_max_length)
        sampler = _sampler(recipe, encoded, train_sets)
        validation = validation_episodes(recipe, valid_sets)
        on_event({"event": "data", "train": _sizes(train_sets), "valid": _sizes(valid_sets), "dropped": dropped})
        out.mkdir(parents=True, exist_ok=True)
        checkpoint, digest = out / CHECKPOINT, _run_digest(recipe, base, train_sets, validation)
        state = OuterState.load(checkpoint, digest) or OuterState.start(_start(recipe, base, kind))
        return cls(recipe, kind, encoded, train_sets, dropped, sampler, validation, checkpoint, digest, state, on_event, processes)

    def outer_step(self) -> None:
        """One meta-batch, shared by the processes."""
        began, state = time.perf_counter(), self.state
        episodes = _meta_batch(self.recipe, self.sampler, state.step)
        share = [episodes[i] for i in self.processes.share(len(episodes))]
        own, why = self._own_gradient(share)
        gradient = self.processes.mean(own, state.leaves, len(share))
        norm = outer_step(self.recipe.outer, state, gradient, why)
        event: dict[str, Any] = {"event": "step", "step": state.step, "tasks": len(episodes), "skipped": state.skipped}
        if not math.isnan(norm):
            event |= {"loss": gradient.loss, "accuracy": gradient.accuracy, "gradient_norm": norm}
            event |= {"support_loss": gradient.support_loss, "mode": gradient.mode}
        if gradient.residual is not None:
            event["residual"] = gradient.residual
        state.history.append(event)
        self.on_event({**event, "of": self.recipe.outer.steps, "seconds": time.perf_counter() - began})

    def _own_gradient(self, episodes: list[Episode]) -> tuple[MetaGradient | None, str]:
        """Of this process's episodes, None where it has none; and why it could not be taken, where it could not."""
        if not episodes:
            return None, ""
        recipe, inner, leaves = self.recipe, self.recipe.recorded_inner, self.state.leaves
        base = self.encoded.base
        tasks = Supervised(base, self.kind, ClassReadout, inner, *self.encoded.batch(episodes), anchor=recipe.outer.anchor)
        outer = Outer.from_leaves(leaves).on(base.device)
        try:
            return recipe.algorithm.meta_gradient(tasks, outer, inner.update, self.state.step), ""
        except NonFinite as problem:
            return unusable_gradient(leaves), str(problem)
        except ValueError as problem:  # a mode that this base model cannot be differentiated in
            raise RecipeError(f"algorithm.gradient: {problem}") from problem

    def validate(self) -> None:
        """Score what is kept so far, and remember the best."""
        state = self.state
        kept = state.kept(self.recipe.outer)
        by_shots, by_set = validation_scores(self.initialization(kept), self.validation, self.recipe.validation.shots, self.encoded)
        score = self.processes.agree(sum(by_shots.values()) / len(by_shots))
        if score > state.best_score:
            state.best_score, state.best_step, state.best_leaves = score, state.step, dict(kept)
        event = {"event": "validation", "step": state.step, "score": score, "best_step": state.best_step, "by_shots": by_shots}
        event["by_set"] = by_set
        state.history.append(event)
        self.on_event(event)

    def out_of_patience(self) -> bool:
        validations: list[int] = [event["step"] for event in self.state.history if event["event"] == "validation"]
        return sum(step > self.state.best_step for step in validations) >= self.recipe.validation.patience

    def save_checkpoint(self) -> None:
        if self.processes.first:
            self.state.save(self.checkpoint, self.digest)

    def initialization(self, leaves: dict[str, Tensor]) -> Initialization:
        """Of these outer leaves, with what the run is known by."""
        recipe, state, outer = self.recipe, self.state, Outer.from_leaves(leaves)
        assert outer.scale is not None
        provenance = {
            "recipe": json.loads(recipe.model_dump_json()),
            "recipe_digest": recipe.digest,
            "outer_steps": state.best_step,
            "validation_score": state.best_score if math.isfinite(state.best_score) else None,
            "validation_episodes_digest": manifest_digest(self.validation),
            "training_sets": _sizes(self.train_sets),
            "dropped": self.dropped,
            "attribution": recipe.data.attribution,
        }
        return Initialization(
            recipe.name,
            self.encoded.base.spec,
            recipe.delta,
            recipe.recorded_inner,
            outer.theta,
            outer.rates,
            float(outer.scale),
            recipe.algorithm.title,
            provenance,
            outer.base,
        )


def read_data(recipe: Recipe, data: Path) -> tuple[list[Dataset], list[Dataset], list[str]]:
    """Training and validation sets, and what was dropped: from training because the held-out data has it, from validation
    because the training or the held-out data has it. A validation set left with fewer classes than an episode's ways goes."""
    train_sets = [source.read(data) for source in recipe.data.train]
    valid_sets = [source.read(data) for source in recipe.data.valid]
    held_out = [source.read(data) for source in recipe.data.held_out]
    assert_class_disjoint(train_sets, valid_sets, "data.train and data.valid")
    assert_class_disjoint(train_sets, held_out, "data.train and data.held_out")
    assert_class_disjoint(valid_sets, held_out, "data.valid and data.held_out")
    kept, dropped = without_overlap(train_sets, held_out)
    if not kept:
        raise DataError("data.train: nothing is left once held-out texts are taken out")
    unseen, dropped_valid = without_overlap(valid_sets, [*kept, *held_out])
    unseen = [d for d in unseen if len(d.texts) >= recipe.validation.ways]
    if not unseen:
        raise DataError(f"data.valid: no set has {recipe.validation.ways} classes that training does not have")
    return kept, unseen, [f"training: {line}" for line in dropped] + [f"validation: {line}" for line in dropped_valid]


def assert_episodes(recipe: Recipe, train_sets: list[Dataset], valid_sets: list[Dataset]) -> None:
    """Raises DataError where the largest episodes that training may draw, or those of validation, want more than there is."""
    drawn = recipe.episodes
    for shape in largest_shapes(drawn.ways, drawn.shots, drawn.queries, drawn.rows):
        assert_enough(train_sets, shape, "episodes:")
    for shots in recipe.validation.shots:
        shape = EpisodeShape(recipe.validation.ways, shots, VALIDATION_QUERIES)
        for one_set in valid_sets:
            assert_enough([one_set], shape, f"validation: of data.valid, {one_set.name}:")


def class_similarity(encoded: Encoded, datasets: list[Dataset], *, texts: int = 16) -> list[NDArray[np.float32]]:
    """Cosine between the base model's class means over the first `texts` texts of each class: [C, C] for each data set."""
    found = []
    for dataset in datasets:
        means = []
        for own in dataset.texts.values():
            means.append(nn.functional.normalize(encoded.features(own[:texts]).mean(0), dim=0))
        stacked = torch.stack(means).cpu()
        found.append((stacked @ stacked.T).numpy())
    return found


def validation_episodes(recipe: Recipe, valid_sets: list[Dataset]) -> list[Episode]:
    """The same episodes at every validation: an equal number from each validation set, for each number of shots."""
    episodes = []
    for shots in recipe.validation.shots:
        shape = EpisodeShape(recipe.validation.ways, shots, VALIDATION_QUERIES)
        for number in range(recipe.validation.episodes):
            one_set = valid_sets[number % len(valid_sets)]
            episodes.append(EpisodeSampler([one_set], recipe.seed + 1).episode(number, shape))
    return episodes


def validation_scores(
    init: Initialization, episodes: list[Episode], shots: tuple[int, ...], encoded: Encoded
) -> tuple[dict[int, float], dict[str, float]]:
    """Mean accuracy by number of shots, and by data set, after the steps that training goes through."""
    init = replace(init, inner=init.inner.meta_trained)
    by_shots: dict[int, float] = {}
    by_set: dict[str, list[float]] = {}
    for number in shots:
        own = [e for e in episodes if len(e.support) == number * len(e.labels)]
        scores = evaluate(encoded.base, init, own, encoded=encoded)
        by_shots[number] = scores.mean
        for episode, accuracy in zip(own, scores.accuracy, strict=True):
            by_set.setdefault(episode.dataset, []).append(accuracy)
    return by_shots, {name: sum(values) / len(values) for name, values in by_set.items()}


def _sampler(recipe: Recipe, encoded: Encoded, train_sets: list[Dataset]) -> EpisodeSampler:
    drawn = recipe.episodes
    return EpisodeSampler(
        train_sets,
        recipe.seed,
        temperature=drawn.temperature,
        near_miss=drawn.near_miss,
        merge=drawn.merge,
        similarity=class_similarity(encoded, train_sets) if drawn.near_miss else (),
    )


def _meta_batch(recipe: Recipe, sampler: EpisodeSampler, step: int) -> list[Episode]:
    """Up to `outer.tasks` tasks of one shape, as many as `episodes.rows` holds."""
    drawn = recipe.episodes
    shape = draw_shape(recipe.seed, step, drawn.ways, drawn.shots, drawn.queries, drawn.rows)
    tasks = max(1, min(recipe.outer.tasks, drawn.rows // (shape.ways * (shape.shots + shape.queries))))
    return sampler.batch(step, shape, tasks)


def _start(recipe: Recipe, base: Base, kind: DeltaKind) -> Outer:
    theta = kind.initial(torch.Generator().manual_seed(recipe.seed), b_std=recipe.start.b_std)
    steps = max(1, recipe.inner.most_steps) if recipe.start.rates_by_step else 1
    rates = recipe.algorithm.rates_of(theta, recipe.start.rate, steps=steps)
    rates |= start_rates(HEAD_LEAVES, recipe.start.head_rate, steps=steps)  # a head has as many parameters as a task has classes
    return Outer(theta, rates, torch.tensor(recipe.start.scale), base.parameters(recipe.base.updated))


def attention_for(algorithm: Algorithm) -> Attention:
    """The attention that the meta-gradient can be taken through: only a second derivative rules the fused one out."""
    return "eager" if algorithm.second_derivative else "auto"


def _sizes(datasets: list[Dataset]) -> dict[str, dict[str, int]]:
    return {d.name: {"classes": len(d.texts), "texts": sum(map(len, d.texts.values()))} for d in datasets}


def _run_digest(recipe: Recipe, base: Base, train_sets: list[Dataset], validation: list[Episode]) -> str:
    """Of all that a run's bits depend on: a checkpoint goes on with these alone. Keys at their defaults are no part of it, so that
    keys that come later leave older runs alone."""
    texts = [[d.name, d.texts] for d in train_sets]
    content = [recipe.digest, base.spec.model_dump(), texts, manifest_digest(validation)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
