"""Training with several processes, which share the tasks of each meta-batch.

Start them with `torchrun --nproc-per-node N -m metatrain.cli train …`, which sets rank and world size in the environment. A
meta-gradient is a mean over tasks. So the mean of the processes' gradients, weighted by their numbers of tasks, is the gradient
that a single process would compute, up to the order of summation. Every process then takes the same outer step. Only the first
process writes files and reports progress.
"""

import os
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, distributed

from metatrain.meta.differentiation import Mode
from metatrain.meta.metagrad import MetaGradient
from metatrain.training.outer_step import unusable_gradient

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Processes:
    """One process of a training run: its rank, and the number of processes that share the run."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, tasks: int) -> range:
        """Return the indices of this process's tasks among `tasks` tasks.

        The shares are contiguous and of nearly equal size; some are empty if there are fewer tasks than processes.
        """
        return range(tasks * self.rank // self.count, tasks * (self.rank + 1) // self.count)

    def mean(self, own: MetaGradient | None, like: dict[str, Tensor], tasks: int) -> tuple[MetaGradient, int]:
        """Return the mean meta-gradient over the tasks of all processes, and the number of these tasks.

        Every process must call this method. `own`: the mean over this process's `tasks` tasks; None if it has none. `like`: the
        outer leaves, which give the names and shapes. `residual` and `left` of the result are the largest of all processes. If no
        process has a task, the gradients are NaN.
        """
        if self.count == 1:
            return (unusable_gradient(like) if own is None else own), tasks
        gradients = {name: torch.zeros_like(leaf) if own is None else own.gradients[name].to(leaf) for name, leaf in like.items()}
        base = own or MetaGradient(0.0, 0.0, (), {})
        steps = int(self._largest(len(base.support_loss)))
        residual, left = (self._largest(-1.0 if number is None else number) for number in (base.residual, base.left))
        mode = MODES[int(self._largest(-1 if own is None else MODES.index(own.mode)))]
        numbers = torch.zeros(2 + steps)
        numbers[: 2 + len(base.support_loss)] = torch.tensor([base.loss, base.accuracy, *base.support_loss])
        flat = torch.cat([*(g.flatten() for g in gradients.values()), numbers])
        total = torch.cat([flat * tasks, torch.tensor([float(tasks)])])
        if distributed.get_backend() == "nccl":
            total = total.cuda()
        distributed.all_reduce(total)
        total = total.cpu()
        parts = torch.split(total[:-1] / total[-1], [*(g.numel() for g in gradients.values()), 2 + steps])
        means = {name: part.view_as(g) for (name, g), part in zip(gradients.items(), parts[:-1], strict=True)}
        loss, accuracy, *support = parts[-1].tolist()
        worst, farthest = (number if number >= 0 else None for number in (residual, left))
        return MetaGradient(loss, accuracy, tuple(support), means, worst, mode, farthest), int(total[-1])

    def gather(self, own: dict[int, float], count: int) -> list[float]:
        """Collect `count` numbers from all processes, and return them in the order of their indices.

        Every process must call this method. `own`: this process's numbers, {index: number}. The processes together must pass each
        index from 0 to `count` − 1 exactly once.
        """
        numbers = torch.zeros(count, dtype=torch.float64)
        for index, number in own.items():
            numbers[index] = number
        if self.count > 1:
            shared = numbers.cuda() if distributed.get_backend() == "nccl" else numbers
            distributed.all_reduce(shared)
            numbers = shared.cpu()
        gathered: list[float] = numbers.tolist()
        return gathered

    def _largest(self, number: float) -> float:
        """Return the largest `number` of all processes."""
        shared = self._tensor(number)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return float(shared)

    def _tensor(self, number: float) -> Tensor:
        shared = torch.tensor([number], dtype=torch.float64)
        return shared.cuda() if distributed.get_backend() == "nccl" else shared


ALONE = Processes()


def join() -> Processes:
    """Join the processes that torchrun started, or return `ALONE` (a single process) without torchrun.

    They communicate over nccl if every process on the machine has a GPU of its own, otherwise over gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", count)):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl")
    else:
        distributed.init_process_group("gloo")
    return Processes(rank, count)


def leave() -> None:
    """Leave the process group that `join` entered, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
