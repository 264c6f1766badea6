"""Every algorithm compared with the definition in its paper, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from metatrain.deltas import LoRA
from metatrain.errors import NonFinite
from metatrain.inner.config import InnerConfig
from metatrain.inner.loop import adapt
from metatrain.inner.nets import NetTasks, classify
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer
from metatrain.meta.algorithms import ANIL, FOMAML, IMAML, MAML, MetaSGD, ProtoNet, Reptile
from metatrain.meta.algorithms.imaml import Proximal
from metatrain.meta.algorithms.maml import fading_weights
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.linear_solve import conjugate_gradient, neumann
from metatrain.meta.metagrad import meta_gradient
from metatrain.models.base import Base
from metatrain.training.outer_step import OuterConfig, OuterState, outer_step, schedule
from tests.oracles.problems import Objective, central_difference, directions, net_tasks, quadratic, smooth, text_outer, text_tasks

SGD = Optimizer("sgd")
CG = Differentiation(mode="implicit", iterations=50)


def proximal_minimum(matrix: Tensor, center: Tensor, theta: Tensor, strength: float) -> Tensor:
    """Return φ* = (A + λI)⁻¹ (A c + λθ), the minimum of each task's loss with its proximal term."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    solved: Tensor = torch.linalg.solve(matrix + strength * eye, torch.einsum("tij,tj->ti", matrix, center) + strength * theta)
    return solved


@pytest.mark.parametrize("solver", ["cg", "neumann"])
@pytest.mark.parametrize("product", ["reverse", "forward", "central"])
def test_the_imaml_gradient_equals_a_dense_solve(solver: str, product: str) -> None:
    """Expect dL/dθ = mean_t λ (A_t + λI)⁻¹ (φ*_t − d_t).

    φ*_t is the known minimum of task t; A_t and d_t are the matrices and the query centers of `Quadratic`.
    """
    tasks, outer = quadratic(steps=600)
    how = Differentiation.model_validate(
        {"mode": "implicit", "solver": solver, "product": product, "iterations": 400}
        | ({"neumann_rate": 0.2} if solver == "neumann" else {})
    )
    found = IMAML(strength=0.7, gradient=how).meta_gradient(tasks, outer, SGD, 0)
    end = proximal_minimum(tasks.matrix, tasks.center, outer.theta["x"], 0.7)
    eye = torch.eye(4, dtype=torch.float64)
    expected = 0.7 * torch.linalg.solve(tasks.matrix + 0.7 * eye, end - tasks.target).mean(0)
    torch.testing.assert_close(found.gradients["theta.x"], expected, rtol=1e-6, atol=1e-8)
    assert found.residual is not None and found.residual < 1e-6
    torch.testing.assert_close(adapt(Proximal(tasks, 0.7), outer, SGD).phi["x"], end, rtol=1e-8, atol=1e-10)


def test_imaml_reports_how_far_the_inner_loop_is_from_its_minimum() -> None:
    """Expect max_t ‖A (φ_K − c) + λ (φ_K − θ)‖ / ‖A (θ − c)‖."""
    for steps in (1, 4, 600):
        tasks, outer = quadratic(steps=steps)
        found = IMAML(strength=0.7, gradient=CG).meta_gradient(tasks, outer, SGD, 0)
        phi, theta = adapt(Proximal(tasks, 0.7), outer, SGD).phi["x"], outer.theta["x"]
        begin = torch.einsum("tij,tj->ti", tasks.matrix, theta - tasks.center)
        end = torch.einsum("tij,tj->ti", tasks.matrix, phi - tasks.center) + 0.7 * (phi - theta)
        assert found.left == pytest.approx(float((end.norm(dim=1) / begin.norm(dim=1)).max()), rel=1e-6, abs=1e-12)
    assert found.left is not None and found.left < 1e-8


def test_damping_changes_only_the_solve_and_not_the_minimum() -> None:
    """Expect dL/dθ = mean_t λ (A_t + (λ + damping) I)⁻¹ (φ*_t − d_t), with A_t and d_t of `Quadratic`."""
    tasks, outer = quadratic(steps=600)
    how = CG.model_copy(update={"damping": 0.3})
    found = IMAML(strength=0.7, gradient=how).meta_gradient(tasks, outer, SGD, 0)
    end = proximal_minimum(tasks.matrix, tasks.center, outer.theta["x"], 0.7)
    eye = torch.eye(4, dtype=torch.float64)
    expected = 0.7 * torch.linalg.solve(tasks.matrix + 1.0 * eye, end - tasks.target).mean(0)
    torch.testing.assert_close(found.gradients["theta.x"], expected, rtol=1e-6, atol=1e-8)


def test_the_imaml_gradient_on_a_net_is_the_derivative_of_the_minimum() -> None:
    """Use a λ that exceeds the Hessian's negative curvature, and run the inner loop to convergence."""
    tasks, outer = net_tasks(steps=300)
    found = IMAML(strength=2.0, gradient=CG).meta_gradient(tasks, outer, Optimizer("momentum", 0.5), 0)
    assert found.residual is not None and found.residual < 1e-8
    objective = Objective(Proximal(tasks, 2.0), Optimizer("momentum", 0.5))
    for name, toward in directions(outer, like=("theta.",)).items():
        measured = central_difference(objective, outer, name, toward)
        assert measured == pytest.approx(float((found.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name


def test_imaml_on_lora_reports_an_indefinite_hessian_and_damping_repairs_the_solve(tiny64: Base, lora64: LoRA) -> None:
    outer, tasks = text_outer(lora64, rate=0.02), text_tasks(tiny64, lora64, InnerConfig(steps=5))
    weak = meta_gradient(Proximal(tasks, 1e-3), outer, SGD, CG)
    damped = IMAML(strength=1e-3, gradient=CG.model_copy(update={"damping": 5.0})).meta_gradient(tasks, outer, SGD, 0)
    assert weak.residual is not None and weak.residual > 1e-3
    assert damped.residual is not None and damped.residual < 1e-6
    assert all(torch.isfinite(g).all() for g in damped.gradients.values())
    if weak.residual >= 1:
        with pytest.raises(NonFinite, match="the implicit solve made no progress"):
            IMAML(strength=1e-3, gradient=CG).meta_gradient(tasks, outer, SGD, 0)


def test_the_solvers_solve_each_task_and_report_when_they_cannot() -> None:
    tasks, _ = quadratic(tasks=3)
    v = {"x": tasks.center}

    def product(u: Any) -> dict[str, Tensor]:
        return {"x": torch.einsum("tij,tj->ti", tasks.matrix, u["x"])}

    expected = torch.linalg.solve(tasks.matrix, tasks.center)
    found = conjugate_gradient(product, v, iterations=10)
    torch.testing.assert_close(found.x["x"], expected, rtol=1e-8, atol=1e-10)
    series = neumann(product, v, iterations=500, rate=0.2)
    torch.testing.assert_close(series.x["x"], expected, rtol=1e-6, atol=1e-8)
    short = conjugate_gradient(product, v, iterations=2)
    left = tasks.center - product(short.x)["x"]
    assert short.residual == pytest.approx(float((left.norm(dim=1) / tasks.center.norm(dim=1)).max()))
    negative = conjugate_gradient(lambda u: {"x": -u["x"]}, v, iterations=10)
    assert negative.residual == 1.0 and not negative.x["x"].any()
    signs = torch.tensor([1.0, -1.0, 3.0, 2.0], dtype=torch.float64)
    for iterations in (1, 10, 50):  # A is indefinite: the solver stops, and is never worse than x = 0
        assert conjugate_gradient(lambda u: {"x": signs * u["x"]}, v, iterations=iterations).residual <= 1.0


def test_reptile_with_one_inner_step_is_joint_training() -> None:
    tasks, outer = net_tasks(steps=1)
    found = Reptile().meta_gradient(tasks, outer, SGD, 0)
    live = outer.detached(live=True)
    start = tasks.start(live)
    loss = tasks.support_loss(start.phi, live, 0, start).mean()
    for name, g in zip(live.theta, torch.autograd.grad(loss, list(live.theta.values())), strict=True):
        torch.testing.assert_close(found.gradients[f"theta.{name}"], 0.1 * g)
        assert not found.gradients[f"log_rates.{name}"].any()


def test_a_reptile_step_leads_to_the_mean_of_the_adapted_parameters() -> None:
    tasks, outer = quadratic(steps=2000)
    found = Reptile().meta_gradient(tasks, outer, SGD, 0)
    torch.testing.assert_close(outer.theta["x"] - found.gradients["theta.x"], tasks.center.mean(0))


def test_outer_sgd_with_rate_one_sets_theta_to_the_mean_of_the_adapted_parameters() -> None:
    tasks, outer = net_tasks(steps=3)
    state = OuterState.start(outer)
    config = OuterConfig(optimizer="sgd", learning_rate=1.0, warmup=0, clip=1e9)
    outer_step(config, state, Reptile().meta_gradient(tasks, outer, SGD, 0))
    for name, leaf in adapt(tasks, outer, SGD).phi.items():
        torch.testing.assert_close(state.leaves[f"theta.{name}"], leaf.mean(0))


def test_an_outer_sgd_step_is_the_rate_times_the_clipped_gradient() -> None:
    tasks, outer = net_tasks(steps=2)
    config = OuterConfig(optimizer="sgd", steps=10, learning_rate=0.5, rate_learning_rate=0.2, warmup=4, clip=0.1)
    state = OuterState.start(outer)
    for step in range(2):
        before = dict(state.leaves)
        found = MAML().meta_gradient(tasks, Outer.from_leaves(before), SGD, step)
        norm = outer_step(config, state, found)
        assert norm > 0.1
        for name, g in found.gradients.items():
            rate = 0.5 * 0.1 / norm if name.startswith("theta.") else 0.2
            torch.testing.assert_close(state.leaves[name], before[name] - schedule(config, step + 1) * rate * g)


def test_rows_per_step_takes_parts_of_the_support_set_in_turn() -> None:
    tasks, outer = net_tasks(steps=5)
    part = NetTasks(tasks.net, tasks.support, tasks.query, classify, steps=5, rows_per_step=2)
    phi = part.start(outer).phi
    for rows in ((0, 1), (2, 3), (4, 5), (0, 1), (2, 3)):
        live = {name: leaf.detach().requires_grad_() for name, leaf in phi.items()}
        outputs = tasks.outputs(live, outer, tasks.support.x[:, rows])
        loss = classify(outputs, tasks.support.y[:, rows])[0].sum()
        found = torch.autograd.grad(loss, list(live.values()))
        phi = {name: leaf - 0.1 * g for (name, leaf), g in zip(live.items(), found, strict=True)}
    for name, leaf in adapt(part, outer, SGD).phi.items():
        torch.testing.assert_close(leaf, phi[name])
    for rows_per_step in (0, 7):
        with pytest.raises(ValueError, match=f"rows_per_step: expected 1 to 6, .* got {rows_per_step}"):
            NetTasks(tasks.net, tasks.support, tasks.query, classify, steps=1, rows_per_step=rows_per_step)


def test_meta_sgd_with_constant_rates_is_maml() -> None:
    tasks, outer = net_tasks(steps=3)
    by_parameter = Outer(
        outer.theta, {n: outer.rates[n].view(1, *[1] * leaf.dim()).expand(1, *leaf.shape) for n, leaf in outer.theta.items()}
    )
    maml = MAML().meta_gradient(tasks, outer, SGD, 0)
    metasgd = MetaSGD().meta_gradient(tasks, by_parameter, SGD, 0)
    assert metasgd.loss == pytest.approx(maml.loss, rel=1e-12)
    for name in outer.theta:
        torch.testing.assert_close(metasgd.gradients[f"theta.{name}"], maml.gradients[f"theta.{name}"])
        # MAML shares one rate among all parameters of a leaf, so its derivative is the sum of MetaSGD's derivatives.
        torch.testing.assert_close(metasgd.gradients[f"log_rates.{name}"].sum(), maml.gradients[f"log_rates.{name}"].sum())


def test_fomaml_differs_from_maml_and_annealing_switches_between_them() -> None:
    tasks, outer = net_tasks(steps=3)
    first = FOMAML().meta_gradient(tasks, outer, SGD, 0).gradients
    second = MAML().meta_gradient(tasks, outer, SGD, 0).gradients
    annealed = MAML(annealed=10)
    for name in outer.theta:
        assert float((first[f"theta.{name}"] - second[f"theta.{name}"]).norm()) > 1e-3 * float(second[f"theta.{name}"].norm())
        assert torch.equal(annealed.meta_gradient(tasks, outer, SGD, 9).gradients[f"theta.{name}"], first[f"theta.{name}"])
        assert torch.equal(annealed.meta_gradient(tasks, outer, SGD, 10).gradients[f"theta.{name}"], second[f"theta.{name}"])


def test_the_multi_step_loss_fades_to_the_last_step() -> None:
    assert fading_weights(4, 0, 10) == [0.0, 0.25, 0.25, 0.25, 0.25]
    assert fading_weights(4, 5, 10) == [0.0, 0.125, 0.125, 0.125, 0.625]
    assert fading_weights(4, 10, 10) is None and fading_weights(4, 0, 0) is None
    assert fading_weights(0, 3, 10) == [1.0]
    tasks, outer = net_tasks(steps=3)
    faded = MAML(multi_step=10)
    weights = fading_weights(3, 4, 10)
    assert weights is not None
    expected = meta_gradient(tasks, outer, SGD, Differentiation(), weights=weights)
    found = faded.meta_gradient(tasks, outer, SGD, 4)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, expected.gradients[name])
    measured = Objective(tasks, SGD, weights)
    name, toward = next(iter(directions(outer).items()))
    assert central_difference(measured, outer, name, toward) == pytest.approx(
        float((found.gradients[name] * toward).sum()), rel=1e-5
    )


@pytest.mark.parametrize("mode", ["unrolled", "adjoint"])
def test_anil_moves_only_the_head(tiny64: Base, lora64: LoRA, mode: str) -> None:
    how = Differentiation.model_validate({"mode": mode})
    config = InnerConfig(steps=4, moved="head")
    outer, tasks = text_outer(lora64), text_tasks(tiny64, lora64, config)
    end = adapt(tasks, outer, SGD)
    assert set(end.phi) == {"head.weight", "head.bias"}
    adapted = tasks.adapted(end.phi, outer, end.of)
    assert all(torch.equal(leaf[0], outer.theta[name]) for name, leaf in adapted.delta.items())
    found = ANIL(gradient=how).meta_gradient(tasks, outer, SGD, 0)
    assert all(found.gradients[f"theta.{name}"].any() for name in outer.theta)


def test_protonet_takes_no_step_and_differentiates_the_prototypes(tiny64: Base, lora64: LoRA) -> None:
    outer, tasks = text_outer(lora64), text_tasks(tiny64, lora64, InnerConfig(steps=3))
    found = ProtoNet().meta_gradient(tasks, outer, SGD, 0)
    assert found.support_loss == ()
    without_steps = text_tasks(tiny64, lora64, InnerConfig(steps=0))
    for name, toward in directions(outer, like=("layer.0.attention.self.query", "log_scale")).items():
        measured = central_difference(Objective(without_steps, SGD), outer, name, toward)
        assert measured == pytest.approx(float((found.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("algorithm", [MAML(), MetaSGD(), Reptile(), IMAML(strength=20.0, gradient=CG)], ids=lambda a: a.name)
def test_the_gradient_of_several_tasks_is_the_mean_of_single_tasks(tiny64: Base, lora64: LoRA, algorithm: Any) -> None:
    outer, config = text_outer(lora64), InnerConfig(steps=2)
    together = algorithm.meta_gradient(text_tasks(tiny64, lora64, config, count=3), outer, smooth("sgd"), 0)
    alone = [
        algorithm.meta_gradient(text_tasks(tiny64, lora64, config, count=1, first=t), outer, smooth("sgd"), 0) for t in range(3)
    ]
    for name, gradient in together.gradients.items():
        mean = torch.stack([single.gradients[name] for single in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-6, atol=1e-9)
