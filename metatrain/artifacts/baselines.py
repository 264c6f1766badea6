"""Baseline initializations without meta-training. They run the same inner loop as the trained ones."""

import torch

from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import DeltaConfig, LoRAConfig
from metatrain.deltas.lora import query_and_value
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import start_rates
from metatrain.models.description import BaseDescription
from metatrain.readouts.heads import HEAD_LEAVES

SCALE = 16.0
FROZEN, PLAIN_LORA = "frozen-prototypes", "lora-from-zero"


def frozen_prototypes(base: BaseDescription) -> Initialization:
    """Return the baseline that predicts from class prototypes of frozen features.

    Its delta is zero, and it takes no inner steps.
    """
    config = LoRAConfig(rank=1, alpha=1.0, targets=query_and_value(base.parameter_shapes))
    theta = {name: torch.zeros(shape) for name, shape in base.attach(config).shapes.items()}
    return _baseline(FROZEN, base, config, InnerConfig(steps=0), theta, rate=3e-3)


def lora_from_zero(base: BaseDescription, *, steps: int = 10, rate: float = 3e-3) -> Initialization:
    """Return the baseline of plain LoRA fine-tuning with Adam.

    LoRA acts on the queries and values and starts as in PEFT (B = 0). The head starts from the class prototypes. `steps` and
    `rate`: the number of inner steps and the learning rate of Adam.
    """
    config = LoRAConfig(targets=query_and_value(base.parameter_shapes))
    theta = base.attach(config).initial(torch.Generator().manual_seed(0))
    return _baseline(PLAIN_LORA, base, config, InnerConfig(steps=steps), theta, rate=rate)


def _baseline(
    name: str, base: BaseDescription, delta: DeltaConfig, inner: InnerConfig, theta: dict[str, torch.Tensor], *, rate: float
) -> Initialization:
    # Learned rates are exponentials of logarithms. Round in the same way here, so that the digests of the baselines do not change.
    rates = {name: value.log().exp() for name, value in start_rates([*theta, *HEAD_LEAVES], rate).items()}
    return Initialization(name, base.spec, delta, inner, theta, rates, SCALE, "none", {"trained": "no"})
