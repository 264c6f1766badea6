"""Initializations that nothing was learned for: they keep the learned ones honest, and run through the same door."""

import torch

from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import DeltaConfig, LoRAConfig
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import start_rates
from metatrain.models.base import Base
from metatrain.readouts.heads import HEAD_LEAVES

SCALE = 16.0
FROZEN, PLAIN_LORA = "frozen-prototypes", "lora-from-zero"


def frozen_prototypes(base: Base) -> Initialization:
    """Prototypes of the frozen base model's features: a delta that is zero, and no steps."""
    config = LoRAConfig(rank=1, alpha=1.0)
    theta = {name: torch.zeros(shape) for name, shape in base.attach(config).shapes.items()}
    return _baseline(FROZEN, base, config, InnerConfig(steps=0), theta, rate=3e-3)


def lora_from_zero(base: Base, *, steps: int = 10, rate: float = 3e-3) -> Initialization:
    """Plain LoRA fine-tuning as PEFT starts it (B = 0), Adam, on a head that starts as the prototypes."""
    config = LoRAConfig()
    theta = base.attach(config).initial(torch.Generator().manual_seed(0))
    return _baseline(PLAIN_LORA, base, config, InnerConfig(steps=steps), theta, rate=rate)


def _baseline(
    name: str, base: Base, delta: DeltaConfig, inner: InnerConfig, theta: dict[str, torch.Tensor], *, rate: float
) -> Initialization:
    rates = {name: value.log().exp() for name, value in start_rates([*theta, *HEAD_LEAVES], rate).items()}  # as they are learned
    return Initialization(name, base.spec, delta, inner, theta, rates, SCALE, "none", {"trained": "no"})
