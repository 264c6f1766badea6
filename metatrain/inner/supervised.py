"""Supervised tasks on a base model, with a delta kind and a readout.

`Supervised` implements `metatrain.inner.problem.Tasks`. A delta is a small set of tensors that modify the base model, such as LoRA.
A readout turns features into losses and predictions, such as a classification head.

    φ_0 = (θ, the readout's initial tensors, from the support features under θ)
    L_support = losses of the readout on the support features under φ

Parameters in `Outer.base` replace the base model's parameters of the same names.

With moved="head" φ consists only of the readout's tensors. The delta stays at θ, so the support features are computed once. This is
ANIL: Raghu et al. 2020 (arXiv:1909.09157).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metatrain.deltas import DeltaKind
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Leaves, Outer, Start, stack
from metatrain.inner.support import Query, Support, augmentation_for, parts, rows_by_step
from metatrain.models.base import Base
from metatrain.models.batch import Batch
from metatrain.readouts.readout import Readout


@dataclass(frozen=True)
class Adapted:
    """T adapted deltas, and the tensors from which their readouts predict; every tensor is [T, …]."""

    delta: dict[str, Tensor]
    answering: dict[str, Tensor]


class Supervised:
    """T tasks (support sets and optional query sets) with one delta kind, readout and inner configuration.

    `readout`: a function that creates the readout from the configuration and the number of support rows.

    `steps`: the number of inner steps of all tasks or, when serving, one number for each task. None: the number in `config` for the
    task's shots.

    `seed`: the seed for splitting large support sets into parts, and for augmented views.

    `anchor`: the weight, in the query loss, of the mean distance 1 − cos between each query row's adapted feature and its feature
    under the bare base model.

    `serving`: the loop is run once, and nothing is differentiated through it. The readout's start and the first step then share a
    forward pass, and hard support sets may take more steps. If False, the loop is that of meta-training
    (`InnerConfig.meta_trained`).

    `rows_at_once`: for a batch of more rows, keep the autograd graph of only this many rows at a time, and compute each part again
    in the backward pass. None: keep the graph of all rows.

    `batch`: the rows of the support sets, if they are in a batch already. It is used if every step takes all of them.

    Raises AdaptationError if the objective cannot learn from these support sets. Raises ValueError if the tasks have different
    numbers of steps and `serving` is False, or if the support sets are so large that they are split into parts, and have different
    numbers of rows.

    Rows that the targets call optional are allowed when serving. `start` decides with the readout which tasks use them, and the
    inner loop goes on with the `Start.tasks` that it returns.
    """

    def __init__(
        self,
        base: Base,
        kind: DeltaKind,
        readout: Callable[[InnerConfig, int], Readout],
        config: InnerConfig,
        support: Support[Any],
        query: Query[Any] | None = None,
        *,
        steps: int | Sequence[int | None] | None = None,
        seed: int = 0,
        anchor: float = 0.0,
        serving: bool = False,
        rows_at_once: int | None = None,
        batch: Batch | None = None,
    ) -> None:
        config = config if serving else config.meta_trained
        self.base, self.kind, self.config = base, kind, config
        self.support, self.query, self.anchor, self.serving = support, query, anchor, serving
        self.rows_at_once = rows_at_once
        self.count, rows = support.targets.shape
        if support.targets.is_undecided and not serving:
            raise ValueError("optional rows need serving=True: meta-training has none")
        self._make_readout, self.readout = readout, readout(config, rows)
        self._requested = requested = list(steps) if isinstance(steps, Sequence) else [steps] * self.count
        self._seed = seed
        sizes = support.targets.sizes
        if not config.moves_head_alone and rows > config.rows_per_step and min(size[0] for size in sizes) < rows:
            unequal = sorted({examples for examples, _ in sizes})
            raise ValueError(f"support sets that are taken in parts must have equal numbers of rows in one pass, got {unequal}")
        self.planned = tuple(
            config.steps_for(*size) if number is None else number for number, size in zip(requested, sizes, strict=True)
        )
        if min(self.planned) < self.steps and not serving:
            raise ValueError(f"tasks of one pass must take the same number of steps, got {sorted(set(self.planned))}")
        self._may_be_hard = [
            serving and number is None and config.asks(*size) for number, size in zip(requested, sizes, strict=True)
        ]
        augmentation = augmentation_for(support, config.augmentation)
        stepping = [t for t, number in enumerate(self.planned) if number]
        if stepping:
            self.readout.check(support.targets.only(stepping), augmented=augmentation is not None)
        self._whole = augmentation is None and rows <= config.rows_per_step  # every step takes the whole support set
        self._rows = rows_by_step(base, kind, support, config.rows_per_step, augmentation, seed)
        if batch is not None and self._whole:
            self._rows = lambda step: (batch, support.targets)
        self._all_rows = {at_once: parts(base, kind, support, at_once=at_once) for at_once in (True, False)}

    @property
    def steps(self) -> int:
        return max(self.planned)

    @property
    def proximal(self) -> float:
        return self.config.proximal

    @property
    def no_second_derivative(self) -> str | None:
        return None if self.base.attention == "eager" else _NO_SECOND_DERIVATIVE

    @property
    def no_differences(self) -> str | None:
        return (
            "the base model runs in bfloat16, whose rounding hides the differences" if self.base.dtype == torch.bfloat16 else None
        )

    def only(self, which: Sequence[int], start: Start) -> "Supervised | None":
        """Return only the tasks at the indices `which`, to continue their inner loop, or None.

        None means that the tasks cannot be separated. With moved="head", one tensor contains the features of all tasks. With
        augmentation, or with support sets that are split into parts, the rows of a step are drawn for all tasks at once. `start`:
        the start of all tasks. The result has no query sets.
        """
        if self.config.moves_head_alone or not self._whole:
            return None
        steps = [start.steps[t] for t in which]
        return self._with(self.support, which, steps)

    def _with(self, support: Support[Any], which: Sequence[int], steps: Sequence[int | None]) -> "Supervised":
        """Return the tasks at the indices `which`, with other targets for the same rows.

        Rows that are in a batch are not computed again below the delta.
        """
        return Supervised(
            self.base,
            self.kind,
            self._make_readout,
            self.config,
            support.only(which),
            steps=steps,
            seed=self._seed,
            serving=self.serving,
            batch=self._rows(0)[0].only(support.kept(which)) if self._whole else None,
        )

    def start(self, outer: Outer) -> Start:
        """Return φ_0: the delta at θ, and the readout's tensors if the inner loop moves them or takes no step.

        With moved="head" φ_0 contains only the readout's tensors. Otherwise the delta in φ_0 has θ's values, but is a separate node
        of the autograd graph. So g_0 is the partial derivative at a fixed head, even if the head consists of prototypes that depend
        on θ.
        """
        theta = stack(outer.theta, self.count)
        delta = {} if self.config.moves_head_alone else {name: leaf.view_as(leaf) for name, leaf in theta.items()}
        shares_pass = self.serving and self._whole and self.steps > 0 and not self.config.moves_head_alone
        if not (shares_pass or self._starts_readout or any(self._may_be_hard) or self.support.targets.is_undecided):
            return Start(delta, self.planned)
        if not shares_pass:
            return self._start(delta, self._all_features(theta, outer), None, outer)
        # Nothing is differentiated through the start, so it can share one forward pass with the first step.
        delta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        with torch.enable_grad():
            attached = self._features(delta, self._rows(0)[0], outer)
        return self._start(delta, attached.detach(), attached, outer)

    @property
    def _starts_readout(self) -> bool:
        """True if φ_0 contains the readout's tensors."""
        return self.readout.moved or not self.steps or self.config.moves_head_alone

    def _start(self, delta: dict[str, Tensor], features: Tensor, attached: Tensor | None, outer: Outer) -> Start:
        """Return φ_0, from the support features under θ.

        `attached`: the same features with their autograd graph, if the first step shares their forward pass.
        """
        if self.support.targets.is_undecided:
            return self._start_decided(delta, features, attached, outer)
        first = None
        if attached is not None:

            def first(phi: Leaves, outer: Outer) -> Tensor:
                return self.readout.losses(phi, attached, self.support.targets, outer)

        steps = self._steps_by_hardness(features.detach()) if any(self._may_be_hard) else self.planned
        phi = {**delta, **self.readout.start(features, self.support.targets)} if self._starts_readout else delta
        shared = {"features": features} if self.config.moves_head_alone else {}
        return Start(phi, steps, shared, first, features.detach())

    def _start_decided(self, delta: dict[str, Tensor], features: Tensor, attached: Tensor | None, outer: Outer) -> Start:
        """Decide which tasks use their optional rows, and return the start of the tasks without the others."""
        assert outer.scale is not None
        decision, targets = self.readout.decide(features.detach(), self.support.targets, outer.scale)
        decided = Support(self.support.rows, targets)
        every_task = range(self.count)
        tasks = self._with(decided, every_task, self._requested)
        columns = decided.columns_of(every_task).to(features.device)
        if not (tasks.steps and tasks._whole):  # no step takes the rows of this pass as they are, so its graph is not needed
            delta, attached = {name: leaf.detach() for name, leaf in delta.items()}, None
        start = tasks._start(delta, features[:, columns], None if attached is None else attached[:, columns], outer)
        return replace(start, tasks=tasks, decision=decision)

    def _steps_by_hardness(self, features: Tensor) -> tuple[int, ...]:
        """Return the number of steps of each task, increased for hard support sets.

        `features`: the support features under θ, [T, M, D].
        """
        hard = self.config.hard_steps
        assert hard is not None
        accuracy = self.readout.self_accuracy(features, self.support.targets).tolist()
        is_hard = [may and a < hard.below for may, a in zip(self._may_be_hard, accuracy, strict=True)]
        return tuple(max(planned, hard.steps) if h else planned for planned, h in zip(self.planned, is_hard, strict=True))

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        if self.config.moves_head_alone:
            return self.readout.losses(phi, start.shared["features"], self.support.targets, outer)
        batch, targets = self._rows(step)
        return self.readout.losses(phi, self._features(self._delta(phi), batch, outer), targets, outer)

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return self.judged(self.adapted(phi, outer, step, exact=exact), outer)

    def judged(self, adapted: Adapted, outer: Outer) -> tuple[Tensor, Tensor]:
        """Return the loss [T] and the score [T] of adapted deltas and readouts on the query sets."""
        assert self.query is not None
        batch, targets = self._query_batch, self.query.targets
        features = self._features(adapted.delta, batch, outer)
        loss, score = self.readout.judge(adapted.answering, features, targets, self.support.targets, outer)
        if self.anchor > 0:
            with torch.no_grad():
                base_features = self.base.features(None, batch).view_as(features)
            real = targets.real()
            drift = (1 - (features * base_features).sum(-1)).masked_fill(~real, 0.0)
            loss = loss + self.anchor * drift.sum(1) / real.sum(1).clamp(min=1)
        return loss, score

    def adapted(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True, features: Tensor | None = None) -> Adapted:
        """Return the deltas of φ after `step` inner steps, and the tensors from which the readouts predict.

        `exact`: differentiate the gradient steps that a readout takes itself; otherwise their gradients are constants. `features`:
        those of the support sets under φ, [T, M, D], if they are known.
        """
        delta = stack(outer.theta, self.count) if self.config.moves_head_alone else self._delta(phi)

        def support_features() -> Tensor:
            return self._all_features(delta, outer) if features is None else features

        return Adapted(delta, self.readout.answering(phi, support_features, self.support.targets, outer, step, exact=exact))

    @cached_property
    def _query_batch(self) -> Batch:
        """The query rows, with the part of the model below the delta computed once."""
        assert self.query is not None
        batch = self.base.collate(self.query.rows, self.count, per_token=self.kind.per_token)
        return self.base.backbone.below(batch, self.kind)

    def _delta(self, phi: Leaves) -> dict[str, Tensor]:
        return {name: leaf for name, leaf in phi.items() if name not in self.readout.leaves}

    def _features(self, delta: Leaves, batch: Batch, outer: Outer) -> Tensor:
        """Return the features of a batch of T·M rows, [T, M, F]."""
        folded = self.kind.fold(delta)
        if self.rows_at_once is None or batch.size <= self.rows_at_once or not torch.is_grad_enabled():
            features = self.base.features(folded, batch, updated=outer.base)
        else:
            features = self.base.backbone.features_recomputed(folded, batch, rows_at_once=self.rows_at_once, updated=outer.base)
        return features.view(self.count, -1, self.base.feature_size)

    def _all_features(self, delta: Leaves, outer: Outer) -> Tensor:
        """Return the features of the whole support set, [T, M, D].

        Compute them in one pass if autograd needs the graph, otherwise in parts to save memory.
        """
        if self._whole:
            return self._features(delta, self._rows(0)[0], outer)
        keeps_graph = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in (*delta.values(), *outer.base.values()))
        return torch.cat([self._features(delta, part, outer) for part in self._all_rows[keeps_graph]()], dim=1)


_NO_SECOND_DERIVATIVE = 'expected a base model loaded with attention="eager", because fused attention has no second derivative'
