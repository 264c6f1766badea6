"""Several processes at one meta-batch: each takes some of its tasks, and all follow the mean.

Started by `torchrun --nproc-per-node N -m metatrain.cli train …`, which says in the environment who is who. A meta-gradient is a
mean over tasks, so the means of the processes, weighted by their numbers of tasks, are the gradient that one process alone would
find (up to the order of summation). Every process then takes the same outer step; the first one writes and reports.
"""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from metatrain.metagrad import MetaGradient


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
        """The mean over all tasks, from each process's mean over its `tasks` (None where it has none); `like`: the outer leaves."""
        if self.count == 1:
            assert own is not None
            return own
        gradients = {name: torch.zeros_like(leaf) if own is None else own.gradients[name].to(leaf) for name, leaf in like.items()}
        numbers = torch.tensor([0.0, 0.0] if own is None else [own.loss, own.accuracy])
        flat = torch.cat([*(g.flatten() for g in gradients.values()), numbers])
        total = torch.cat([flat * tasks, torch.tensor([float(tasks)])])
        if distributed.get_backend() == "nccl":
            total = total.cuda()
        distributed.all_reduce(total)
        total = total.cpu()
        parts = torch.split(total[:-1] / total[-1], [*(g.numel() for g in gradients.values()), 2])
        means = {name: part.view_as(g) for (name, g), part in zip(gradients.items(), parts[:-1], strict=True)}
        base = own or MetaGradient(0.0, 0.0, (), {})
        return replace(base, loss=float(parts[-1][0]), accuracy=float(parts[-1][1]), gradients=means)

    def agree(self, number: float) -> float:
        """The first process's number, in every process."""
        if self.count == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            shared = shared.cuda()
        distributed.broadcast(shared, src=0)
        return float(shared)


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
