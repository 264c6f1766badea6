"""Many adapters side by side on the device, gathered by row: one forward pass serves a batch of different adapters.

Leaves are preallocated, folded, in the dtype of the base model, as large as the largest of their name and padded in front with
zeros: LoRA's A [S, R, D_in] and B [S, D_out, R], say. Which slot a row uses is an argument of the call. A batch reads what its
adapters need of them: ranks and virtual tokens that none of them has are not computed with.

What the bank holds is bounded in bytes. The least recently used adapter makes room for a new one and is handed to the caller, who
may keep it elsewhere.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metatrain.artifacts.artifact import Adapter
from metatrain.deltas import DeltaKind
from metatrain.deltas.virtual import COUNTS
from metatrain.errors import ArtifactError, UnsupportedDelta
from metatrain.models.base import Base
from metatrain.readouts.heads import ABSENT


@dataclass(frozen=True)
class PackedHead:
    """`weight` [C, D] and `bias` [C] over the temperature, float32; the C labels; and the digest of the initialization."""

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]
    initialization: str

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes

    def on(self, device: torch.device) -> "PackedHead":
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))


@dataclass(frozen=True)
class Packed:
    """An adapter as the bank takes it: `leaves` folded, with its numbers of virtual tokens, and its head."""

    leaves: dict[str, Tensor]
    head: PackedHead

    @property
    def nbytes(self) -> int:
        return self.head.nbytes + sum(leaf.nbytes for leaf in self.leaves.values())


def pack(adapter: Adapter, base: Base) -> Packed:
    """On the CPU. Any thread may."""
    kind = base.attach(adapter.metadata.delta)
    leaves = {name: leaf.to(base.dtype) for name, leaf in kind.fold(adapter.delta).items()}
    leaves |= {name: torch.tensor(float(count), dtype=base.dtype) for name, count in kind.counts.items()}
    about = adapter.metadata
    return Packed(
        leaves,
        PackedHead(about.scale * adapter.weight, about.scale * adapter.bias, about.labels, about.initialization_digest),
    )


@dataclass(frozen=True)
class _Slot:
    """What a slot holds beside its place in the leaves: which of them it uses, how much of each, and its head on the device."""

    shapes: dict[str, torch.Size]
    head: PackedHead


class Bank:
    """As many adapters of the given delta kinds on one base model as `most_bytes` hold, but at least one. Owned by one thread.

    `updates`: by digest of an initialization, the parameters of the base model that its adapters want in the place of its own;
    rows that agree in them share a forward pass. Raises UnsupportedDelta for kinds with leaves of one name of which none is the
    larger in all dimensions.
    """

    def __init__(
        self,
        base: Base,
        kinds: Sequence[DeltaKind],
        most_bytes: int,
        updates: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        self.base = base
        shapes: dict[str, tuple[int, ...]] = {}
        for kind in kinds:
            for name, shape in {**kind.shapes, **dict.fromkeys(kind.counts, ())}.items():
                met = shapes.get(name, shape)
                shapes[name] = tuple(map(max, shape, met))
                if len(shape) != len(met) or shapes[name] not in (shape, met):
                    raise UnsupportedDelta(
                        f"leaf {name}: adapters of shapes {list(met)} and {list(shape)} cannot stand in one batch"
                    )
        slot_bytes = sum(torch.Size(shape).numel() for shape in shapes.values()) * base.dtype.itemsize
        self.slots = max(1, most_bytes // (slot_bytes + _HEAD_CLASSES * (base.hidden_size + 1) * 4))
        self._heads_may = most_bytes - self.slots * slot_bytes
        self._leaves = {name: torch.zeros(self.slots, *s, dtype=base.dtype, device=base.device) for name, s in shapes.items()}
        self._updates = {
            digest: {name: new.to(base.device, base.dtype) for name, new in update.items()}
            for digest, update in updates.items()
            if update
        }
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(self.slots))
        self._held: dict[int, _Slot] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._resident

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def nbytes(self) -> int:
        """What is allocated on the device."""
        return sum(leaf.nbytes for leaf in self._leaves.values()) + sum(slot.head.nbytes for slot in self._held.values())

    def put(self, key: str, adapter: Packed, keep: Collection[str] = ()) -> dict[str, Packed]:
        """Make `adapter` resident under `key`. Returns what had to go for it, which is none of `keep`; heads of `keep` alone may
        take more than their share.

        Raises ValueError where `keep` fills every slot, ArtifactError for a delta of a kind that the bank was not made for.
        """
        if key in self._resident:
            self._resident.move_to_end(key)
            return {}
        if not all(self._holds(name, leaf) for name, leaf in adapter.leaves.items()):
            raise ArtifactError("adapter: the bank has no room for its delta: another kind than those it serves, or larger")
        gone: dict[str, Packed] = {}
        while not self._free or self._heads_are_too_many(adapter):
            oldest = next((other for other in self._resident if other not in keep), None)
            if oldest is not None:
                gone[oldest] = self.take(oldest)
            elif self._free:
                break
            else:
                raise ValueError(f"a batch needs more than the bank's {self.slots} adapters")
        slot = self._free[-1]  # taken once all of it is there
        for name, leaf in self._leaves.items():
            leaf[slot].zero_()
            if name in adapter.leaves:
                leaf[slot][_last(adapter.leaves[name].shape)] = adapter.leaves[name].to(leaf.device)
        shapes = {name: leaf.shape for name, leaf in adapter.leaves.items()}
        self._held[slot] = _Slot(shapes, adapter.head.on(self.base.device))
        self._resident[key] = self._free.pop()
        return gone

    def _holds(self, name: str, leaf: Tensor) -> bool:
        room = self._leaves[name].shape[1:] if name in self._leaves else None
        return room is not None and len(leaf.shape) == len(room) and all(map(int.__le__, leaf.shape, room))

    def _heads_are_too_many(self, adapter: Packed) -> bool:
        taken = sum(slot.head.nbytes for slot in self._held.values())
        return bool(taken) and taken + adapter.head.nbytes > self._heads_may

    def take(self, key: str) -> Packed:
        """Remove an adapter and return it, on the CPU. Raises KeyError."""
        slot = self._resident.pop(key)
        held = self._held.pop(slot)
        self._free.append(slot)
        leaves = {name: self._leaves[name][slot][_last(shape)].to("cpu", copy=True) for name, shape in held.shapes.items()}
        return Packed(leaves, held.head.on(torch.device("cpu")))

    def labels(self, key: str) -> tuple[str, ...]:
        """The labels of a resident adapter. Raises KeyError."""
        return self._held[self._resident[key]].head.labels

    @torch.no_grad()
    def probabilities(self, keys: Sequence[str], inputs: Sequence[Any]) -> list[list[float]]:
        """Class probabilities of B rows, row i under the resident adapter keys[i], in that adapter's order of labels."""
        for key in dict.fromkeys(keys):
            self._resident.move_to_end(key)
        by_base_model: dict[str, dict[int, list[int]]] = {}
        for row, key in enumerate(keys):
            slot = self._resident[key]
            model = self._held[slot].head.initialization
            rows_of = by_base_model.setdefault(model if model in self._updates else "", {})
            rows_of.setdefault(slot, []).append(row)
        answers: list[list[float]] = [[] for _ in keys]
        for model, rows_of in by_base_model.items():
            rows = [row for own in rows_of.values() for row in own]
            slots = [slot for slot, own in rows_of.items() for _ in own]
            features = self._features(slots, [inputs[row] for row in rows], self._updates.get(model, {}))
            most = max(len(self._held[slot].head.labels) for slot in rows_of)
            logits = features.new_full((len(rows), most), ABSENT)
            done = 0
            for slot, own in rows_of.items():  # padding heads to the largest would move more bytes than these products do
                head, part = self._held[slot].head, slice(done, done + len(own))
                logits[part, : len(head.labels)] = torch.addmm(head.bias, features[part], head.weight.T)
                done += len(own)
            shares = torch.softmax(logits, dim=-1).tolist()
            for row, slot, found in zip(rows, slots, shares, strict=True):
                answers[row] = found[: len(self._held[slot].head.labels)]
        return answers

    def _features(self, slots: Sequence[int], inputs: Sequence[Any], updated: Mapping[str, Tensor]) -> Tensor:
        """[B, D] of rows that share a base model."""
        used = [self._held[slot].shapes for slot in dict.fromkeys(slots)]
        needed: dict[str, tuple[int, ...]] = {}
        for shapes in used:
            for name, shape in shapes.items():
                needed[name] = tuple(map(max, shape, needed.get(name, shape)))
        if all(shapes == used[0] for shapes in used):  # nothing is padded
            needed = {name: shape for name, shape in needed.items() if name.split(".")[-1] not in COUNTS}
        delta = {name: self._leaves[name][(slice(None), *_last(shape))] for name, shape in needed.items()}
        batch = self.base.inputs.collate(inputs)
        if len(used) == 1:
            one = {name: leaf[slots[0]].unsqueeze(0) for name, leaf in delta.items()}
            return self.base.features(one, batch, updated=updated)
        return self.base.features(delta, batch, slots=torch.tensor(slots, device=self.base.device), updated=updated)


_HEAD_CLASSES = 8  # a head of which every slot has room for; smaller ones leave theirs to larger ones


def _last(shape: Sequence[int]) -> tuple[slice, ...]:
    """Where a leaf of this shape stands in one that is as large or larger: at the end of every dimension."""
    return tuple(slice(-size, None) for size in shape)
