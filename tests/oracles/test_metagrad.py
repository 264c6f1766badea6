"""Meta-gradients compared with central differences, closed forms and each other, in float64."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metatrain.deltas import LoRA, LoRAConfig
from metatrain.inner.config import InnerConfig
from metatrain.inner.loop import adapt
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import MetaGradient, graph_bytes, meta_gradient
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from tests.oracles.problems import Objective, central_difference, directions, net_tasks, quadratic, smooth, text_outer, text_tasks

SGD = Optimizer("sgd")
UNROLLED = Differentiation(mode="unrolled")
EXACT = [
    Differentiation(mode="checkpointed", segment=1),
    Differentiation(mode="checkpointed", segment=2),
    Differentiation(mode="adjoint", product="reverse"),
    Differentiation(mode="adjoint", product="forward"),
]
CENTRAL = Differentiation(mode="adjoint", product="central")
SOME = ("layer.0.attention.self.query", "layer.1.intermediate", "log_rates.head", "log_scale")


def mode_name(how: Differentiation) -> str:
    return f"{how.mode} {how.segment if how.mode == 'checkpointed' else how.product}"


def assert_is_derivative(found: MetaGradient, objective: Objective, outer: Outer, like: tuple[str, ...] = ("",)) -> None:
    for name, toward in directions(outer, like=like).items():
        measured = central_difference(objective, outer, name, toward)
        assert measured == pytest.approx(float((found.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name


def assert_same(left: MetaGradient, right: MetaGradient, rtol: float = 1e-8, atol: float = 1e-11) -> None:
    assert left.loss == pytest.approx(right.loss, rel=1e-10)
    assert left.accuracy == pytest.approx(right.accuracy)
    torch.testing.assert_close(torch.tensor(left.support_loss), torch.tensor(right.support_loss))
    for name, gradient in left.gradients.items():
        torch.testing.assert_close(gradient, right.gradients[name], rtol=rtol, atol=atol, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_unrolled_is_the_derivative_of_the_query_loss(tiny64: Base, lora64: LoRA, optimizer: str, steps: int) -> None:
    outer = text_outer(lora64)
    tasks = text_tasks(tiny64, lora64, InnerConfig(steps=steps))
    exact = meta_gradient(tasks, outer, smooth(optimizer), UNROLLED)
    assert_is_derivative(exact, Objective(tasks, smooth(optimizer)), outer, SOME)


OBJECTIVES = [{"leave_one_out": 1.0}, {"supervised_contrastive": 1.0}, {"cross_entropy": 1.0, "supervised_contrastive": 0.5}]


def contrastive(objective: dict[str, float], **more: Any) -> InnerConfig:
    inner = {
        "objective": objective,
        "head": "prototypes",
        "head_steps": 2,
        "epsilon": 1e-2,
        "steps": 2,
        "steps_by_shots": {1: 0, 2: 2},
    }
    return InnerConfig.model_validate(inner | more)


@pytest.mark.parametrize("objective", OBJECTIVES, ids="+".join)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_unrolled_is_exact_for_prototypes_of_the_adapted_delta(
    tiny64: Base, lora64: LoRA, objective: dict[str, float], optimizer: str
) -> None:
    """Cover every objective, separate rates for each step, prototypes computed with φ_K, and the anchor.

    The anchor is a penalty on the drift of the features from those of the base model.
    """
    outer = text_outer(lora64, rate=0.01, steps=2)
    tasks = text_tasks(tiny64, lora64, contrastive(objective), anchor=0.7)
    exact = meta_gradient(tasks, outer, smooth(optimizer), UNROLLED)
    assert_is_derivative(exact, Objective(tasks, smooth(optimizer)), outer, SOME)


def test_unrolled_is_exact_if_the_lower_layers_are_precomputed(tiny64: Base) -> None:
    lora = tiny64.attach(LoRAConfig(rank=2, alpha=4, targets=("query", "value"), layers=(1,)))
    outer, tasks = text_outer(lora), text_tasks(tiny64, lora, InnerConfig(steps=2))
    assert_is_derivative(meta_gradient(tasks, outer, SGD, UNROLLED), Objective(tasks, SGD), outer, ("theta.",))


@pytest.mark.parametrize("how", [UNROLLED, *EXACT, CENTRAL], ids=mode_name)
@pytest.mark.parametrize("layers", [(1,), None], ids=["upper", "all layers"])
def test_the_gradient_of_base_model_parameters_is_exact(tiny64: Base, how: Differentiation, layers: tuple[int, ...] | None) -> None:
    """Learn one base-model parameter in the lower layer and one in the upper layer.

    If LoRA is only on the upper layer, the lower layer is below the delta, so its output does not depend on the delta.
    """
    lora = tiny64.attach(LoRAConfig(rank=2, alpha=4, targets=("query",), layers=layers))
    update = tiny64.parameters(["encoder.layer.0.output.dense.bias", "encoder.layer.1.attention.self.value.weight"])
    outer = replace(text_outer(lora), base={name: leaf + 0.01 for name, leaf in update.items()})
    tasks = text_tasks(tiny64, lora, InnerConfig(steps=2, epsilon=1e-2))
    found = meta_gradient(tasks, outer, smooth("adam"), how)
    assert_is_derivative(found, Objective(tasks, smooth("adam")), outer, ("base.",))
    assert all(g.any() for name, g in found.gradients.items() if name.startswith("base."))


WEIGHTS = [0.1, 0.2, 0.0, 0.7]  # for φ_0 … φ_3, at the ends of checkpointed segments and inside them; one weight is zero


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["last step", "several steps"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("how", [*EXACT, CENTRAL], ids=mode_name)
def test_every_exact_mode_equals_the_unrolled_gradient(
    tiny64: Base, lora64: LoRA, how: Differentiation, optimizer: str, weights: list[float] | None
) -> None:
    outer = text_outer(lora64, steps=2)
    tasks = text_tasks(tiny64, lora64, InnerConfig(steps=3, epsilon=1e-2))
    unrolled = meta_gradient(tasks, outer, smooth(optimizer), UNROLLED, weights=weights)
    found = meta_gradient(tasks, outer, smooth(optimizer), how, weights=weights)
    if how == CENTRAL:
        assert_same(found, unrolled, rtol=1e-4, atol=1e-6)
    else:
        assert_same(found, unrolled)


@pytest.mark.parametrize("how", EXACT, ids=mode_name)
@pytest.mark.parametrize("objective", OBJECTIVES, ids="+".join)
def test_every_exact_mode_agrees_on_prototypes_of_the_adapted_delta(
    tiny64: Base, lora64: LoRA, how: Differentiation, objective: dict[str, float]
) -> None:
    outer, tasks = text_outer(lora64, rate=0.01), text_tasks(tiny64, lora64, contrastive(objective))
    assert_same(meta_gradient(tasks, outer, smooth("adam"), how), meta_gradient(tasks, outer, smooth("adam"), UNROLLED))


@pytest.mark.parametrize("how", [UNROLLED, *EXACT], ids=mode_name)
def test_the_delta_gets_a_gradient_if_only_the_head_moves(tiny64: Base, lora64: LoRA, how: Differentiation) -> None:
    outer, tasks = text_outer(lora64), text_tasks(tiny64, lora64, InnerConfig(steps=3, moved="head"))
    found = meta_gradient(tasks, outer, SGD, how)
    assert_is_derivative(found, Objective(tasks, SGD), outer, SOME)
    assert all(not g.any() for name, g in found.gradients.items() if name.startswith("log_rates.") and "head" not in name)


@pytest.mark.parametrize("moved", [(), ("2.",)], ids=["all", "last layer"])
@pytest.mark.parametrize("how", [UNROLLED, *EXACT, CENTRAL], ids=mode_name)
def test_every_mode_is_exact_on_all_parameters_of_a_small_net(how: Differentiation, moved: tuple[str, ...]) -> None:
    tasks, outer = net_tasks(moved=moved)
    assert_is_derivative(meta_gradient(tasks, outer, smooth("adam"), how), Objective(tasks, smooth("adam")), outer)


def test_the_gradient_of_rates_for_every_parameter_is_exact() -> None:
    tasks, outer = net_tasks()
    generator = torch.Generator().manual_seed(3)
    rates = {n: 0.1 * torch.rand((2, *leaf.shape), generator=generator, dtype=torch.float64) for n, leaf in outer.theta.items()}
    by_parameter = Outer(outer.theta, rates)
    for how in (UNROLLED, *EXACT):
        assert_is_derivative(meta_gradient(tasks, by_parameter, SGD, how), Objective(tasks, SGD), by_parameter)


def test_quadratic_tasks_have_a_closed_form() -> None:
    """Compare with the closed form dL/dθ = mean_t (I − α A_t)^K (φ_K,t − d_t).

    The closed form follows from φ_K − c = (I − αA)^K (θ − c).
    """
    tasks, outer = quadratic(steps=5)
    eye = torch.eye(4, dtype=torch.float64)
    shrink = torch.linalg.matrix_power(eye - 0.2 * tasks.matrix, 5)
    end = tasks.center + torch.einsum("tij,tj->ti", shrink, outer.theta["x"] - tasks.center)
    expected = torch.einsum("tij,tj->ti", shrink, end - tasks.target).mean(0)
    for how in (UNROLLED, *EXACT, CENTRAL):
        found = meta_gradient(tasks, outer, SGD, how)
        factor = 100 if how == CENTRAL else 1
        torch.testing.assert_close(found.gradients["theta.x"], expected, rtol=factor * 1e-8, atol=factor * 1e-10)
    torch.testing.assert_close(adapt(tasks, outer, SGD).phi["x"], end)


def test_the_gradient_of_several_tasks_is_the_mean_of_single_tasks(tiny64: Base, lora64: LoRA) -> None:
    outer, inner = text_outer(lora64), InnerConfig(steps=2, epsilon=1e-2)
    for how in (Differentiation(mode="first_order"), UNROLLED, *EXACT):
        together = meta_gradient(text_tasks(tiny64, lora64, inner, count=3), outer, smooth("adam"), how)
        alone = [
            meta_gradient(text_tasks(tiny64, lora64, inner, count=1, first=t), outer, smooth("adam"), how).gradients
            for t in range(3)
        ]
        for name, gradient in together.gradients.items():
            mean = torch.stack([a[name] for a in alone]).mean(0)
            torch.testing.assert_close(gradient, mean, rtol=1e-7, atol=1e-11)


def test_first_order_equals_the_exact_gradient_only_without_steps(tiny64: Base, lora64: LoRA) -> None:
    outer = text_outer(lora64)
    for steps, is_equal in ((0, True), (3, False)):
        tasks = text_tasks(tiny64, lora64, InnerConfig(steps=steps))
        exact = meta_gradient(tasks, outer, SGD, UNROLLED)
        first = meta_gradient(tasks, outer, SGD, Differentiation(mode="first_order"))
        assert exact.loss == pytest.approx(first.loss, rel=1e-12)
        name = next(n for n in exact.gradients if n.startswith("theta.") and "lora_B" in n)
        gap = float((exact.gradients[name] - first.gradients[name]).norm() / exact.gradients[name].norm())
        assert (gap < 1e-10) if is_equal else (gap > 1e-3)


def test_first_order_with_one_sgd_step_is_the_closed_form(tiny64: Base, lora64: LoRA) -> None:
    """Compare with the closed form ∂L/∂log α_leaf = −α ⟨∂L/∂φ_1, g⟩.

    g is the gradient of the inner step, which the first-order mode treats as constant.
    """
    outer, tasks = text_outer(lora64), text_tasks(tiny64, lora64, InnerConfig(steps=1), count=1)
    first = meta_gradient(tasks, outer, SGD, Differentiation(mode="first_order"))
    before, after = adapt(tasks, outer, SGD, steps=0).phi, adapt(tasks, outer, SGD).phi
    live = {n: t.detach().clone().requires_grad_() for n, t in after.items()}
    loss, _ = tasks.query_loss(live, outer, 1)
    gradients = dict(zip(live, torch.autograd.grad(loss.mean(), list(live.values())), strict=True))
    for name in live:
        step = (before[name] - after[name]).detach()  # = α g
        expected = -float((gradients[name] * step).sum())
        assert float(first.gradients[f"log_rates.{name}"]) == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_the_implicit_gradient_is_zero_if_the_minimum_does_not_depend_on_theta() -> None:
    """Use tasks without a proximal term, so that φ* = c. `test_algorithms` covers the proximal objective."""
    tasks, outer = quadratic(steps=400)
    found = meta_gradient(tasks, outer, SGD, Differentiation(mode="implicit", iterations=20))
    assert found.residual is not None and found.residual < 1e-8
    assert not found.gradients["theta.x"].any()
    unrolled = meta_gradient(tasks, outer, SGD, UNROLLED)
    assert float(unrolled.gradients["theta.x"].abs().max()) < 1e-12


def test_a_wrong_number_of_weights_and_weights_with_implicit_are_refused() -> None:
    tasks, outer = quadratic(steps=2)
    with pytest.raises(ValueError, match="expected 3, one for each of φ_0 … φ_2, got 2"):
        meta_gradient(tasks, outer, SGD, UNROLLED, weights=[0.5, 0.5])
    with pytest.raises(ValueError, match="expected none for the implicit gradient"):
        meta_gradient(tasks, outer, SGD, Differentiation(mode="implicit"), weights=[0.0, 0.5, 0.5])


@pytest.mark.parametrize("how", [UNROLLED, *EXACT[1:], Differentiation(mode="implicit")], ids=mode_name)
def test_fused_attention_is_refused_if_a_second_derivative_is_needed(tiny: Base, lora: LoRA, how: Differentiation) -> None:
    tasks = text_tasks(tiny, lora, InnerConfig(steps=1))
    outer = Outer.from_values({n: t.float() for n, t in text_outer(lora).values().items()})
    with pytest.raises(ValueError, match='attention="eager"'):
        meta_gradient(tasks, outer, SGD, how)
    assert any(g.any() for g in meta_gradient(tasks, outer, SGD, CENTRAL).gradients.values())


def test_auto_unrolls_if_the_graph_fits_and_reports_its_mode(tiny64: Base, lora64: LoRA) -> None:
    outer, tasks = text_outer(lora64), text_tasks(tiny64, lora64, InnerConfig(steps=3))
    exact = meta_gradient(tasks, outer, SGD, UNROLLED)
    for memory_mb, mode in ((4096, "unrolled"), (1, "adjoint")):
        found = meta_gradient(tasks, outer, SGD, Differentiation(mode="auto", memory_mb=memory_mb))
        assert found.mode == mode
        assert_same(found, exact)


def test_auto_works_without_inner_steps(tiny64: Base, lora64: LoRA) -> None:
    inner = InnerConfig.model_validate({"objective": {"supervised_contrastive": 1}, "head": "prototypes", "steps_by_shots": {1: 0}})
    outer, tasks = text_outer(lora64), text_tasks(tiny64, lora64, inner)
    assert_same(meta_gradient(tasks, outer, SGD, Differentiation(mode="auto")), meta_gradient(tasks, outer, SGD, UNROLLED))
    with pytest.raises(ValueError, match="product: used only with mode adjoint or implicit, got mode auto"):
        Differentiation(mode="auto", product="central")


def test_graph_bytes_counts_the_saved_tensors() -> None:
    x, weight = torch.randn(100, 50, requires_grad=True), torch.randn(50, 20)
    hidden = x * 2  # saves no tensor, because 2 is a number
    product = hidden @ weight  # weight is not in the graph; hidden is not saved, because weight needs no gradient
    assert graph_bytes([product]) == 0
    assert graph_bytes([product.exp()]) == 100 * 20 * 4  # exp saves its result
    assert (
        graph_bytes([hidden.exp() @ torch.randn(50, 3, requires_grad=True)]) == 100 * 50 * 4
    )  # counted once, although two nodes save it


def test_central_differences_are_refused_in_bfloat16(tiny_folder: Path) -> None:
    base = load_base(str(tiny_folder), precision="bfloat16", attention="eager", device=torch.device("cpu"))
    kind = base.attach(LoRAConfig(rank=2, alpha=4))
    outer = Outer.from_values({n: t.float() for n, t in text_outer(kind).values().items()})
    with pytest.raises(ValueError, match="adjoint with central differences: the base model runs in bfloat16"):
        meta_gradient(text_tasks(base, kind, InnerConfig(steps=1)), outer, SGD, CENTRAL)


@pytest.mark.parametrize("how", [Differentiation(mode="first_order"), UNROLLED, *EXACT], ids=mode_name)
@pytest.mark.parametrize("rows_at_once", [1, 4])
def test_rows_at_once_does_not_change_the_meta_gradient(
    tiny64: Base, lora64: LoRA, how: Differentiation, rows_at_once: int
) -> None:
    """Recompute the graph in the backward pass, `rows_at_once` rows at a time."""
    outer = text_outer(lora64)
    whole, parts = (
        text_tasks(tiny64, lora64, InnerConfig(steps=2, epsilon=1e-2), anchor=0.3, rows_at_once=rows)
        for rows in (None, rows_at_once)
    )
    assert_same(meta_gradient(parts, outer, smooth("adam"), how), meta_gradient(whole, outer, smooth("adam"), how))


@pytest.mark.parametrize("how", [UNROLLED, *EXACT], ids=mode_name)
def test_the_exact_gradient_through_adam_from_zero_b_is_not_too_large(tiny64: Base, lora64: LoRA, how: Differentiation) -> None:
    """Start with B = 0, where A's first gradient is zero. A slope of 1/ε in Adam's step would give 1e8."""
    theta = lora64.initial(torch.Generator().manual_seed(0), b_std=0.0)
    outer = replace(text_outer(lora64), theta={name: leaf.double() for name, leaf in theta.items()})
    tasks = text_tasks(tiny64, lora64, InnerConfig(steps=3))
    norms = []
    for mode in (Differentiation(mode="first_order"), how):
        gradients = meta_gradient(tasks, outer, Optimizer("adam"), mode).gradients
        norms.append(float(torch.cat([g.flatten() for name, g in gradients.items() if name.startswith("theta.")]).norm()))
    assert 0.1 * norms[0] < norms[1] < 10 * norms[0]
