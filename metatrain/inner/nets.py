"""T tasks for all the parameters of a small net: `metatrain.inner.problem.Tasks` for any `nn.Module` that fits `torch.func`.

    f(φ_t, x_t)     every parameter of the net is a leaf of φ, [T, …]; buffers are shared and must not change in a forward pass

`torch.func.vmap` over the task axis runs T copies of the net in one pass. It is for small nets alone: over a Hugging Face encoder
it fails, and a stack of T encoders fits nowhere (`metatrain.inner.supervised` is for those).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metatrain.inner.problem import Leaves, Outer, Start, stack

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(outputs [T, M, …], targets [T, M, …]) → the mean loss of each task [T] and a score, higher is better [T]."""


@dataclass(frozen=True)
class Examples:
    """M examples of each of T tasks: `x` [T, M, …], `y` [T, M, …]."""

    x: Tensor
    y: Tensor


def classify(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy: outputs [T, M, C], labels [T, M]."""
    rows = nn.functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none")
    return rows.mean(1), (outputs.argmax(-1) == labels).to(outputs.dtype).mean(1)


def regress(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error, and its negative as the score: both [T, M, …]."""
    error = (outputs - targets).square().flatten(1).mean(1)
    return error, -error


class NetTasks:
    """T tasks of one net. `moved`: beginnings of the names of the parameters that the inner loop moves, all where empty; the others
    stay θ (ANIL: the last layer moves). `rows_per_step`: inner steps take so many rows of the support set in turn, in the order in
    which it has them, from the beginning again after its last whole share; all of it where None, as iMAML wants it, whose Hessian
    would be of a part alone.

    Raises ValueError where `moved` names none, or the support set does not have so many rows."""

    no_second_derivative: str | None = None
    no_differences: str | None = None
    proximal = 0.0

    def __init__(
        self,
        net: nn.Module,
        support: Examples,
        query: Examples,
        loss: Loss,
        *,
        steps: int,
        moved: Sequence[str] = (),
        rows_per_step: int | None = None,
    ) -> None:
        self.net, self.support, self.query, self.loss, self.steps = net, support, query, loss, steps
        self.count = support.x.shape[0]
        names = [name for name, _ in net.named_parameters()]
        self.moved = [name for name in names if not moved or name.startswith(tuple(moved))]
        if not self.moved:
            raise ValueError(f"moved: expected the beginning of a parameter's name ({', '.join(names)}), got {', '.join(moved)}")
        self.rows_per_step = support.x.shape[1] if rows_per_step is None else rows_per_step
        if not 1 <= self.rows_per_step <= support.x.shape[1]:
            raise ValueError(f"rows_per_step: expected 1 to {support.x.shape[1]}, the rows of a support set, got {rows_per_step}")

    def start(self, outer: Outer) -> Start:
        theta = stack(outer.theta, self.count)
        return Start({name: theta[name].view_as(theta[name]) for name in self.moved}, (self.steps,) * self.count)

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        rows = self._rows(step)
        return self.loss(self.outputs(phi, outer, self.support.x[:, rows]), self.support.y[:, rows])[0]

    def _rows(self, step: int) -> slice:
        begin = step % (self.support.x.shape[1] // self.rows_per_step) * self.rows_per_step
        return slice(begin, begin + self.rows_per_step)

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return self.loss(self.outputs(phi, outer, self.query.x), self.query.y)

    def outputs(self, phi: Leaves, outer: Outer, x: Tensor) -> Tensor:
        """f(φ_t, x_t) for every task, [T, M, …]."""
        still = {name: leaf for name, leaf in outer.theta.items() if name not in phi}

        def one(own: dict[str, Tensor], rows: Tensor) -> Tensor:
            found: Tensor = functional_call(self.net, {**still, **own}, (rows,))
            return found

        together: Tensor = vmap(one)(dict(phi), x)
        return together


class EmbeddingTasks(NetTasks):
    """Classification by the nearest prototype of the net's outputs: logits −‖f − p_c‖² (Snell et al. 2017, arXiv:1703.05175,
    eq. 2). The support loss is that of each row against the prototypes that it is itself a part of."""

    def __init__(self, net: nn.Module, support: Examples, query: Examples, *, steps: int) -> None:
        super().__init__(net, support, query, classify, steps=steps)

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        return classify(self._logits(phi, outer, self.support.x), self.support.y)[0]

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return classify(self._logits(phi, outer, self.query.x), self.query.y)

    def _logits(self, phi: Leaves, outer: Outer, x: Tensor) -> Tensor:
        """[T, M, C]"""
        members = nn.functional.one_hot(self.support.y).to(x.dtype)
        sums = torch.einsum("tmc,tmd->tcd", members, self.outputs(phi, outer, self.support.x))
        prototypes, rows = sums / members.sum(1).unsqueeze(-1), self.outputs(phi, outer, x)
        return (
            2 * rows @ prototypes.transpose(1, 2) - prototypes.square().sum(-1).unsqueeze(1) - rows.square().sum(-1, keepdim=True)
        )


def parameters(net: nn.Module) -> dict[str, Tensor]:
    """One task's θ: the net's parameters as they are now, float32 or as they are."""
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
