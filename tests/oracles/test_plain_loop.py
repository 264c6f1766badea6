"""The whole adaptation against plain loops: inner loss, steps, query loss and exact meta-gradient.

The plain loops handle one task and one row at a time, on a bare transformers model with merged weights. Every scalar option has a
value that differs from the others and from its default, so that a forgotten, doubled or swapped scalar changes the result.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModel, AutoTokenizer

from metatrain.deltas import LoRA
from metatrain.inner.config import InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.inner.problem import Outer
from metatrain.inner.supervised import Supervised
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import MetaGradient, meta_gradient
from metatrain.models.base import Base
from metatrain.readouts.classes import ClassReadout

Leaves = dict[str, Tensor]
Rows = list[tuple[str, int]]

SUPPORT: list[Rows] = [
    [("lost card", 0), ("my card a card", 0), ("open account", 1), ("account", 1), ("order pizza today", 2), ("a table", 2)],
    [("play music", 0), ("song on", 0), ("the song now", 0), ("rain", 1), ("weather today", 1), ("weather", 1), ("call taxi", 1)],
]
QUERY: list[Rows] = [
    [("close the account", 1), ("send my card", 0), ("book a pizza", 2), ("table", 2)],
    [("weather now", 1), ("music", 0), ("play the rain song", 0)],
]
SCALARS: dict[str, Any] = {"beta1": 0.7, "beta2": 0.85, "epsilon": 0.03}
ANCHOR, SCALE = 0.35, 6.5
CASES: dict[str, tuple[dict[str, Any], float, list[float] | None]] = {
    "every term, proximal, adam": (
        {
            "objective": {"cross_entropy": 0.3, "leave_one_out": 1.25, "supervised_contrastive": 0.75},
            "optimizer": "adam",
            "steps": 3,
            "proximal": 0.7,
        },
        ANCHOR,
        None,
    ),
    "prototypes, sgd": (
        {
            "objective": {"leave_one_out": 0.6, "supervised_contrastive": 1.7},
            "head": "prototypes",
            "head_steps": 2,
            "optimizer": "sgd",
            "steps": 2,
            "steps_by_shots": {1: 0, 2: 2},
        },
        ANCHOR,
        None,
    ),
    "several weights, momentum": (
        {"objective": {"cross_entropy": 1.4}, "optimizer": "momentum", "steps": 3},
        0.0,
        [0.0, 0.2, 0.3, 0.45],
    ),
    "head alone, adam": ({"objective": {"cross_entropy": 1.4}, "optimizer": "adam", "steps": 3, "moved": "head"}, ANCHOR, None),
}
"""Each case: (inner-loop options, weight of the anchor, weights of the query losses after 0 … K steps).

The anchor is a penalty on the drift of the features from those of the base model. If the last entry is None, only the loss after
K steps is used.
"""


@dataclass(frozen=True)
class Bare:
    """The base model and its tokenizer as transformers loads them, in float64, without any product code."""

    model: nn.Module
    tokenizer: Any


@pytest.fixture(scope="module")
def bare(tiny_folder: Path) -> Bare:
    model: nn.Module = AutoModel.from_pretrained(tiny_folder, attn_implementation="eager")
    return Bare(model.double().eval().requires_grad_(False), AutoTokenizer.from_pretrained(tiny_folder))


@pytest.mark.parametrize("case", CASES)
def test_the_meta_gradient_is_that_of_plain_loops(tiny64: Base, lora64: LoRA, bare: Bare, case: str) -> None:
    options, anchor, weights = CASES[case]
    config, outer = InnerConfig.model_validate({**SCALARS, **options}), start(lora64)
    encoded = Encoded(tiny64)
    tasks = Supervised(tiny64, lora64, ClassReadout, config, encoded.support(SUPPORT), encoded.query(QUERY), anchor=anchor)
    found = meta_gradient(tasks, outer, config.update, Differentiation(mode="unrolled"), weights=weights)
    live = {name: leaf.clone().requires_grad_() for name, leaf in outer.leaves().items()}
    plain = Plain(bare, lora64, config, anchor, Outer.from_leaves(live))
    queried, hits, support = zip(*map(plain.procedure, SUPPORT, QUERY), strict=True)
    used = [0.0] * config.steps + [1.0] if weights is None else weights
    mean = torch.stack(queried).mean(0)
    assert_same_gradients(found, torch.tensor(used, dtype=torch.float64) @ mean, live)
    assert found.loss == pytest.approx(float(mean[-1].detach()), rel=1e-9)
    assert found.accuracy == pytest.approx(sum(hits) / len(hits), abs=1e-6)
    assert list(found.support_loss) == pytest.approx(torch.stack(support).mean(0).tolist(), rel=1e-9)


def start(lora: LoRA) -> Outer:
    """Return an initialization with a different rate for every leaf and step."""
    theta = lora.initial(torch.Generator().manual_seed(0), b_std=0.2)
    rates = {
        name: torch.tensor([0.02 + 0.003 * i, 0.07 - 0.004 * i])
        for i, name in enumerate(chain(theta, ("head.bias", "head.weight")))
    }
    return Outer.from_values({name: t.double() for name, t in Outer(theta, rates, torch.tensor(SCALE)).values().items()})


def assert_same_gradients(found: MetaGradient, loss: Tensor, live: Leaves) -> None:
    gradients = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
    for (name, leaf), expected in zip(live.items(), gradients, strict=True):
        right = torch.zeros_like(leaf) if expected is None else expected
        torch.testing.assert_close(found.gradients[name], right, rtol=1e-7, atol=1e-10, msg=name)


class Plain:
    """A plain implementation of the adaptation: one task at a time, with a loop for every sum."""

    def __init__(self, bare: Bare, lora: LoRA, config: InnerConfig, anchor: float, outer: Outer) -> None:
        self.bare, self.config, self.anchor, self.outer = bare, config, anchor, outer
        self.merged = lora.config.alpha / lora.config.rank
        assert outer.scale is not None
        self.scale = outer.scale

    def procedure(self, support: Rows, query: Rows) -> tuple[Tensor, float, Tensor]:
        """Run the inner loop on one task. Return (query losses, accuracy, inner losses).

        The query losses are those after 0 … K steps. The accuracy is that on the query set after K steps. The inner losses are
        those of each step.
        """
        config, theta = self.config, self.outer.theta
        rows, labels = [text for text, _ in support], [c for _, c in support]
        head_alone = config.moved == "head"
        # `view_as` creates new graph nodes, so the first inner gradient treats the head as constant, although its prototypes depend
        # on θ.
        phi = {} if head_alone else {name: leaf.view_as(leaf) for name, leaf in theta.items()}
        if "cross_entropy" in config.objective:
            phi |= {"head.weight": self.prototypes(theta, rows, labels), "head.bias": zeros(max(labels) + 1)}
        begin, moments, losses = phi, dict[str, Tensor](), list[Tensor]()
        queried = [self.query_loss(phi, theta, support, query, 0)]
        for k in range(config.steps):
            loss = self.support_loss(phi, theta, rows, labels)
            loss = loss + config.proximal / 2 * sum_of((leaf - begin[name]).square().sum() for name, leaf in phi.items())
            losses.append(loss.detach())
            gradients = gradients_of(loss, phi)
            phi = self.step(phi, gradients, moments, k, min(k, 1), config.optimizer)
            queried.append(self.query_loss(phi, theta, support, query, k + 1))
        return torch.stack([loss for loss, _ in queried]), queried[-1][1], torch.stack(losses)

    def step(self, phi: Leaves, gradients: Leaves, moments: Leaves, k: int, entry: int, optimizer: str) -> Leaves:
        """Return φ after inner step `k`, which uses entry number `entry` of each leaf's rates."""
        after, config = {}, self.config
        for name, g in gradients.items():
            move = g
            if optimizer == "momentum":
                move = moments[f"m {name}"] = config.beta1 * moments.get(f"m {name}", torch.zeros_like(g)) + g
            elif optimizer == "adam":
                m = moments[f"m {name}"] = config.beta1 * moments.get(f"m {name}", torch.zeros_like(g)) + (1 - config.beta1) * g
                v = moments[f"v {name}"] = config.beta2 * moments.get(f"v {name}", torch.zeros_like(g)) + (1 - config.beta2) * g**2
                root = (v / (1 - config.beta2 ** (k + 1)) + config.epsilon**2).sqrt()
                move = m / (1 - config.beta1 ** (k + 1)) / root
            after[name] = phi[name] - self.outer.rates[name][entry] * move
        return after

    def features(self, theta: Mapping[str, Tensor], text: str) -> Tensor:
        """Return the normalised mean of a text's last hidden states, with LoRA merged into the weights."""
        weights = {}
        for name in {leaf.rsplit(".lora_", 1)[0] for leaf in theta}:
            a, b = theta[f"{name}.lora_A.weight"], theta[f"{name}.lora_B.weight"]
            weights[f"{name}.weight"] = self.bare.model.get_parameter(f"{name}.weight") + self.merged * (b @ a)
        states = functional_call(self.bare.model, weights, kwargs=self.bare.tokenizer(text, return_tensors="pt")).last_hidden_state[
            0
        ]
        return unit(states.mean(0))

    def prototypes(self, theta: Mapping[str, Tensor], rows: list[str], labels: list[int]) -> Tensor:
        found = [self.features(theta, text) for text in rows]
        return torch.stack([unit(sum_of(f for f, y in zip(found, labels, strict=True) if y == c)) for c in range(max(labels) + 1)])

    def support_loss(self, phi: Leaves, theta: Leaves, rows: list[str], labels: list[int]) -> Tensor:
        delta = {name: leaf for name, leaf in phi.items() if not name.startswith("head.")} or theta
        found = [self.features(delta, text) for text in rows]
        terms: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: self.cross_entropy(phi["head.weight"], phi["head.bias"], found, labels),
            "leave_one_out": lambda: self.leave_one_out(found, labels),
            "supervised_contrastive": lambda: self.contrastive(found, labels),
        }
        return sum_of(weight * terms[name]() for name, weight in self.config.objective.items())

    def cross_entropy(self, weight: Tensor, bias: Tensor, found: list[Tensor], labels: list[int]) -> Tensor:
        rows = [-(self.scale * (weight @ f + bias)).log_softmax(0)[y] for f, y in zip(found, labels, strict=True)]
        return sum_of(rows) / len(rows)

    def leave_one_out(self, found: list[Tensor], labels: list[int]) -> Tensor:
        rows = []
        for i, (f, y) in enumerate(zip(found, labels, strict=True)):
            members = {c: [g for j, (g, z) in enumerate(zip(found, labels, strict=True)) if z == c and j != i] for c in set(labels)}
            logits = torch.stack([self.scale * (f @ unit(sum_of(members[c]))) for c in sorted(members)])
            rows.append(-logits.log_softmax(0)[y])
        return sum_of(rows) / len(rows)

    def contrastive(self, found: list[Tensor], labels: list[int]) -> Tensor:
        rows = []
        for i, f in enumerate(found):
            others = {j: torch.exp(self.scale * (f @ g)) for j, g in enumerate(found) if j != i}
            partners = [j for j in others if labels[j] == labels[i]]
            rows.append(-sum_of(torch.log(others[j] / sum_of(others.values())) for j in partners) / len(partners))
        return sum_of(rows) / len(rows)

    def query_loss(self, phi: Leaves, theta: Leaves, support: Rows, query: Rows, steps: int) -> tuple[Tensor, float]:
        """Return the query loss and the accuracy of φ, which has taken `steps` inner steps."""
        delta = {name: leaf for name, leaf in phi.items() if not name.startswith("head.")} or theta
        rows, labels = [text for text, _ in support], [c for _, c in support]
        head = {name: leaf for name, leaf in phi.items() if name.startswith("head.")}
        if not head:
            head, moments = (
                {"head.weight": self.prototypes(delta, rows, labels), "head.bias": zeros(max(labels) + 1)},
                dict[str, Tensor](),
            )
            found = [self.features(delta, text) for text in rows]
            for k in range(self.config.head_steps if steps else 0):
                head = {name: leaf.view_as(leaf) for name, leaf in head.items()}
                loss = self.cross_entropy(head["head.weight"], head["head.bias"], found, labels)
                head = self.step(head, gradients_of(loss, head), moments, k, 1, "adam")
        asked, right = [self.features(delta, text) for text, _ in query], [c for _, c in query]
        loss = self.cross_entropy(head["head.weight"], head["head.bias"], asked, right)
        hits = [int((head["head.weight"] @ f + head["head.bias"]).argmax()) == y for f, y in zip(asked, right, strict=True)]
        drifts = [1 - f @ self.features({}, text) for f, (text, _) in zip(asked, query, strict=True)]
        return loss + self.anchor * sum_of(drifts) / len(drifts), sum(hits) / len(hits)


def gradients_of(loss: Tensor, leaves: Leaves) -> Leaves:
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), create_graph=True), strict=True))


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64, requires_grad=True)


def unit(vector: Tensor) -> Tensor:
    return nn.functional.normalize(vector, dim=0)


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)
