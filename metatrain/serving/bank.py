"""Many adapters side by side on the device, gathered by row: one forward pass serves a batch of different adapters.

Leaves are preallocated, folded, in the dtype of the base model, as large as the largest of their name and padded in front with
zeros: LoRA's A [S, R, D_in] and B [S, D_out, R], say. Which slot a row uses is an argument of the call. A batch reads what its
adapters need of them: ranks and virtual tokens that none of them has are not computed with.

What the bank holds is bounded in bytes. The least recently used adapter makes room for a new one and is handed to the caller, who
may keep it elsewhere.
"""

import itertools
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metatrain.artifacts.adapter import Adapter
from metatrain.deltas import DeltaKind
from metatrain.deltas.virtual import COUNTS
from metatrain.errors import ArtifactError, UnsupportedDelta
from metatrain.models.base import Base
from metatrain.readouts.registry import readout_kinds


@dataclass(frozen=True)
class PackedReadout:
    """What an adapter answers with: the packed `leaves` of its kind of readout, float32; its labels, if it has any; and the digest
    of its initialization."""

    kind: str
    leaves: dict[str, Tensor]
    labels: tuple[str, ...]
    initialization: str

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves.values())

    def on(self, device: torch.device) -> "PackedReadout":
        return replace(self, leaves={name: leaf.to(device) for name, leaf in self.leaves.items()})


@dataclass(frozen=True)
class Packed:
    """An adapter as the bank takes it: `leaves` folded, with its numbers of virtual tokens, and its readout."""

    leaves: dict[str, Tensor]
    readout: PackedReadout

    @property
    def nbytes(self) -> int:
        return self.readout.nbytes + sum(leaf.nbytes for leaf in self.leaves.values())


def pack(adapter: Adapter, base: Base) -> Packed:
    """Prepare an adapter on the CPU. Any thread may."""
    kind = base.attach(adapter.metadata.delta)
    leaves = {name: leaf.to(base.dtype) for name, leaf in kind.fold(adapter.delta).items()}
    leaves |= {name: torch.tensor(float(count), dtype=base.dtype) for name, count in kind.counts.items()}
    about = adapter.metadata
    packed = readout_kinds()[about.readout].answers.pack(adapter.answering, about.scale)
    return Packed(leaves, PackedReadout(about.readout, packed, about.labels, about.initialization_digest))


@dataclass(frozen=True)
class _Slot:
    """What a slot holds beside its place in the leaves: which of them it uses, how much of each, and its readout on the device."""

    shapes: dict[str, torch.Size]
    readout: PackedReadout


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
        self._readouts_may = most_bytes - self.slots * slot_bytes
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
        return sum(leaf.nbytes for leaf in self._leaves.values()) + sum(slot.readout.nbytes for slot in self._held.values())

    def put(self, key: str, adapter: Packed, keep: Collection[str] = ()) -> dict[str, Packed]:
        """Make `adapter` resident under `key`. Returns what had to go for it, which is none of `keep`; readouts of `keep` alone may
        take more than their share.

        Raises ValueError where `keep` fills every slot, ArtifactError for a delta of a kind that the bank was not made for.
        """
        if key in self._resident:
            self._resident.move_to_end(key)
            return {}
        if not all(self._holds(name, leaf) for name, leaf in adapter.leaves.items()):
            raise ArtifactError("adapter: the bank has no room for its delta: another kind than those it serves, or larger")
        gone: dict[str, Packed] = {}
        while not self._free or self._readouts_are_too_many(adapter):
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
        self._held[slot] = _Slot(shapes, adapter.readout.on(self.base.device))
        self._resident[key] = self._free.pop()
        return gone

    def _holds(self, name: str, leaf: Tensor) -> bool:
        room = self._leaves[name].shape[1:] if name in self._leaves else None
        return room is not None and len(leaf.shape) == len(room) and all(map(int.__le__, leaf.shape, room))

    def _readouts_are_too_many(self, adapter: Packed) -> bool:
        taken = sum(slot.readout.nbytes for slot in self._held.values())
        return bool(taken) and taken + adapter.readout.nbytes > self._readouts_may

    def take(self, key: str) -> Packed:
        """Remove an adapter and return it, on the CPU. Raises KeyError."""
        slot = self._resident.pop(key)
        held = self._held.pop(slot)
        self._free.append(slot)
        leaves = {name: self._leaves[name][slot][_last(shape)].to("cpu", copy=True) for name, shape in held.shapes.items()}
        return Packed(leaves, held.readout.on(torch.device("cpu")))

    def labels(self, key: str) -> tuple[str, ...]:
        """The labels of a resident adapter. Raises KeyError."""
        return self._held[self._resident[key]].readout.labels

    @torch.no_grad()
    def answers(self, keys: Sequence[str], inputs: Sequence[Any]) -> list[Any]:
        """Answer B encoded rows, row i with the resident adapter keys[i]: for classes, probabilities in the order of its labels."""
        for key in dict.fromkeys(keys):
            self._resident.move_to_end(key)
        slots = [self._resident[key] for key in keys]
        found: list[Any] = [None] * len(keys)
        for update, rows_of in self._by_base_update(slots).items():
            rows = [row for own in rows_of.values() for row in own]
            in_turn = [slot for slot, own in rows_of.items() for _ in own]
            features = self._features(in_turn, [inputs[row] for row in rows], self._updates.get(update, {}))
            for answer, row in zip(self._read_out(rows_of, features), rows, strict=True):
                found[row] = answer
        return found

    def _by_base_update(self, slots: Sequence[int]) -> dict[str, dict[int, list[int]]]:
        """The rows of each slot, by the base update that their adapters want ("": none)."""
        found: dict[str, dict[int, list[int]]] = {}
        for row, slot in enumerate(slots):
            digest = self._held[slot].readout.initialization
            rows_of = found.setdefault(digest if digest in self._updates else "", {})
            rows_of.setdefault(slot, []).append(row)
        return found

    def _read_out(self, rows_of: Mapping[int, Sequence[int]], features: Tensor) -> list[Any]:
        """The answers to features [B, D], whose rows are those of one slot after the other."""
        runs = [(self._held[slot].readout, len(rows)) for slot, rows in rows_of.items()]
        ends = list(itertools.accumulate(rows for _, rows in runs))
        found: dict[int, list[Any]] = {}
        for kind in dict.fromkeys(readout.kind for readout, _ in runs):
            own = [number for number, (readout, _) in enumerate(runs) if readout.kind == kind]
            parts = [features[ends[number] - runs[number][1] : ends[number]] for number in own]
            together = features if len(own) == len(runs) else torch.cat(parts)
            answers = iter(readout_kinds()[kind].answers.answer([(runs[n][0].leaves, runs[n][1]) for n in own], together))
            found |= {number: [next(answers) for _ in range(runs[number][1])] for number in own}
        return [answer for number in sorted(found) for answer in found[number]]

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
