"""The outer loop: train an initialization from a recipe, with checkpoints that resume bit for bit.

Every random draw depends only on (seed, step), and the checkpoint stores all other state: the outer leaves, Adam's moments, the
best leaves so far. So a run that is killed and resumed ends with the same bits as an uninterrupted run.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metatrain.artifacts.initialization import Initialization, save_initialization
from metatrain.deltas import DeltaKind
from metatrain.errors import NonFinite, RecipeError
from metatrain.inner.encoded import Encoded
from metatrain.inner.problem import Outer, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.meta.algorithms import Algorithm
from metatrain.meta.metagrad import MetaGradient, mean_gradient
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
    manifest_digest,
)
from metatrain.tasks.normal_form import NORMAL_FORM
from metatrain.tasks.overlap import Removal
from metatrain.training.data import assert_episodes, meta_batch, micro_batches, read_data, training_sampler, validation_episodes
from metatrain.training.evaluate import evaluate
from metatrain.training.events import OnEvent
from metatrain.training.history import History
from metatrain.training.outer_step import CHECKPOINT, OuterState, outer_step
from metatrain.training.processes import ALONE, Processes
from metatrain.training.recipe import Recipe


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    on_event: OnEvent = lambda event: None,
    max_steps: int | None = None,
    processes: Processes = ALONE,
) -> Initialization:
    """Meta-train `recipe` and return the initialization with the best validation score.

    `data`: the folder that the recipe's paths are relative to. Checkpoints, `history.jsonl` and the initialization are written to
    `out`. If `out` has a checkpoint of the same recipe, base model and data, the run resumes from it; with a checkpoint of another
    run, DataError is raised. `max_steps`: stop when the run has taken this many outer steps, including those before a resume; a
    later call resumes. `processes`: this process's place among the processes that share the tasks of each meta-batch.

    Raises DataError, RecipeError, BaseModelError, NonFinite and NoMetaGradient.
    """
    run = _Run.prepare(recipe, data, out, on_event, processes)
    with closing(run.history):
        state = run.state
        last = recipe.outer.steps if max_steps is None else min(max_steps, recipe.outer.steps)
        if not state.history_bytes:
            run.validate()
        while state.step < last and not run.out_of_patience():
            run.outer_step()
            if state.step % recipe.validation.every == 0 or state.step == recipe.outer.steps:
                run.validate()
                run.save_checkpoint()
        run.save_checkpoint()
    result = run.initialization(state.best_leaves)
    if processes.first:
        save_initialization(result, out / recipe.name, run.kind)
    return result


@dataclass(frozen=True)
class _Share:
    """The result of one process's share of a meta-batch.

    `tasks`: the number of this process's tasks with a finite gradient. `gradient`: the mean over these tasks; None if there are
    none. `why`: the reason why a gradient is not finite (the last reason if there are several); empty if all gradients are finite.
    """

    gradient: MetaGradient | None
    tasks: int
    why: str


@dataclass(frozen=True)
class _Run:
    """A training run: its fixed parts (recipe, data, schedule) and the mutable `state`."""

    recipe: Recipe
    kind: DeltaKind
    encoded: Encoded
    train_sets: list[Dataset]
    removed: list[Removal]
    sampler: EpisodeSampler
    validation: list[Episode]
    checkpoint: Path
    digest: str
    state: OuterState
    on_event: OnEvent
    processes: Processes
    history: History

    @classmethod
    def prepare(cls, recipe: Recipe, data: Path, out: Path, on_event: OnEvent, processes: Processes) -> "_Run":
        """Load everything that a run needs, and its state from the checkpoint in `out` if there is one.

        Raises those errors of `train` that can occur before its first step.
        """
        train_sets, valid_sets, removed = read_data(recipe, data)
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
        sampler = training_sampler(recipe, encoded, train_sets)
        validation = validation_episodes(recipe, valid_sets)
        lines = [removal.message_with_example for removal in removed]
        on_event({"event": "data", "train": _sizes(train_sets), "valid": _sizes(valid_sets), "dropped": lines})
        out.mkdir(parents=True, exist_ok=True)
        checkpoint, digest = out / CHECKPOINT, _run_digest(recipe, base, train_sets, validation)
        state = OuterState.load(checkpoint, digest) or OuterState.start(_start(recipe, base, kind), recipe.algorithm.learns)
        history = History.resume(out, state.history_bytes) if processes.first else History.discard()
        return cls(
            recipe, kind, encoded, train_sets, removed, sampler, validation, checkpoint, digest, state, on_event, processes, history
        )

    def record(self, event: dict[str, Any], **extra: Any) -> None:
        """Append an event to the history, and pass it, with `extra` added, to `on_event`.

        `extra`: values such as times, which the history leaves out because they differ between equal runs.
        """
        self.history.append(event)
        self.on_event({**event, **extra})

    def outer_step(self) -> None:
        """Draw a meta-batch, compute its meta-gradient in all processes, and take one outer step."""
        began, state = time.perf_counter(), self.state
        episodes = meta_batch(self.recipe, self.sampler, state.step)
        share = [episodes[i] for i in self.processes.share(len(episodes))]
        local = self._local_gradient(share)
        gradient, tasks = self.processes.mean(local.gradient, state.leaves, local.tasks)
        norm = outer_step(self.recipe.outer, state, gradient, local.why)
        state.dropped += len(episodes) - tasks
        event: dict[str, Any] = {"event": "step", "step": state.step, "tasks": tasks, "skipped": state.skipped}
        event["dropped"] = state.dropped
        if not math.isnan(norm):
            event |= {"loss": gradient.loss, "accuracy": gradient.accuracy, "gradient_norm": norm}
            event |= {"support_loss": gradient.support_loss, "mode": gradient.mode}
        if gradient.residual is not None:
            event |= {"residual": gradient.residual, "left": gradient.left}
        self.record(event, of=self.recipe.outer.steps, seconds=time.perf_counter() - began)

    def _local_gradient(self, episodes: list[Episode]) -> _Share:
        """Return the mean meta-gradient over this process's episodes, computed in micro-batches.

        If the gradient of a micro-batch is not finite, its tasks are tried one by one, and those without a finite gradient are
        dropped.
        """
        parts: list[tuple[MetaGradient, int]] = []
        why = ""
        for micro_batch in micro_batches(episodes, self.recipe.outer.rows_at_once) if episodes else []:
            gradient, problem = self._gradient_of(micro_batch)
            if gradient is not None:
                parts.append((gradient, len(micro_batch)))
                continue
            why = problem
            single = [self._gradient_of([episode])[0] for episode in micro_batch] if len(micro_batch) > 1 else []
            parts += [(each, 1) for each in single if each is not None]
        return _Share(mean_gradient(parts) if parts else None, sum(tasks for _, tasks in parts), why)

    def _gradient_of(self, episodes: list[Episode]) -> tuple[MetaGradient | None, str]:
        """Return the mean meta-gradient of these episodes, computed in one batch, and an empty string.

        If the gradient or the loss is not finite, return None and the reason. Raises RecipeError if the base model cannot be
        differentiated in the recipe's mode.
        """
        recipe, leaves, base = self.recipe, self.state.leaves, self.encoded.base
        support, query = self.encoded.batch(episodes)
        tasks = Supervised(
            base,
            self.kind,
            ClassReadout,
            recipe.inner,
            support,
            query,
            anchor=recipe.outer.anchor,
            rows_at_once=recipe.outer.rows_at_once,
        )
        outer = Outer.from_leaves(leaves).on(base.device)
        try:
            gradient = recipe.algorithm.meta_gradient(tasks, outer, recipe.inner.update, self.state.step)
        except NonFinite as problem:
            return None, str(problem)
        except ValueError as problem:  # this base model cannot be differentiated in this mode
            raise RecipeError(f"algorithm.gradient: {problem}") from problem
        learned = {name: g for name, g in gradient.gradients.items() if name in self.state.learned}
        broken = next((name for name, g in learned.items() if not torch.isfinite(g).all()), None)
        if broken is not None or not math.isfinite(gradient.loss):
            return None, f"the meta-gradient of {broken} is not finite" if broken else "the query loss is not finite"
        return gradient, ""

    def validate(self) -> None:
        """Score the leaves or their moving average on the validation episodes; store them if they are best."""
        state = self.state
        kept = state.kept(self.recipe.outer)
        share = self.processes.share(len(self.validation))
        scores = validation_scores(self.initialization(kept), [self.validation[i] for i in share], self.encoded)
        accuracy = self.processes.gather(dict(zip(share, scores, strict=True)), len(self.validation))
        by_shots, by_set = _means(self.validation, accuracy)
        score = sum(by_shots.values()) / len(by_shots)
        state.fruitless += 1
        if score > state.best_score:
            state.best_score, state.best_step, state.best_leaves, state.fruitless = score, state.step, dict(kept), 0
        event = {"event": "validation", "step": state.step, "score": score, "best_step": state.best_step, "by_shots": by_shots}
        event["by_set"] = by_set
        self.record(event)

    def out_of_patience(self) -> bool:
        return self.state.fruitless >= self.recipe.validation.patience

    def save_checkpoint(self) -> None:
        if self.processes.first:
            self.state.history_bytes = self.history.flush()
            self.state.save(self.checkpoint, self.digest)

    def initialization(self, leaves: dict[str, Tensor]) -> Initialization:
        """Return an initialization with these outer leaves and the provenance of the run."""
        recipe, state, outer = self.recipe, self.state, Outer.from_leaves(leaves)
        assert outer.scale is not None
        provenance = {
            "recipe": json.loads(recipe.model_dump_json()),
            "recipe_digest": recipe.digest,
            "outer_steps": state.best_step,
            "validation_score": state.best_score if math.isfinite(state.best_score) else None,
            "validation_episodes_digest": manifest_digest(self.validation),
            "training_sets": _sizes(self.train_sets),
            "dropped": [removal.message for removal in self.removed],  # without texts, because it is published
            "normal_form": NORMAL_FORM,
            "attribution": recipe.data.attribution,
        }
        return Initialization(
            recipe.name,
            self.encoded.base.spec,
            recipe.delta,
            recipe.inner,
            outer.theta,
            outer.rates,
            float(outer.scale),
            recipe.algorithm.name,
            provenance,
            outer.base,
        )


def validation_scores(init: Initialization, episodes: Sequence[Episode], encoded: Encoded) -> list[float]:
    """Return the accuracy on each episode, adapted as in meta-training: without serving-only options."""
    init = replace(init, inner=init.inner.meta_trained)
    accuracy: dict[int, float] = {}
    for rows in {len(episode.support) for episode in episodes}:  # the support sets of one batch must have equal numbers of rows
        indices = [i for i, episode in enumerate(episodes) if len(episode.support) == rows]
        scores = evaluate(encoded.base, init, [episodes[i] for i in indices], encoded=encoded)
        accuracy |= zip(indices, scores.accuracy, strict=True)
    return [accuracy[i] for i in range(len(episodes))]


def _means(episodes: Sequence[Episode], accuracy: Sequence[float]) -> tuple[dict[int, float], dict[str, float]]:
    """Return the mean accuracy by number of shots, and by data set."""
    by_shots: dict[int, list[float]] = {}
    by_set: dict[str, list[float]] = {}
    for episode, score in zip(episodes, accuracy, strict=True):
        by_shots.setdefault(len(episode.support) // len(episode.labels), []).append(score)
        by_set.setdefault(episode.dataset, []).append(score)
    return ({shots: sum(v) / len(v) for shots, v in by_shots.items()}, {name: sum(v) / len(v) for name, v in by_set.items()})


def _start(recipe: Recipe, base: Base, kind: DeltaKind) -> Outer:
    theta = kind.initial(torch.Generator().manual_seed(recipe.seed), b_std=recipe.start.b_std)
    steps = max(1, recipe.inner.most_steps) if recipe.start.rates_by_step else 1
    rates = recipe.algorithm.rates_of(theta, recipe.start.rate, steps=steps)
    rates |= start_rates(
        HEAD_LEAVES, recipe.start.head_rate, steps=steps
    )  # never one rate per parameter, because the size of a head depends on the number of classes
    return Outer(theta, rates, torch.tensor(recipe.start.scale), base.parameters(recipe.base.updated))


def attention_for(algorithm: Algorithm) -> Attention:
    """Return "eager" if the algorithm needs a second derivative, which fused attention lacks, else "auto"."""
    return "eager" if algorithm.second_derivative else "auto"


def _sizes(datasets: list[Dataset]) -> dict[str, dict[str, int]]:
    return {d.name: {"classes": len(d.texts), "texts": sum(map(len, d.texts.values()))} for d in datasets}


def _run_digest(recipe: Recipe, base: Base, train_sets: list[Dataset], validation: list[Episode]) -> str:
    """Return the digest of everything that determines the result of a run, bit for bit.

    A checkpoint is resumed only by a run with the same digest. Options at their defaults are left out, so that options added
    later do not change the digest of older runs.
    """
    texts = [[d.name, d.texts] for d in train_sets]
    content = [recipe.digest, base.spec.model_dump(), texts, manifest_digest(validation)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
