"""T classification tasks on a frozen text encoder: `metatrain.inner.problem.Tasks` for deltas, features and heads.

    φ_0 = (θ, linear head from the prototypes of the support set under θ, where the objective has a cross-entropy part)
    L_support: a weighted sum of `metatrain.readouts.objectives` on the features of the support set under φ

and under the base model with `Outer.base` in the place of its own parameters of those names.

The head that answers is the linear one, moved along (head="linear"), or made anew under φ_K (head="prototypes"): the prototypes of
the support set, and from them `head_steps` Adam steps of cross-entropy on the head alone, whose features stand still, so that they
cost next to nothing.

With moved="head" (ANIL) the inner loop moves the head alone and the delta stays θ: then φ is the head, and features are computed
once.

Triantafillou et al. 2020 (arXiv:1903.03096) for the head that starts as prototypes; Raghu et al. 2020 (arXiv:1909.09157) for ANIL.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metatrain.deltas import DeltaKind
from metatrain.errors import AdaptationError, DeadlineExceeded
from metatrain.inner.loop import InnerConfig, late, rate, trajectory
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, distance, stack
from metatrain.inner.support import Query, Support, augmentation_for, has_partners, parts, present, rows_by_step
from metatrain.models.text import TextBase, TokenBatch
from metatrain.readouts.heads import Head, linear_from_prototypes
from metatrain.readouts.objectives import cross_entropy, leave_one_out, leave_one_out_accuracy, supervised_contrastive

HEAD_LEAVES = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Adapted:
    """T adapted deltas (each leaf [T, …]) and their heads."""

    delta: dict[str, Tensor]
    head: Head


class Classification:
    """T support sets, and their query rows where there are any, under one delta kind and one inner configuration.

    `steps` is what `config` has for these shots, or one number for all, or, where serving, one for each (None: what `config` has
    for its shots); where serving, and `config` has more for hard support sets, `own_steps` says after `start` which tasks take how
    many, and `steps` is the most of them (`adapt_each`). `anchor`: weight, in the query loss, of the mean
    distance 1 − cos of the adapted query features from the base model's own. `serving`: one loop is run and nothing is
    differentiated through it, so that its first step and the prototypes share a forward pass; else the loop is the one that is
    meta-trained through (`InnerConfig.meta_trained`).

    Raises AdaptationError where the objective has nothing to teach with, and ValueError for tasks that ask for different numbers of
    steps, or of which one goes in parts and another has fewer rows.
    """

    def __init__(
        self,
        base: TextBase,
        kind: DeltaKind,
        config: InnerConfig,
        support: Support,
        query: Query | None = None,
        *,
        steps: int | Sequence[int | None] | None = None,
        seed: int = 0,
        anchor: float = 0.0,
        serving: bool = False,
    ) -> None:
        config = config if serving else config.meta_trained
        self.base, self.kind, self.config, self.support, self.query = base, kind, config, support, query
        self.anchor, self.serving = anchor, serving
        self.count, rows = support.labels.shape
        self.objective = config.objective_for(rows)
        told = list(steps) if isinstance(steps, Sequence) else [steps] * self.count
        sizes = _sizes(support)
        if config.moved == "all" and rows > config.rows_per_step and min(size[0] for size in sizes) < rows:
            unequal = sorted({examples for examples, _ in sizes})
            raise ValueError(f"tasks of one pass that go in parts must agree in their rows, these have {unequal}")
        self.own_steps = tuple(config.steps_for(*size) if own is None else own for own, size in zip(told, sizes, strict=True))
        self.steps = max(self.own_steps)
        if min(self.own_steps) < self.steps and not (serving and min(self.own_steps)):
            raise ValueError(f"tasks of one pass must agree in the number of steps, these take {sorted(set(self.own_steps))}")
        self._asking = [serving and own is None and config.asks(*size) for own, size in zip(told, sizes, strict=True)]
        self.linear = "cross_entropy" in self.objective  # a linear head is moved along
        augmentation = augmentation_for(support, config.augmentation)
        if self.steps and not self.linear and not has_partners(support, augmentation):
            raise AdaptationError(
                f"the inner objective ({' + '.join(self.objective)}) needs two examples of a class or augmented views, or 0 steps"
            )
        self._rows = rows_by_step(base, kind, support, config.rows_per_step, augmentation, seed)
        self._whole = augmentation is None and rows <= config.rows_per_step  # every step takes the whole support set
        self._all_rows = {at_once: parts(base, kind, support, at_once=at_once) for at_once in (True, False)}
        self._present = present(support)
        self._first: tuple[dict[str, Tensor], Tensor] | None = None
        self._begun: tuple[Outer, dict[str, Tensor]] | None = None
        self._still: tuple[Outer, Tensor] | None = None

    def only(self, which: Sequence[int]) -> "Classification | None":
        """These of the tasks, to go on with from where they are, after `start`; None where they are better left together: features
        that stand still are there for all of them, and parts or views of support sets are drawn for all at once."""
        if self.config.moved == "head" or not self._whole:
            return None
        own = [self.own_steps[t] for t in which]
        tasks = Classification(self.base, self.kind, self.config, self.support.only(which), steps=own, serving=self.serving)
        if self._begun is not None:
            tasks._begun = self._begun[0], {name: leaf[list(which)] for name, leaf in self._begun[1].items()}
        return tasks

    @property
    def proximal(self) -> float:
        return self.config.proximal

    @property
    def twice(self) -> str | None:
        return None if self.base.attention == "eager" else _NO_SECOND_DERIVATIVE

    @property
    def coarse(self) -> str | None:
        return "the base model runs in bfloat16, whose rounding drowns them" if self.base.dtype == torch.bfloat16 else None

    def start(self, outer: Outer) -> dict[str, Tensor]:
        """Its delta equals θ but is a node of its own: g_0 is the partial derivative at a fixed head, although the head, being made
        of prototypes under θ, depends on θ too."""
        theta = stack(outer.theta, self.count)
        delta = {} if self.config.moved == "head" else {name: leaf.view_as(leaf) for name, leaf in theta.items()}
        if not self.linear and self.steps and self.config.moved == "all" and not any(self._asking):
            return self._begins(outer, delta)
        if self.config.moved == "head":
            features = self._still_features(outer)
        elif self.serving and self.steps and self._whole:
            # One forward pass serves the prototypes and the first step: nobody differentiates through the head.
            delta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
            with torch.enable_grad():
                self._first = delta, self._features(delta, self._rows(0)[0], outer)
            features = self._first[1].detach()
        else:
            features = self._all_features(theta, outer)
        if any(self._asking):
            self._ask(features.detach())
        if not self.linear and self.steps:
            return self._begins(outer, delta)
        head = linear_from_prototypes(features, self.support.labels, self.support.classes)
        return self._begins(outer, {**delta, "head.weight": head.weight, "head.bias": head.bias})

    def _ask(self, features: Tensor) -> None:
        """Settle how many steps each task takes, by the features [T, M, D] of its support set under θ."""
        hard = self.config.hard_steps
        assert hard is not None
        accuracy = leave_one_out_accuracy(features, self.support.labels, self.support.classes).tolist()
        more = [asking and a < hard.below for asking, a in zip(self._asking, accuracy, strict=True)]
        self.own_steps = tuple(max(own, hard.steps) if m else own for own, m in zip(self.own_steps, more, strict=True))
        self.steps, self._asking = max(self.own_steps), [False] * self.count

    def _begins(self, outer: Outer, phi: dict[str, Tensor]) -> dict[str, Tensor]:
        """φ_0, kept for the proximal term."""
        if self.proximal:
            self._begun = outer, {name: leaf.detach() if self.serving else leaf for name, leaf in phi.items()}
        return phi

    def support_loss(self, phi: Leaves, outer: Outer, step: int) -> Tensor:
        if self.config.moved == "head":
            features, labels = self._still_features(outer), self.support.labels
        elif self._first is not None and step == 0 and all(phi[name] is leaf for name, leaf in self._first[0].items()):
            features, labels = self._first[1], self._rows(0)[1]
            self._first = None
        else:
            tokens, labels = self._rows(step)
            features = self._features(_delta(phi), tokens, outer)
        assert outer.scale is not None
        total = features.new_zeros(self.count)
        for name, weight in self.objective.items():
            if name == "leave_one_out":
                part = leave_one_out(features, labels, self.support.classes, outer.scale)
            elif name == "supervised_contrastive":
                part = supervised_contrastive(features, labels, outer.scale)
            else:
                part = cross_entropy(self._head(phi), features, labels, outer.scale)
            total = total + weight * part
        if self.proximal:
            # While serving there is one `outer`, whatever copies of it are shown.
            known = self._begun is not None and (self.serving or self._begun[0] is outer)
            begin = self._begun[1] if self._begun is not None and known else self.start(outer)
            total = total + 0.5 * self.proximal * distance(phi, begin)
        return total

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return self.judged(self.adapted(phi, outer, step, exact=exact), outer)

    def judged(self, adapted: Adapted, outer: Outer) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy of each task's query rows under what its φ answers with: ([T], [T])."""
        assert self.query is not None and outer.scale is not None
        tokens, labels = self.query.tokens, self.query.labels
        features = self._features(adapted.delta, tokens, outer)
        loss = cross_entropy(adapted.head, features, labels, outer.scale)
        hits = adapted.head.logits(features, outer.scale).argmax(-1) == labels
        if self.anchor > 0:
            with torch.no_grad():
                own = self.base.features(None, tokens).view_as(features)
            drift = (1 - (features * own).sum(-1)).masked_fill(labels < 0, 0.0)
            loss = loss + self.anchor * drift.sum(1) / (labels >= 0).sum(1).clamp(min=1)
        return loss, hits.float().sum(1) / (labels >= 0).sum(1).clamp(min=1)

    def adapted(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> Adapted:
        """What φ, after `step` inner steps, answers with; `exact`: the head's own steps are differentiated, else constants."""
        delta = stack(outer.theta, self.count) if self.config.moved == "head" else _delta(phi)
        if "head.weight" in phi and (self.config.head == "linear" or step == 0):
            return Adapted(delta, self._head(phi))
        features = self._all_features(delta, outer)
        head = linear_from_prototypes(features, self.support.labels, self.support.classes)
        return Adapted(delta, self._refined(head, features, outer, exact) if step else head)

    def _refined(self, head: Head, features: Tensor, outer: Outer, exact: bool) -> Head:
        """`head_steps` of Adam on the head alone, at the last of its rates."""
        assert outer.scale is not None
        update = Optimizer("adam", self.config.beta1, self.config.beta2, self.config.epsilon)
        second = exact and features.requires_grad
        fixed, scale = (features, outer.scale) if second else (features.detach(), outer.scale.detach())
        psi = {"head.weight": head.weight, "head.bias": head.bias}
        state = update.start(psi)
        with torch.enable_grad():
            for step in range(self.config.head_steps):
                live = {n: leaf if second and leaf.requires_grad else leaf.detach().requires_grad_() for n, leaf in psi.items()}
                loss = cross_entropy(self._head(live), fixed, self.support.labels, scale)
                found = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=second)
                state, moves = update.update(state, dict(zip(live, found, strict=True)), step)
                psi = {name: leaf - rate(outer.rates[name], -1) * moves[name] for name, leaf in psi.items()}
        return Head(psi["head.weight"], psi["head.bias"], self._present)

    def _head(self, phi: Leaves) -> Head:
        return Head(phi["head.weight"], phi["head.bias"], self._present)

    def _features(self, delta: Leaves, tokens: TokenBatch, outer: Outer) -> Tensor:
        """[T, M, D]"""
        return self.base.features(self.kind.fold(delta), tokens, updated=outer.base).view(self.count, -1, self.base.hidden_size)

    def _all_features(self, delta: Leaves, outer: Outer) -> Tensor:
        """Of the whole support set [T, M, D]: at once where a graph is kept, in parts where none is."""
        if self._whole:
            return self._features(delta, self._rows(0)[0], outer)
        keeps_graph = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in (*delta.values(), *outer.base.values()))
        return torch.cat([self._features(delta, part, outer) for part in self._all_rows[keeps_graph]()], dim=1)

    def _still_features(self, outer: Outer) -> Tensor:
        """Of the support set under θ, computed once for one `outer`."""
        if self._still is None or self._still[0] is not outer:
            self._still = outer, self._all_features(stack(outer.theta, self.count), outer)
        return self._still[1]


@dataclass(frozen=True)
class Ended:
    """One task after its own steps: its delta, the head `weight` [C, D] and `bias` [C] of its own C classes, and the support loss
    before each step."""

    delta: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    losses: tuple[float, ...]


def adapt_each(
    tasks: Classification,
    outer: Outer,
    optimizer: Optimizer,
    *,
    deadline: float = math.inf,
    on_step: Callable[[dict[int, float]], None] | None = None,
) -> list[Ended | DeadlineExceeded]:
    """Run the inner loop of T support sets in one pass, each to its own number of steps, after which it leaves the pass. No task
    feels its neighbours.

    `deadline` is on `time.monotonic`, looked at between steps: a task that has not taken all of its own by then has exceeded it.
    `on_step({task: support loss before the step})`, of those that took the step. Raises what the inner loop does, for all of them.
    """
    adapted, losses = _walk(tasks, outer, optimizer, deadline, on_step)
    ended: list[Ended | DeadlineExceeded] = []
    for t, (own, own_losses) in enumerate(zip(tasks.own_steps, losses, strict=True)):
        if len(own_losses) < own:
            ended.append(late(len(own_losses), own))
            continue
        delta = {name: leaf[t] for name, leaf in adapted.delta.items()}
        classes = int(adapted.head.present[t].sum())
        head = adapted.head.weight[t, :classes].detach(), adapted.head.bias[t, :classes].detach()
        ended.append(Ended(delta, *head, tuple(own_losses)))
    return ended


def adapted_each(tasks: Classification, outer: Outer, optimizer: Optimizer) -> Adapted:
    """As `adapt_each`, to be asked with `tasks.judged`."""
    return _walk(tasks, outer, optimizer, math.inf, None)[0]


def _walk(
    tasks: Classification,
    outer: Outer,
    optimizer: Optimizer,
    deadline: float,
    on_step: Callable[[dict[int, float]], None] | None,
) -> tuple[Adapted, list[list[float]]]:
    """What each task answers with after its own steps, or those that it took before the deadline; its loss before each of them."""
    reached: list[dict[str, Tensor]] = [{} for _ in range(tasks.count)]
    losses: list[list[float]] = [[] for _ in reached]
    part, going = tasks, list(range(tasks.count))
    points = trajectory(tasks, outer, optimizer)
    while (point := next(points, None)) is not None:
        took = [(t, place) for place, t in enumerate(going) if point.step <= tasks.own_steps[t]]
        for t, place in took:
            reached[t] = {name: leaf[place] for name, leaf in point.phi.items()}
        if point.step:
            found = point.losses[-1].tolist()
            before = {t: found[place] for t, place in took}
            for t, loss in before.items():
                losses[t].append(loss)
            if on_step is not None:
                on_step(before)
        steps = point.step
        left = [place for place, t in enumerate(going) if steps < tasks.own_steps[t]]
        if left and time.monotonic() > deadline:
            break
        if left and len(left) < len(going) and (fewer := part.only(left)) is not None:
            part, going = fewer, [going[place] for place in left]
            points = trajectory(part, outer, optimizer, begun=point.only(left))
    phi = {name: torch.stack([own[name] for own in reached]) for name in reached[0]}
    with torch.no_grad():
        return tasks.adapted(phi, outer, steps, exact=False), losses


_NO_SECOND_DERIVATIVE = 'it needs a base model loaded with attention="eager": fused attention has no second derivative'


def _delta(phi: Leaves) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES}


def _sizes(support: Support) -> list[tuple[int, int]]:
    """Examples and classes of each task."""
    return list(zip((support.labels >= 0).sum(1).tolist(), present(support).sum(1).tolist(), strict=True))
