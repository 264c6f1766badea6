"""Outer steps leak no memory."""

import gc

import psutil
import pytest
import torch

from metatrain.deltas import LoRA
from metatrain.inner.config import InnerConfig
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import meta_gradient
from metatrain.models.base import Base
from metatrain.training.outer_step import OuterConfig, OuterState, outer_step
from tests.oracles.problems import text_outer, text_tasks


def count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


@pytest.mark.parametrize("mode", ["unrolled", "adjoint"])
@pytest.mark.parametrize(("steps", "megabytes"), [(40, 12), pytest.param(220, 30, marks=pytest.mark.long)])
def test_outer_steps_leak_no_memory(tiny64: Base, lora64: LoRA, mode: str, steps: int, megabytes: int) -> None:
    """Compare the tensor count and the process's memory after 20 outer steps with those at the end."""
    state, config = OuterState.start(text_outer(lora64)), OuterConfig(steps=steps)
    how, process = Differentiation.model_validate({"mode": mode}), psutil.Process()
    counts, sizes = [], []
    for step in range(steps):
        tasks = text_tasks(tiny64, lora64, InnerConfig(steps=2), count=1)
        outer_step(config, state, meta_gradient(tasks, Outer.from_leaves(state.leaves), Optimizer("sgd"), how))
        if step in (19, steps - 1):
            counts.append(count_tensors())
            sizes.append(process.memory_info().rss)
    assert counts[0] == counts[1]
    assert sizes[1] - sizes[0] < megabytes * 2**20
