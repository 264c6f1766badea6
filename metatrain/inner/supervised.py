"""T supervised tasks on a frozen base model: `metatrain.inner.problem.Tasks` from a base model, a delta kind and a readout.

    φ_0 = (θ, what the readout makes of the support set under θ)
    L_support: the readout's losses on the features of the support set under φ

and under the base model with `Outer.base` in the place of its own parameters of those names.

With moved="head" (ANIL) the inner loop moves the readout's leaves alone and the delta stays θ: then they are φ, and features are
computed once.

Raghu et al. 2020 (arXiv:1909.09157) for ANIL.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metatrain.deltas import DeltaKind
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Leaves, Outer, Start, stack
from metatrain.inner.support import Query, Support, augmentation_for, parts, rows_by_step
from metatrain.models.backbone import Batch
from metatrain.models.base import Base
from metatrain.readouts.readout import Readout


@dataclass(frozen=True)
class Adapted:
    """T adapted deltas and the leaves that their readouts answer with, each [T, …]."""

    delta: dict[str, Tensor]
    answering: dict[str, Tensor]


class Supervised:
    """T support sets, and their query rows where there are any, under one delta kind, one readout and one inner configuration.

    `readout` makes a readout of the configuration, for support sets of so many rows. `steps`: what `config` has for these shots
    (None), one number for all, or, where serving, one for each. `anchor`: weight, in the
    query loss, of the mean distance 1 − cos of the adapted query features from the base model's own. `serving`: one loop is run and
    nothing is differentiated through it, so that its first step and the readout's start share a forward pass, and hard support sets
    may take more steps; else the loop is the one that is meta-trained through (`InnerConfig.meta_trained`).

    Raises AdaptationError where the objective has nothing to teach with, and ValueError for tasks that ask for different numbers of
    steps, or of which one goes in parts and another has fewer rows.
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
    ) -> None:
        config = config if serving else config.meta_trained
        self.base, self.kind, self.config = base, kind, config
        self.support, self.query, self.anchor, self.serving = support, query, anchor, serving
        self.count, rows = support.targets.shape
        self._make_readout, self.readout = readout, readout(config, rows)
        asked = list(steps) if isinstance(steps, Sequence) else [steps] * self.count
        sizes = support.targets.sizes
        if not config.moves_head_alone and rows > config.rows_per_step and min(size[0] for size in sizes) < rows:
            unequal = sorted({examples for examples, _ in sizes})
            raise ValueError(f"tasks of one pass that go in parts must agree in their rows, these have {unequal}")
        self.planned = tuple(config.steps_for(*size) if own is None else own for own, size in zip(asked, sizes, strict=True))
        if min(self.planned) < self.steps and not (serving and min(self.planned)):
            raise ValueError(f"tasks of one pass must agree in the number of steps, these take {sorted(set(self.planned))}")
        self._may_be_hard = [serving and own is None and config.asks(*size) for own, size in zip(asked, sizes, strict=True)]
        augmentation = augmentation_for(support, config.augmentation)
        if self.steps:
            self.readout.check(support.targets, augmented=augmentation is not None)
        self._rows = rows_by_step(base, kind, support, config.rows_per_step, augmentation, seed)
        self._whole = augmentation is None and rows <= config.rows_per_step  # every step takes the whole support set
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
        return "the base model runs in bfloat16, whose rounding drowns them" if self.base.dtype == torch.bfloat16 else None

    def only(self, which: Sequence[int], start: Start) -> "Supervised | None":
        """These of the tasks, to go on with after their first steps; None where they are better left together: constant features
        are there for all of them, and parts or views of support sets are drawn for all at once."""
        if self.config.moves_head_alone or not self._whole:
            return None
        steps = [start.steps[t] for t in which]
        support = self.support.only(which)
        return Supervised(self.base, self.kind, self._make_readout, self.config, support, steps=steps, serving=self.serving)

    def start(self, outer: Outer) -> Start:
        """Its delta equals θ but is a node of its own: g_0 is the partial derivative at a fixed head, although the head, being made
        of prototypes under θ, depends on θ too."""
        theta = stack(outer.theta, self.count)
        head_alone = self.config.moves_head_alone
        delta = {} if head_alone else {name: leaf.view_as(leaf) for name, leaf in theta.items()}
        made_of_features = self.readout.moved or not self.steps or head_alone
        if not made_of_features and not any(self._may_be_hard):
            return Start(delta, self.planned)
        first = None
        if self.serving and self.steps and self._whole and not head_alone:
            # One forward pass serves the start and the first step: nobody differentiates through the start.
            delta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
            with torch.enable_grad():
                batch, targets = self._rows(0)
                seen = self._features(delta, batch, outer)
            features = seen.detach()

            def first(phi: Leaves, outer: Outer) -> Tensor:
                return self.readout.losses(phi, seen, targets, outer)
        else:
            features = self._all_features(theta, outer)
        steps = self._own_steps(features.detach()) if any(self._may_be_hard) else self.planned
        phi = {**delta, **self.readout.start(features, self.support.targets)} if made_of_features else delta
        return Start(phi, steps, {"features": features} if head_alone else {}, first)

    def _own_steps(self, features: Tensor) -> tuple[int, ...]:
        """The steps of each task, more for support sets that their features under θ, [T, M, D], leave hard."""
        hard = self.config.hard_steps
        assert hard is not None
        accuracy = self.readout.self_accuracy(features, self.support.targets).tolist()
        more = [may and a < hard.below for may, a in zip(self._may_be_hard, accuracy, strict=True)]
        return tuple(max(own, hard.steps) if m else own for own, m in zip(self.planned, more, strict=True))

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        if self.config.moves_head_alone:
            return self.readout.losses(phi, start.shared["features"], self.support.targets, outer)
        batch, targets = self._rows(step)
        return self.readout.losses(phi, self._features(self._delta(phi), batch, outer), targets, outer)

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return self.judged(self.adapted(phi, outer, step, exact=exact), outer)

    def judged(self, adapted: Adapted, outer: Outer) -> tuple[Tensor, Tensor]:
        """Loss and score of each task's query rows under what its φ answers with: ([T], [T])."""
        assert self.query is not None
        batch, targets = self.query.batch, self.query.targets
        features = self._features(adapted.delta, batch, outer)
        loss, score = self.readout.judge(adapted.answering, features, targets, self.support.targets, outer)
        if self.anchor > 0:
            with torch.no_grad():
                own = self.base.features(None, batch).view_as(features)
            real = targets.real()
            drift = (1 - (features * own).sum(-1)).masked_fill(~real, 0.0)
            loss = loss + self.anchor * drift.sum(1) / real.sum(1).clamp(min=1)
        return loss, score

    def adapted(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> Adapted:
        """What φ, after `step` inner steps, answers with; `exact`: the readout's own steps are differentiated, else constants."""
        delta = stack(outer.theta, self.count) if self.config.moves_head_alone else self._delta(phi)
        targets = self.support.targets
        return Adapted(
            delta, self.readout.answering(phi, lambda: self._all_features(delta, outer), targets, outer, step, exact=exact)
        )

    def _delta(self, phi: Leaves) -> dict[str, Tensor]:
        return {name: leaf for name, leaf in phi.items() if name not in self.readout.leaves}

    def _features(self, delta: Leaves, batch: Batch, outer: Outer) -> Tensor:
        """[T, M, D]"""
        return self.base.features(self.kind.fold(delta), batch, updated=outer.base).view(self.count, -1, self.base.hidden_size)

    def _all_features(self, delta: Leaves, outer: Outer) -> Tensor:
        """Return the features of the whole support set, [T, M, D]. Compute them in one pass if autograd needs the graph, otherwise
        in parts to save memory."""
        if self._whole:
            return self._features(delta, self._rows(0)[0], outer)
        keeps_graph = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in (*delta.values(), *outer.base.values()))
        return torch.cat([self._features(delta, part, outer) for part in self._all_rows[keeps_graph]()], dim=1)


_NO_SECOND_DERIVATIVE = 'it needs a base model loaded with attention="eager": fused attention has no second derivative'
