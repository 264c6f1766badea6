"""The outer loop: from a recipe to an initialization, resumable to the bit.

Every draw depends on (seed, step) alone and the checkpoint holds everything else (the outer leaves, Adam's moments, the best
so far), so a run that is killed and started again gives the bits of one that was not.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from metatrain import algorithms
from metatrain.artifact import Initialization, save_initialization, write_atomically
from metatrain.base.text import TextBase, load_text_base
from metatrain.data.overlap import without_overlap
from metatrain.deltas import LoRA
from metatrain.episode import Dataset, Episode, EpisodeSampler, EpisodeShape, assert_class_disjoint, draw_shape, manifest_digest
from metatrain.errors import DataError, NonFinite
from metatrain.evaluate import evaluate
from metatrain.metagrad import MetaGradient, Mode, Outer
from metatrain.recipe import Recipe
from metatrain.taskbatch import Tokenized

Report = Callable[[dict[str, Any]], None]
CHECKPOINT = "checkpoint.safetensors"


@dataclass
class State:
    """All that changes during a run."""

    leaves: dict[str, Tensor]
    first_moment: dict[str, Tensor]
    second_moment: dict[str, Tensor]
    best_leaves: dict[str, Tensor]
    step: int = 0
    best_score: float = -math.inf
    best_step: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, outer: Outer) -> "State":
        leaves = outer.leaves()
        return cls(leaves, _zeros(leaves), _zeros(leaves), dict(leaves))


def train(
    recipe: Recipe, data: Path, out: Path, *, report: Report = lambda event: None, max_steps: int | None = None
) -> Initialization:
    """Meta-train `recipe` with its data under `data`; write checkpoints, `history.json` and the initialization to `out`.

    Continues from `out` where it holds a checkpoint of this very recipe, base model and data. `max_steps` stops early, to be
    continued. Early stopping: the best validation score's leaves are what is saved.

    Raises DataError, RecipeError, BaseModelError, and NonFinite when a meta-gradient is not finite.
    """
    mode: Mode = "unrolled" if recipe.algorithm.order == "second" else "first_order"
    algorithm = algorithms.build(recipe.algorithm.name, recipe.inner, mode, recipe.outer.anchor)
    train_sets, valid_sets, dropped = read_data(recipe, data)
    base = load_text_base(
        recipe.base.model,
        precision=recipe.base.precision,
        attention=algorithm.attention,
        max_length=recipe.base.max_length,
    )
    lora = base.attach(recipe.delta)
    tokenized = Tokenized(base, recipe.base.train_max_length)
    sampler = _sampler(recipe, tokenized, train_sets)
    validation = validation_episodes(recipe, valid_sets)
    report({"event": "data", "train": _sizes(train_sets), "valid": _sizes(valid_sets), "dropped": dropped})
    out.mkdir(parents=True, exist_ok=True)
    run = _run_digest(recipe, base, train_sets, validation)
    state = _load_checkpoint(out, run) or State.start(_start(recipe, lora))

    def initialization(leaves: dict[str, Tensor]) -> Initialization:
        return _initialization(recipe, base, algorithm.inner, leaves, state, train_sets, dropped, manifest_digest(validation))

    def validate() -> None:
        by_shots, by_set = validation_scores(base, initialization(state.leaves), validation, recipe.validation.shots, tokenized)
        score = sum(by_shots.values()) / len(by_shots)
        if score > state.best_score:
            state.best_score, state.best_step, state.best_leaves = score, state.step, dict(state.leaves)
        event = {"event": "validation", "step": state.step, "score": score, "best_step": state.best_step, "by_shots": by_shots}
        event["by_set"] = by_set
        state.history.append(event)
        report(event)

    last = recipe.outer.steps if max_steps is None else min(max_steps, recipe.outer.steps)
    if state.step == 0 and not state.history:
        validate()
    while state.step < last and not _out_of_patience(recipe, state):
        began = time.perf_counter()
        episodes = _meta_batch(recipe, sampler, state.step)
        gradient = algorithm.gradient(base, lora, Outer.from_leaves(state.leaves), tokenized.batch(episodes))
        norm = outer_step(recipe, state, gradient)
        event = {"event": "step", "step": state.step, "loss": gradient.loss, "accuracy": gradient.accuracy, "gradient_norm": norm}
        state.history.append(event)
        report({**event, "of": recipe.outer.steps, "seconds": time.perf_counter() - began})
        if state.step % recipe.validation.every == 0 or state.step == recipe.outer.steps:
            validate()
            _save_checkpoint(out, run, state)
    _save_checkpoint(out, run, state)
    result = initialization(state.best_leaves)
    write_atomically(out / "history.json", json.dumps(state.history, indent=1).encode())
    save_initialization(result, out / recipe.name, lora)
    return result


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


def class_similarity(tokenized: Tokenized, datasets: list[Dataset], *, texts: int = 16) -> list[NDArray[np.float32]]:
    """Cosine between the base model's class means over the first `texts` texts of each class: [C, C] for each data set."""
    found = []
    for dataset in datasets:
        means = []
        for own in dataset.texts.values():
            means.append(nn.functional.normalize(tokenized.features(own[:texts]).mean(0), dim=0))
        stacked = torch.stack(means).cpu()
        found.append((stacked @ stacked.T).numpy())
    return found


def validation_episodes(recipe: Recipe, valid_sets: list[Dataset]) -> list[Episode]:
    """The same episodes at every validation: an equal number from each validation set, for each number of shots."""
    episodes = []
    for shots in recipe.validation.shots:
        shape = EpisodeShape(recipe.validation.ways, shots, 5)
        for number in range(recipe.validation.episodes):
            one_set = valid_sets[number % len(valid_sets)]
            episodes.append(EpisodeSampler([one_set], recipe.seed + 1).episode(number, shape))
    return episodes


def validation_scores(
    base: TextBase, init: Initialization, episodes: list[Episode], shots: tuple[int, ...], tokenized: Tokenized
) -> tuple[dict[int, float], dict[str, float]]:
    """Mean accuracy by number of shots, and by data set."""
    by_shots: dict[int, float] = {}
    by_set: dict[str, list[float]] = {}
    for number in shots:
        own = [e for e in episodes if len(e.support) == number * len(e.labels)]
        scores = evaluate(base, init, own, tokenized=tokenized)
        by_shots[number] = scores.mean
        for episode, accuracy in zip(own, scores.accuracy, strict=True):
            by_set.setdefault(episode.dataset, []).append(accuracy)
    return by_shots, {name: sum(values) / len(values) for name, values in by_set.items()}


def outer_step(recipe: Recipe, state: State, gradient: MetaGradient) -> float:
    """One Adam step on the outer leaves (clipped, warmed up, cosine to zero); returns the norm of θ's gradient before clipping."""
    for name, g in gradient.gradients.items():
        if not torch.isfinite(g).all():
            raise NonFinite(f"the meta-gradient of {name} is not finite at outer step {state.step}")
    norm = float(torch.stack([g.norm() for n, g in gradient.gradients.items() if n.startswith("theta.")]).norm())
    shrink = min(1.0, recipe.outer.clip / max(norm, 1e-12))
    warm = min(1.0, (state.step + 1) / max(recipe.outer.warmup, 1))
    schedule = warm * 0.5 * (1 + math.cos(math.pi * state.step / recipe.outer.steps))
    state.step += 1
    for name, g in gradient.gradients.items():
        is_theta = name.startswith("theta.")
        g = g * shrink if is_theta else g
        m = state.first_moment[name] = 0.9 * state.first_moment[name] + 0.1 * g
        v = state.second_moment[name] = 0.999 * state.second_moment[name] + 0.001 * g * g
        move = (m / (1 - 0.9**state.step)) / ((v / (1 - 0.999**state.step)).sqrt() + 1e-8)
        rate = recipe.outer.learning_rate if is_theta else recipe.outer.rate_learning_rate
        state.leaves[name] = state.leaves[name] - schedule * rate * move
    return norm


def _sampler(recipe: Recipe, tokenized: Tokenized, train_sets: list[Dataset]) -> EpisodeSampler:
    drawn = recipe.episodes
    return EpisodeSampler(
        train_sets,
        recipe.seed,
        temperature=drawn.temperature,
        near_miss=drawn.near_miss,
        merge=drawn.merge,
        similarity=class_similarity(tokenized, train_sets) if drawn.near_miss else (),
    )


def _meta_batch(recipe: Recipe, sampler: EpisodeSampler, step: int) -> list[Episode]:
    """Up to `outer.tasks` tasks of one shape, as many as `episodes.rows` holds."""
    drawn = recipe.episodes
    shape = draw_shape(recipe.seed, step, drawn.ways, drawn.shots, drawn.queries, drawn.rows)
    tasks = max(1, min(recipe.outer.tasks, drawn.rows // (shape.ways * (shape.shots + shape.queries))))
    return sampler.batch(step, shape, tasks)


def _start(recipe: Recipe, lora: LoRA) -> Outer:
    theta = lora.initial(torch.Generator().manual_seed(recipe.seed), b_std=recipe.start.b_std)
    steps = max(1, recipe.inner.most_steps) if recipe.start.rates_by_step else 1
    return Outer.start(theta, recipe.start.rate, recipe.start.head_rate, recipe.start.scale, steps=steps)


def _out_of_patience(recipe: Recipe, state: State) -> bool:
    validations: list[int] = [event["step"] for event in state.history if event["event"] == "validation"]
    return sum(step > state.best_step for step in validations) >= recipe.validation.patience


def _initialization(
    recipe: Recipe,
    base: TextBase,
    inner: Any,
    leaves: dict[str, Tensor],
    state: State,
    train_sets: list[Dataset],
    dropped: list[str],
    validation_digest: str,
) -> Initialization:
    outer = Outer.from_leaves(leaves)
    provenance = {
        "recipe": json.loads(recipe.model_dump_json()),
        "recipe_digest": recipe.digest,
        "outer_steps": state.best_step,
        "validation_score": state.best_score if math.isfinite(state.best_score) else None,
        "validation_episodes_digest": validation_digest,
        "training_sets": _sizes(train_sets),
        "dropped": dropped,
        "attribution": recipe.data.attribution,
    }
    rates, scale = outer.rates(), float(outer.log_scale.exp())
    name = f"{recipe.algorithm.name} ({recipe.algorithm.order} order)" if recipe.algorithm.name == "maml" else recipe.algorithm.name
    return Initialization(recipe.name, base.spec, recipe.delta, inner, outer.theta, rates, scale, name, provenance)


def _sizes(datasets: list[Dataset]) -> dict[str, dict[str, int]]:
    return {d.name: {"classes": len(d.texts), "texts": sum(map(len, d.texts.values()))} for d in datasets}


def _zeros(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}


_PARTS = ("leaves", "first_moment", "second_moment", "best_leaves")


def _run_digest(recipe: Recipe, base: TextBase, train_sets: list[Dataset], validation: list[Episode]) -> str:
    """Of all that a run's bits depend on: a checkpoint goes on with these alone."""
    texts = [[d.name, d.texts] for d in train_sets]
    content = [recipe.digest, base.spec.model_dump(), texts, manifest_digest(validation)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _save_checkpoint(out: Path, run: str, state: State) -> None:
    tensors = {f"{part}/{name}": leaf for part in _PARTS for name, leaf in getattr(state, part).items()}
    scalars = {"run_digest": run, "step": state.step, "history": state.history}
    scalars |= {"best_score": state.best_score, "best_step": state.best_step}
    content = save({n: t.clone() for n, t in tensors.items()}, metadata={"state": json.dumps(scalars)})
    write_atomically(out / CHECKPOINT, content)


def _load_checkpoint(out: Path, run: str) -> State | None:
    path = out / CHECKPOINT
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()["state"])
        if scalars.pop("run_digest") != run:
            raise DataError(f"{path} belongs to another recipe, base model or data; choose another --out or remove it")
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for key in file.keys():  # noqa: SIM118 (safe_open is no dict)
            part, name = key.split("/", 1)
            parts[part][name] = file.get_tensor(key)
    moments = parts["first_moment"], parts["second_moment"]
    return State(parts["leaves"], *moments, parts["best_leaves"], **scalars)
