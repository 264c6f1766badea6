"""Several processes at one meta-batch: each takes some of its tasks, and all follow the mean.

Started by `torchrun --nproc-per-node N -m metatrain.cli train …`, which says in the environment who is who. A meta-gradient is a
mean over tasks, so the means of the processes, weighted by their numbers of tasks, are the gradient that one process alone would
find (up to the order of summation). Every process then takes the same outer step; the first one writes and reports.
"""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from metatrain.meta.metagrad import MetaGradient


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, tasks: int) -> range:
        """The numbers of this process's tasks among `tasks`: near-equal runs, empty where there are fewer tasks than processes."""
        return range(tasks * self.rank // self.count, tasks * (self.rank + 1) // self.count)

    def mean(self, own: MetaGradient | None, like: dict[str, Tensor], tasks: int) -> MetaGradient:
        """The mean over all tasks, and of residuals the largest, from each process's own over its `tasks` (None where it has none);
        `like`: the outer leaves."""
        if self.count == 1:
            assert own is not None
            return own
        gradients = {name: torch.zeros_like(leaf) if own is None else own.gradients[name].to(leaf) for name, leaf in like.items()}
        base = own or MetaGradient(0.0, 0.0, (), {})
        steps = int(self._largest(len(base.support_loss)))
        residual = self._largest(-1.0 if base.residual is None else base.residual)
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
        worst = residual if residual >= 0 else None
        return replace(base, loss=loss, accuracy=accuracy, support_loss=tuple(support), gradients=means, residual=worst)

    def agree(self, number: float) -> float:
        """The first process's number, in every process."""
        if self.count == 1:
            return number
        shared = self._one(number)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def _largest(self, number: float) -> float:
        """Of every process's number."""
        shared = self._one(number)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return float(shared)

    def _one(self, number: float) -> Tensor:
        shared = torch.tensor([number], dtype=torch.float64)
        return shared.cuda() if distributed.get_backend() == "nccl" else shared


ALONE = Processes()


def join() -> Processes:
    """The processes that torchrun started, or this one alone; over nccl where every process has a GPU of its own, else gloo."""
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
    """The end of `join`."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
