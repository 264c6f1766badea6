"""The classification readout: prototypes or a linear head on pooled features.

    φ_head = the prototypes of the support set, as a linear head, if the objective has a cross-entropy term
    L_support = a weighted sum of the terms in `metatrain.readouts.objectives`, on the features of the support set under φ

With head="linear", the head that predicts is φ_head after the inner steps, which move it together with the delta. With
head="prototypes", the head that predicts is computed after the inner steps. It starts as the prototypes of the support set under
φ_K. Then `head_steps` steps of Adam on the cross-entropy move only the head. The features are constant in these steps, so the steps
cost almost nothing. They are differentiated only if `exact` is set and the features require gradients.

Reference: Triantafillou et al. 2020 (arXiv:1903.03096) for the linear head that starts as prototypes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metatrain.errors import AdaptationError, ArtifactError
from metatrain.inner.config import InnerConfig
from metatrain.inner.loop import trajectory
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Decision, Leaves, Outer, Start
from metatrain.readouts.heads import ABSENT, HEAD_LEAVES, Head, linear_from_prototypes, memberships
from metatrain.readouts.label_words import decide_label_words
from metatrain.readouts.objectives import (
    ObjectiveName,
    cross_entropy,
    has_partner,
    leave_one_out,
    leave_one_out_accuracy,
    supervised_contrastive,
)


@dataclass(frozen=True)
class ClassTargets:
    """The class labels of the rows of T tasks.

    `labels`: [T, M] int64, −1 for padding. `classes`: C, the number of classes of the largest task. `present`: [T, C] bool, True if
    the task has the class. A subset of the rows keeps `present` of the whole support set, so that a class without a row in the
    subset still competes with the others. `optional`: [T, M] bool, True for the words of a label, which are used only if they help
    (`label_words.py`); None if no row is optional.
    """

    labels: Tensor
    classes: int
    present: Tensor
    optional: Tensor | None = None

    @classmethod
    def of(cls, labels: Tensor, optional: Tensor | None = None) -> "ClassTargets":
        """Create the targets of whole support sets from labels [T, M]. C is the largest label plus 1."""
        classes = int(labels.max()) + 1
        return cls(labels, classes, memberships(labels, classes).sum(1) > 0, optional)

    @property
    def is_undecided(self) -> bool:
        return self.optional is not None

    def without(self, rows: Tensor) -> "ClassTargets":
        return replace(self, labels=self.labels.masked_fill(rows, -1), optional=None)

    @property
    def shape(self) -> tuple[int, int]:
        tasks, rows = self.labels.shape
        return tasks, rows

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return list(zip((self.labels >= 0).sum(1).tolist(), self.present.sum(1).tolist(), strict=True))

    @property
    def most_shots(self) -> list[int]:
        return [int(most) for most in memberships(self.labels, self.classes).sum(1).amax(1)]

    @property
    def has_partners(self) -> bool:
        return bool(has_partner(self.labels).any(1).all())

    def columns(self, index: Tensor) -> "ClassTargets":
        index = index.to(self.labels.device)
        optional = None if self.optional is None else self.optional[:, index]
        return replace(self, labels=self.labels[:, index], optional=optional)

    def only(self, which: Sequence[int]) -> "ClassTargets":
        optional = None if self.optional is None else self.optional[list(which)]
        return replace(self, labels=self.labels[list(which)], present=self.present[list(which)], optional=optional)

    def real(self) -> Tensor:
        return self.labels >= 0

    def repeat(self, times: int) -> "ClassTargets":
        optional = None if self.optional is None else self.optional.repeat(1, times)
        return replace(self, labels=self.labels.repeat(1, times), optional=optional)

    def parts(self, count: int, seed: int) -> list[Tensor]:
        return cut(self.labels[0], count, seed)


def cut(labels: Tensor, count: int, seed: int) -> list[Tensor]:
    """Split the rows of a task into `count` parts of nearly equal size; return the row indices of each.

    Rows of one class stay together in groups of two or three. So every row shares its part with another row of its class, unless it
    is the only row of its class in the whole set.
    """
    if count == 1:
        return [torch.arange(len(labels))]
    rng = np.random.default_rng(seed)
    groups: list[list[int]] = []
    for label in sorted(set(labels.tolist())):
        rows = rng.permutation((labels == label).nonzero()[:, 0].tolist()).tolist()
        groups += [rows[i : i + 2] for i in range(0, len(rows) - len(rows) % 2, 2)]
        if len(rows) % 2 and len(rows) > 1:
            groups[-1].append(rows[-1])
        elif len(rows) == 1:
            groups.append(rows)
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in rng.permutation(len(groups)).tolist():
        min(parts, key=len).extend(groups[i])
    return [torch.tensor(part) for part in parts]


class ClassReadout:
    """The classification `Readout`, for support sets of `rows` rows.

    The number of rows selects the inner objective (`InnerConfig.objective_for`).
    """

    leaves = HEAD_LEAVES

    def __init__(self, config: InnerConfig, rows: int) -> None:
        self.config = config
        self.objective = config.objective_for(rows)

    @property
    def moved(self) -> bool:
        return "cross_entropy" in self.objective

    def check(self, targets: ClassTargets, *, augmented: bool) -> None:
        if not (self.moved or augmented or targets.has_partners):
            raise AdaptationError(
                f"the inner objective ({' + '.join(self.objective)}) needs two examples of a class or augmented views, or 0 steps"
            )

    def decide(self, features: Tensor, targets: ClassTargets, scale: Tensor) -> tuple[Decision, ClassTargets]:
        assert targets.optional is not None
        decision = decide_label_words(features, targets.labels, targets.optional, scale)
        used = torch.tensor(decision.used, device=targets.labels.device)
        return decision, targets.without(targets.optional & ~used.unsqueeze(1))

    def start(self, features: Tensor, targets: ClassTargets) -> dict[str, Tensor]:
        head = linear_from_prototypes(features, targets.labels, targets.classes)
        return {"head.weight": head.weight, "head.bias": head.bias}

    def losses(self, phi: Leaves, features: Tensor, targets: ClassTargets, outer: Outer) -> Tensor:
        assert outer.scale is not None
        total = features.new_zeros(len(features))
        for name, weight in self.objective.items():
            total = total + weight * _TERMS[name](phi, features, targets, outer.scale)
        return total

    def answering(
        self, phi: Leaves, features: Callable[[], Tensor], targets: ClassTargets, outer: Outer, step: int, *, exact: bool
    ) -> dict[str, Tensor]:
        if "head.weight" in phi and (self.config.head == "linear" or step == 0):
            return {name: phi[name] for name in HEAD_LEAVES}
        support_features = features()
        prototypes = self.start(support_features, targets)
        return self._refined(prototypes, support_features, targets, outer, exact) if step else prototypes

    def _refined(
        self, prototypes: dict[str, Tensor], features: Tensor, targets: ClassTargets, outer: Outer, exact: bool
    ) -> dict[str, Tensor]:
        """Return the head after `head_steps` Adam steps that move only the head, starting from `prototypes`.

        All steps use the learned rate that the head has in the last inner step. The steps are differentiated if `exact` is set and
        the features require gradients.
        """
        assert outer.scale is not None
        second = exact and features.requires_grad
        fixed, scale = (features, outer.scale) if second else (features.detach(), outer.scale.detach())
        tasks = _HeadTasks(prototypes, fixed, targets, self.config.head_steps)
        rates = {name: outer.rates[name] for name in HEAD_LEAVES}
        adam = Optimizer("adam", self.config.beta1, self.config.beta2, self.config.epsilon)
        *_, end = trajectory(tasks, Outer({}, rates, scale), adam, order="second" if second else "first", rate_step=-1)
        return end.phi

    def judge(
        self, answering: Leaves, features: Tensor, query: ClassTargets, support: ClassTargets, outer: Outer
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the accuracy of each task on its query rows, ([T], [T])."""
        assert outer.scale is not None
        head = _head(answering, support)
        loss = cross_entropy(head, features, query.labels, outer.scale)
        hits = head.logits(features, outer.scale).argmax(-1) == query.labels
        return loss, hits.float().sum(1) / (query.labels >= 0).sum(1).clamp(min=1)

    def own(self, answering: Leaves, targets: ClassTargets, task: int) -> dict[str, Tensor]:
        """Return the head of task number `task`, which has C classes: `head.weight` [C, D], `head.bias` [C]."""
        classes = int(targets.present[task].sum())
        return {name: answering[name][task, :classes].detach() for name in HEAD_LEAVES}

    def self_accuracy(self, features: Tensor, targets: ClassTargets) -> Tensor:
        """Return the leave-one-out accuracy of nearest-prototype classification on each support set, [T]."""
        return leave_one_out_accuracy(features, targets.labels, targets.classes)


class ClassAnswers:
    """The classification `Answers`: predict probabilities, in the order of the adapter's labels."""

    def check(self, labels: Sequence[str]) -> None:
        if not labels:
            raise ArtifactError("labels: expected at least one, got none")
        if len(set(labels)) < len(labels):
            raise ArtifactError("labels: expected each once, got a repeated label")

    def shapes(self, labels: Sequence[str], hidden: int) -> dict[str, tuple[int, ...]]:
        return {"head.weight": (len(labels), hidden), "head.bias": (len(labels),)}

    def pack(self, leaves: Leaves, scale: float) -> dict[str, Tensor]:
        """Return the leaves multiplied by the inverse temperature `scale`."""
        return {name: scale * leaf for name, leaf in leaves.items()}

    def answer(self, runs: Sequence[tuple[Leaves, int]], features: Tensor) -> list[list[float]]:
        counts = [len(leaves["head.bias"]) for leaves, _ in runs]
        logits = features.new_full((len(features), max(counts)), ABSENT)
        done = 0
        for (leaves, rows), count in zip(runs, counts, strict=True):
            # One matrix product per adapter, because padding all heads to the largest would move more bytes.
            part = slice(done, done + rows)
            logits[part, :count] = torch.addmm(leaves["head.bias"], features[part], leaves["head.weight"].T)
            done += rows
        probabilities = iter(torch.softmax(logits, dim=-1).tolist())
        return [next(probabilities)[:count] for (_, rows), count in zip(runs, counts, strict=True) for _ in range(rows)]


@dataclass(frozen=True)
class _HeadTasks:
    """`Tasks` whose inner loop moves only the head: cross-entropy on constant features [T, M, D]."""

    prototypes: dict[str, Tensor]
    features: Tensor
    targets: ClassTargets
    steps: int
    no_second_derivative: str | None = None
    no_differences: str | None = None
    proximal: float = 0.0

    @property
    def count(self) -> int:
        return len(self.features)

    def start(self, outer: Outer) -> Start:
        return Start(self.prototypes, (self.steps,) * self.count)

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        assert outer.scale is not None
        return _cross_entropy(phi, self.features, self.targets, outer.scale)

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("tasks of the head alone have no query set")


def _head(phi: Leaves, targets: ClassTargets) -> Head:
    return Head(phi["head.weight"], phi["head.bias"], targets.present)


def _cross_entropy(phi: Leaves, features: Tensor, targets: ClassTargets, scale: Tensor) -> Tensor:
    return cross_entropy(_head(phi, targets), features, targets.labels, scale)


def _leave_one_out(_phi: Leaves, features: Tensor, targets: ClassTargets, scale: Tensor) -> Tensor:
    return leave_one_out(features, targets.labels, targets.classes, scale)


def _supervised_contrastive(_phi: Leaves, features: Tensor, targets: ClassTargets, scale: Tensor) -> Tensor:
    return supervised_contrastive(features, targets.labels, scale)


_TERMS: dict[ObjectiveName, Callable[[Leaves, Tensor, ClassTargets, Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "leave_one_out": _leave_one_out,
    "supervised_contrastive": _supervised_contrastive,
}
