"""Many adapters side by side on the device, gathered by row: one forward pass serves a batch of different adapters.

Leaves are preallocated, folded, as large as the largest of their name and padded with zeros: LoRA's A [S, R, D_in] and
B [S, D_out, R], say. Which slot a row uses is an argument of the call. The least recently used adapter makes room for a new one.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from metatrain.artifact import Adapter, Initialization
from metatrain.base.text import TextBase
from metatrain.deltas import DeltaKind
from metatrain.errors import ArtifactError, UnsupportedDelta
from metatrain.heads import ABSENT

SERVED = {"lora", "bottleneck", "ia3", "head"}
"""The kinds that leave a row alone where their leaves are zero, so that rows of other kinds can stand beside them."""


def refuse_unserved(initializations: Iterable[Initialization]) -> None:
    """Raises UnsupportedDelta, naming it, for an initialization whose adapters the bank cannot hold."""
    for init in initializations:
        if init.delta.kind not in SERVED:
            raise UnsupportedDelta(
                f"initialization {init.name!r}: adapters of kind {init.delta.kind} cannot be served yet, only "
                f"{', '.join(sorted(SERVED))}"
            )
        if init.base_update:
            raise UnsupportedDelta(
                f"initialization {init.name!r}: adapters of its own base model, of which {len(init.base_update)} parameters were "
                "learned too, cannot be served yet"
            )


class Bank:
    """`slots` adapters of the given delta kinds on one base model. Owned by one thread.

    Raises UnsupportedDelta for a kind whose rows cannot stand in one batch with others (prefix, prompt).
    """

    def __init__(self, base: TextBase, kinds: Sequence[DeltaKind], slots: int) -> None:
        self.base = base
        self.capacity = slots
        shapes: dict[str, tuple[int, ...]] = {}
        for kind in kinds:
            if kind.config.kind not in SERVED:
                raise UnsupportedDelta(
                    f"adapters of kind {kind.config.kind} cannot be served yet, only {', '.join(sorted(SERVED))}"
                )
            for name, shape in kind.shapes.items():
                met = shapes.get(name, shape)
                larger = tuple(map(max, shape, met))
                if larger not in (shape, met):
                    raise UnsupportedDelta(
                        f"leaf {name}: adapters of shapes {list(met)} and {list(shape)} cannot stand in one batch"
                    )
                shapes[name] = larger
        self._leaves = {name: torch.zeros(slots, *shape, device=base.device) for name, shape in shapes.items()}
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(slots))
        self._heads: dict[int, tuple[Tensor, Tensor]] = {}
        self._adapters: dict[int, Adapter] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._resident

    def __len__(self) -> int:
        return len(self._resident)

    def put(self, key: str, adapter: Adapter, keep: Sequence[str] = ()) -> None:
        """Make `adapter` resident under `key`; what goes for it is not one of `keep`.

        Raises ValueError where `keep` alone fills the bank, ArtifactError for a delta of a kind that the bank was not made for.
        """
        if key in self._resident:
            self._resident.move_to_end(key)
            return
        folded = self.base.attach(adapter.metadata.delta).fold(adapter.delta)
        if not all(self._holds(name, leaf) for name, leaf in folded.items()):
            raise ArtifactError(f"adapter: the bank has no room for its delta, {adapter.metadata.delta}")
        if not self._free:
            oldest = next((d for d in self._resident if d not in keep), None)
            if oldest is None:
                raise ValueError(f"a batch needs more than the bank's {self.capacity} adapters")
            self.drop(oldest)
        slot = self._free.pop()
        for name, leaf in self._leaves.items():
            leaf[slot].zero_()
            if name in folded:
                leaf[slot][tuple(slice(size) for size in folded[name].shape)] = folded[name].to(leaf.device)
        self._heads[slot] = adapter.weight.to(self.base.device), adapter.bias.to(self.base.device)
        self._adapters[slot] = adapter
        self._resident[key] = slot

    def _holds(self, name: str, leaf: Tensor) -> bool:
        return name in self._leaves and all(map(int.__le__, leaf.shape, self._leaves[name].shape[1:]))

    def drop(self, key: str) -> None:
        """Forget an adapter; nothing happens where it is not resident."""
        slot = self._resident.pop(key, None)
        if slot is not None:
            self._heads.pop(slot)
            self._adapters.pop(slot)
            self._free.append(slot)

    def labels(self, key: str) -> tuple[str, ...]:
        """The labels of a resident adapter. Raises KeyError."""
        return self._adapters[self._resident[key]].metadata.labels

    @torch.no_grad()
    def probabilities(self, keys: Sequence[str], ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Class probabilities of B rows, row i under the resident adapter keys[i], in that adapter's order of labels."""
        for key in dict.fromkeys(keys):
            self._resident.move_to_end(key)
        slots = [self._resident[key] for key in keys]
        index = torch.tensor(slots, device=self.base.device)
        features = self.base.features(self._leaves, self.base.collate(ids), slots=index)
        unique, row_head = torch.unique(index, return_inverse=True)
        used = unique.tolist()
        weight = nn.utils.rnn.pad_sequence([self._heads[slot][0] for slot in used], batch_first=True)
        bias = nn.utils.rnn.pad_sequence([self._heads[slot][1] for slot in used], batch_first=True, padding_value=ABSENT)
        scale = torch.tensor([self._adapters[slot].metadata.scale for slot in slots], device=self.base.device)
        cosine = torch.einsum("bcd,bd->bc", weight[row_head], features) + bias[row_head]
        rows = torch.softmax(scale.unsqueeze(1) * cosine, dim=-1).tolist()
        return [row[: len(self._adapters[slot].metadata.labels)] for row, slot in zip(rows, slots, strict=True)]
