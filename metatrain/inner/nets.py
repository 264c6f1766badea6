"""Tasks on a small net, all of whose parameters can be adapted: `NetTasks` implements `Tasks`.

    f(φ_t, x_t)     φ has a tensor [T, …] for each adapted parameter; buffers are shared and must not change in a forward pass

`torch.func.vmap` over the task axis runs T copies of the net in one pass, so the `nn.Module` must work with `torch.func`. Use this
module only for small nets: vmap fails on a Hugging Face encoder, and T copies of an encoder do not fit in memory. For encoders use
`metatrain.inner.supervised`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metatrain.inner.problem import Leaves, Outer, Start, stack

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(outputs [T, M, …], targets [T, M, …]) → each task's mean loss [T], and its score [T], where higher is better."""


@dataclass(frozen=True)
class Examples:
    """M examples of each of T tasks: `x` [T, M, …], `y` [T, M, …]."""

    x: Tensor
    y: Tensor


def classify(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean cross-entropy [T] and accuracy [T], for outputs [T, M, C] and labels [T, M]."""
    rows = nn.functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none")
    return rows.mean(1), (outputs.argmax(-1) == labels).to(outputs.dtype).mean(1)


def regress(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared error [T] and, as the score, its negative [T], for two tensors [T, M, …]."""
    error = (outputs - targets).square().flatten(1).mean(1)
    return error, -error


class NetTasks:
    """T tasks on one small net, with their support and query examples.

    `moved`: name prefixes of the parameters that the inner loop moves; empty for all parameters. The others stay at θ, as in ANIL,
    where only the last layer moves. `rows_per_step`: the number of support rows that one inner step uses. Successive steps use
    successive parts of the support set and return to the first part after the last complete one. None: each step uses all rows.
    iMAML needs None, because otherwise its Hessian would be that of one part.

    Raises ValueError if `moved` matches no parameter, or if the support set has fewer rows than `rows_per_step`.
    """

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
            raise ValueError(f"moved: expected prefixes of parameter names ({', '.join(names)}), got {', '.join(moved)}")
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
        """Return the net's outputs f(φ_t, x_t) for every task, [T, M, …]."""
        shared = {name: leaf for name, leaf in outer.theta.items() if name not in phi}

        def one_task(phi_t: dict[str, Tensor], rows: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.net, {**shared, **phi_t}, (rows,))
            return outputs

        outputs: Tensor = vmap(one_task)(dict(phi), x)
        return outputs


class EmbeddingTasks(NetTasks):
    """T tasks of nearest-prototype classification on a net's outputs f, with logits −‖f − p_c‖².

    Snell et al. 2017 (arXiv:1703.05175), eq. 2. The support loss classifies each support row by prototypes that include that row.
    """

    def __init__(self, net: nn.Module, support: Examples, query: Examples, *, steps: int) -> None:
        super().__init__(net, support, query, classify, steps=steps)

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        return classify(self._logits(phi, outer, self.support.x), self.support.y)[0]

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        return classify(self._logits(phi, outer, self.query.x), self.query.y)

    def _logits(self, phi: Leaves, outer: Outer, x: Tensor) -> Tensor:
        """Return the logits −‖f(x) − p_c‖², [T, M, C]."""
        members = nn.functional.one_hot(self.support.y).to(x.dtype)
        sums = torch.einsum("tmc,tmd->tcd", members, self.outputs(phi, outer, self.support.x))
        prototypes, rows = sums / members.sum(1).unsqueeze(-1), self.outputs(phi, outer, x)
        return (
            2 * rows @ prototypes.transpose(1, 2) - prototypes.square().sum(-1).unsqueeze(1) - rows.square().sum(-1, keepdim=True)
        )


def parameters(net: nn.Module) -> dict[str, Tensor]:
    """Return θ: a detached copy of the net's current parameters, with unchanged dtypes."""
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
