"""Meta-gradients against finite differences, for all combinations of options (`make test-long`).

The options are the delta kind, the gradient mode, the inner optimizer, and the parameters that the inner loop changes.
"""

import pytest

from metatrain.inner.config import InnerConfig
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import meta_gradient
from metatrain.models.base import Base
from tests.metatrain.deltas.test_deltas import KINDS, config_for
from tests.oracles.problems import Objective, central_difference, directions, smooth, text_outer, text_tasks

MODES = [
    Differentiation(mode="unrolled"),
    Differentiation(mode="checkpointed", segment=1),
    Differentiation(mode="checkpointed", segment=2),
    Differentiation(mode="adjoint", product="reverse"),
    Differentiation(mode="adjoint", product="forward"),
]
INNER = {
    "linear head": {"steps": 3},
    "contrastive, prototypes": {
        "objective": {"supervised_contrastive": 1.0},
        "head": "prototypes",
        "head_steps": 2,
        "steps": 3,
        "steps_by_shots": {1: 0, 2: 3},
        "epsilon": 1e-2,
    },
    "head alone": {"steps": 3, "moved": "head"},
}
CASES = [(kind, inner) for kind in KINDS for inner in INNER if kind != "head" or inner == "head alone"]


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("how", MODES, ids=lambda how: f"{how.mode} {how.segment} {how.product}")
@pytest.mark.parametrize(("kind", "inner"), CASES, ids=[f"{kind}, {inner}" for kind, inner in CASES])
def test_the_meta_gradient_is_the_derivative_of_the_whole_procedure(
    tiny64: Base, kind: str, inner: str, how: Differentiation, optimizer: str
) -> None:
    attached = tiny64.attach(config_for(kind))
    outer = text_outer(attached, rate=0.01 if inner == "contrastive, prototypes" else 0.05, steps=2)
    tasks = text_tasks(tiny64, attached, InnerConfig.model_validate(INNER[inner]))
    found = meta_gradient(tasks, outer, smooth(optimizer), how)
    objective = Objective(tasks, smooth(optimizer))
    for name, toward in directions(outer).items():
        measured = central_difference(objective, outer, name, toward)
        assert measured == pytest.approx(float((found.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name
