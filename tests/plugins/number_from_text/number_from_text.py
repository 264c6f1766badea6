"""An example plugin: a task kind that predicts a number from a text.

The readout starts from ridge regression on the features. The inner loop then improves it.
"""

import torch
from pydantic import BaseModel, Field

from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import LoRAConfig
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import start_rates
from metatrain.inner.support import Support
from metatrain.readouts.readout import MovedReadout, ReadoutKind, RowTargets
from service.field_checks import check_text
from service.http.schemas import Body, Text

LEAVES = ("number.weight", "number.bias")


class Number(MovedReadout):
    leaves = LEAVES

    def start(self, features, targets):  # w = Fᵀ (F Fᵀ + I/10)⁻¹ (y − ȳ) for each task
        real = targets.mask.to(features.dtype).unsqueeze(-1)
        mean = targets.values.sum(1) / real.sum((1, 2))
        masked, residuals = features * real, (targets.values - mean.unsqueeze(1)).unsqueeze(-1) * real
        gram = masked @ masked.transpose(1, 2) + 0.1 * torch.eye(masked.shape[1])
        return {"number.weight": (masked.transpose(1, 2) @ torch.linalg.solve(gram, residuals))[..., 0], "number.bias": mean}

    def losses(self, phi, features, targets, outer):
        predicted = (features @ phi["number.weight"].unsqueeze(-1))[..., 0] + phi["number.bias"].unsqueeze(1)
        return ((predicted - targets.values).square() * targets.mask).sum(1) / targets.mask.sum(1)

    def judge(self, answering, features, query, support, outer):
        loss = self.losses(answering, features, query, outer)
        return loss, -loss


class NumberAnswers:
    def check(self, labels): ...

    def shapes(self, labels, hidden):
        return {"number.weight": (hidden,), "number.bias": ()}

    def pack(self, leaves, scale):
        return dict(leaves)

    def answer(self, runs, features):
        rows = iter(features)
        return [float(next(rows) @ leaves["number.weight"] + leaves["number.bias"]) for leaves, count in runs for _ in range(count)]


READOUT = ReadoutKind(LEAVES, Number, NumberAnswers())


class NumberFromText:
    name, readout, default = "number-from-text", "number", "number-from-zero"
    canonical = staticmethod(lambda example: (example["input"], example["value"]))
    ordered = staticmethod(lambda support: tuple(sorted(support)))
    inputs = staticmethod(lambda support: [text for text, _ in support])
    labels = staticmethod(lambda support: ())
    size = staticmethod(lambda support, *, label_words: (len(support), 1))

    def support(self, recipes, encoded):
        texts, values = ([[example[i] for example in recipe.support] for recipe in recipes] for i in (0, 1))
        return Support(encoded.rows(texts), RowTargets.of(values, encoded.base.device))

    def baselines(self, base):
        delta = LoRAConfig(rank=2)
        theta = base.attach(delta).initial(torch.Generator().manual_seed(0))
        rates, inner = start_rates([*theta, *LEAVES], 1e-3), InnerConfig(steps=3)
        return [Initialization(self.default, base.spec, delta, inner, theta, rates, 1.0, "none", {}, readout=self.readout)]


class Example(Body):
    input: Text
    value: float = Field(allow_inf_nan=False)


class Estimate(BaseModel):
    value: float


class NumberOverHttp:
    name, example, prediction = NumberFromText.name, Example, Estimate
    check_seen = staticmethod(lambda support, options: None)
    warnings = staticmethod(lambda support: iter(()))
    predictions = staticmethod(lambda answer, top_k: [Estimate(value=value) for value in answer.outputs])
    document = staticmethod(lambda schemas, settings: None)

    def check(self, support, options, settings, before=()):
        for i, example in enumerate(support):
            check_text(f"support[{i}].input", example.input, settings.max_text_chars)
