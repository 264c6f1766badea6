"""A bank of adapters on the device: one forward pass serves a batch of rows with different adapters.

The bank has S slots, one for each adapter. It preallocates every leaf for all slots, in the form that the hooks read
(`DeltaKind.fold`) and in the dtype of the base model: for LoRA, A [S, R, D_in] and B [S, D_out, R]. If several of the served deltas
have a leaf of the same name, the bank allocates the largest of their shapes, and pads smaller leaves in front with zeros. A call
computes with no more ranks and virtual tokens than the adapters in its batch need.

The size of the bank is limited in bytes. A full bank evicts the least recently used adapter and returns it to the caller, which may
store it elsewhere.
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
    """The readout of an adapter, in the form from which it predicts.

    `kind`: the name of the readout kind. `leaves`: the tensors that `Answers.pack` returned, float32. `labels`: empty for a kind
    without labels. `initialization`: the digest of the adapter's initialization.
    """

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
    """An adapter in the form in which the bank stores it.

    `leaves`: the delta after `DeltaKind.fold`, and its numbers of virtual tokens (`DeltaKind.counts`), in the dtype of the base
    model. `per_token`: `DeltaKind.per_token`.
    """

    leaves: dict[str, Tensor]
    readout: PackedReadout
    per_token: bool

    @property
    def nbytes(self) -> int:
        return self.readout.nbytes + sum(leaf.nbytes for leaf in self.leaves.values())


def pack(adapter: Adapter, base: Base) -> Packed:
    """Convert an adapter to the form that `Bank.put` takes, on the CPU. Thread-safe."""
    metadata = adapter.metadata
    kind = base.attach(metadata.delta)
    leaves = {name: leaf.to(base.dtype) for name, leaf in kind.fold(adapter.delta).items()}
    leaves |= {name: torch.tensor(float(count), dtype=base.dtype) for name, count in kind.counts.items()}
    packed = readout_kinds()[metadata.readout].answers.pack(adapter.answering, metadata.scale)
    return Packed(leaves, PackedReadout(metadata.readout, packed, metadata.labels, metadata.initialization_digest), kind.per_token)


@dataclass(frozen=True)
class _Slot:
    """The adapter in a slot: the shapes of its leaves, and its readout on the device.

    `per_token`: `DeltaKind.per_token`.
    """

    shapes: dict[str, torch.Size]
    readout: PackedReadout
    per_token: bool


class Bank:
    """A limited memory on the device for adapters of one base model. Only one thread may use it.

    `kinds`: the delta kinds of the adapters. `most_bytes`: the memory for adapters, which determines the number of slots; there is
    at least one slot. `updates`: for each digest of an initialization, the parameters of the base model that its adapters replace.
    Rows with the same replaced parameters share a forward pass.

    Raises UnsupportedDelta if adapters of two kinds cannot be in one batch.
    """

    def __init__(
        self,
        base: Base,
        kinds: Sequence[DeltaKind],
        most_bytes: int,
        updates: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        self.base, self._kinds, self._most_bytes = base, list(kinds), most_bytes
        self._updates: dict[str, dict[str, Tensor]] = {}
        for digest, update in updates.items():
            self._add_update(digest, update)
        self._allocate(_slot_shapes(self._kinds))

    def _add_update(self, digest: str, update: Mapping[str, Tensor]) -> None:
        if update:
            self._updates[digest] = {name: new.to(self.base.device, self.base.dtype) for name, new in update.items()}

    def _allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate empty slots with leaves of these shapes."""
        dtype, device = self.base.dtype, self.base.device
        slot_bytes = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
        self.slots = max(1, self._most_bytes // (slot_bytes + _HEAD_CLASSES * (self.base.feature_size + 1) * 4))
        self._readout_budget = self._most_bytes - self.slots * slot_bytes
        self._leaves = {name: torch.zeros(self.slots, *shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(self.slots))
        self._contents: dict[int, _Slot] = {}
        self._readout_bytes = 0  # of all contents

    def support(self, kind: DeltaKind, initialization: str, update: Mapping[str, Tensor]) -> dict[str, Packed]:
        """Support adapters of one more initialization, and return the adapters that were evicted for it.

        `kind`: its delta kind. `initialization`: its digest. `update`: the parameters of the base model that its adapters replace.
        If a slot has to be larger than before, the bank has fewer slots afterwards, and the least recently used adapters are
        evicted.

        Raises UnsupportedDelta, and changes nothing, if adapters of this kind cannot be in one batch with the others.
        """
        kinds = [*self._kinds, kind]
        shapes = _slot_shapes(kinds)
        evicted: dict[str, Packed] = {}
        if shapes != _slot_shapes(self._kinds):
            residents = {key: self.take(key) for key in list(self._resident)}  # the least recently used first
            self._leaves.clear()  # frees the old slots before the new ones are allocated
            try:
                self._allocate(shapes)
            except RuntimeError:  # out of memory: the bank goes on with the old slots, empty
                self._allocate(_slot_shapes(self._kinds))
                raise
            for key, adapter in residents.items():
                evicted |= self.put(key, adapter)
        self._kinds = kinds
        self._add_update(initialization, update)
        return evicted

    def __contains__(self, key: str) -> bool:
        return key in self._resident

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def nbytes(self) -> int:
        """The number of bytes allocated on the device."""
        return sum(leaf.nbytes for leaf in self._leaves.values()) + self._readout_bytes

    def put(self, key: str, adapter: Packed, keep: Collection[str] = ()) -> dict[str, Packed]:
        """Store `adapter` in a slot under `key`, and return the adapters that were evicted to make room.

        If the bank already has an adapter under `key`, only marks it as recently used. Adapters in `keep` are never evicted, even
        if their readouts together need more than the bank's memory for readouts. Raises ValueError if adapters in `keep` fill every
        slot, and ArtifactError if the adapter's delta does not fit the delta kinds of the bank.
        """
        if key in self._resident:
            self._resident.move_to_end(key)
            return {}
        if not all(self._fits(name, leaf) for name, leaf in adapter.leaves.items()):
            raise ArtifactError("adapter: its delta does not fit the bank: expected a delta of the kinds and sizes that it serves")
        evicted: dict[str, Packed] = {}
        while not self._free or self._exceeds_readout_budget(adapter):
            oldest = next((other for other in self._resident if other not in keep), None)
            if oldest is not None:
                evicted[oldest] = self.take(oldest)
            elif self._free:
                break
            else:
                raise ValueError(f"a batch needs more than the bank's {self.slots} adapters")
        slot = self._free[-1]  # popped only after everything is copied, so that an error leaves the slot free
        for name, leaf in self._leaves.items():
            leaf[slot].zero_()
            if name in adapter.leaves:
                leaf[slot][_trailing(adapter.leaves[name].shape)] = adapter.leaves[name].to(leaf.device)
        shapes = {name: leaf.shape for name, leaf in adapter.leaves.items()}
        self._contents[slot] = _Slot(shapes, adapter.readout.on(self.base.device), adapter.per_token)
        self._resident[key] = self._free.pop()
        self._readout_bytes += adapter.readout.nbytes
        return evicted

    def _fits(self, name: str, leaf: Tensor) -> bool:
        room = self._leaves[name].shape[1:] if name in self._leaves else None
        return room is not None and len(leaf.shape) == len(room) and all(map(int.__le__, leaf.shape, room))

    def _exceeds_readout_budget(self, adapter: Packed) -> bool:
        used = self._readout_bytes
        return bool(used) and used + adapter.readout.nbytes > self._readout_budget

    def take(self, key: str) -> Packed:
        """Remove an adapter from the bank and return it, on the CPU. Raises KeyError if it is not in the bank."""
        slot = self._resident.pop(key)
        content = self._contents.pop(slot)
        self._readout_bytes -= content.readout.nbytes
        self._free.append(slot)
        leaves = {name: self._leaves[name][slot][_trailing(shape)].to("cpu", copy=True) for name, shape in content.shapes.items()}
        return Packed(leaves, content.readout.on(torch.device("cpu")), content.per_token)

    def labels(self, key: str) -> tuple[str, ...]:
        """Return the labels of the adapter under `key`. Raises KeyError if it is not in the bank."""
        return self._contents[self._resident[key]].readout.labels

    @torch.no_grad()
    def answers(self, keys: Sequence[str], inputs: Sequence[Any]) -> list[Any]:
        """Predict for B encoded rows, row i with the adapter under `keys[i]`, and return one answer per row.

        The answer of a classification readout is a list of probabilities in the order of the adapter's labels. The answer of a row
        whose features are not finite is None: a readout would make up a label for it. Raises KeyError if an adapter is not in the
        bank.
        """
        for key in dict.fromkeys(keys):
            self._resident.move_to_end(key)
        slots = [self._resident[key] for key in keys]
        answers: list[Any] = [None] * len(keys)
        for update, slot_rows in self._by_base_update(slots).items():
            order = [row for rows in slot_rows.values() for row in rows]
            row_slots = [slot for slot, rows in slot_rows.items() for _ in rows]
            features = self._features(row_slots, [inputs[row] for row in order], self._updates.get(update, {}))
            finite = features.isfinite().all(1)
            found = self._read_out(slot_rows, features.where(finite.unsqueeze(1), 0.0))
            for answer, row, usable in zip(found, order, finite.tolist(), strict=True):
                answers[row] = answer if usable else None
        return answers

    def _by_base_update(self, slots: Sequence[int]) -> dict[str, dict[int, list[int]]]:
        """Group row numbers by the base update of their adapters, and within each base update by slot.

        A base update is identified by the digest of its initialization. "" means no base update.
        """
        groups: dict[str, dict[int, list[int]]] = {}
        for row, slot in enumerate(slots):
            digest = self._contents[slot].readout.initialization
            slot_rows = groups.setdefault(digest if digest in self._updates else "", {})
            slot_rows.setdefault(slot, []).append(row)
        return groups

    def _read_out(self, slot_rows: Mapping[int, Sequence[int]], features: Tensor) -> list[Any]:
        """Return the answers for features [B, D], which are in the order of the rows in `slot_rows`.

        `slot_rows`: the row numbers of each slot. Only their count matters here.
        """
        runs = [(self._contents[slot].readout, len(rows)) for slot, rows in slot_rows.items()]
        ends = list(itertools.accumulate(rows for _, rows in runs))
        by_run: dict[int, list[Any]] = {}
        for kind in dict.fromkeys(readout.kind for readout, _ in runs):
            members = [number for number, (readout, _) in enumerate(runs) if readout.kind == kind]
            parts = [features[ends[number] - runs[number][1] : ends[number]] for number in members]
            kind_features = features if len(members) == len(runs) else torch.cat(parts)
            kind_runs = [(runs[number][0].leaves, runs[number][1]) for number in members]
            answers = iter(readout_kinds()[kind].answers.answer(kind_runs, kind_features))
            by_run |= {number: [next(answers) for _ in range(runs[number][1])] for number in members}
        return [answer for number in sorted(by_run) for answer in by_run[number]]

    def _features(self, slots: Sequence[int], inputs: Sequence[Any], updated: Mapping[str, Tensor]) -> Tensor:
        """Run the base model and return the features [B, D] of rows that share a base update.

        `slots`: the slot of each row. `updated`: the base update, parameters by name.
        """
        used = [self._contents[slot].shapes for slot in dict.fromkeys(slots)]
        needed: dict[str, tuple[int, ...]] = {}
        for shapes in used:
            for name, shape in shapes.items():
                needed[name] = tuple(map(max, shape, needed.get(name, shape)))
        if all(shapes == used[0] for shapes in used):  # no leaf is padded, so the numbers of virtual tokens are not needed
            needed = {name: shape for name, shape in needed.items() if name.split(".")[-1] not in COUNTS}
        delta = {name: self._leaves[name][(slice(None), *_trailing(shape))] for name, shape in needed.items()}
        batch = self.base.collate(inputs, per_token=all(self._contents[slot].per_token for slot in dict.fromkeys(slots)))
        if len(used) == 1:
            one = {name: leaf[slots[0]].unsqueeze(0) for name, leaf in delta.items()}
            return self.base.features(one, batch, updated=updated)
        return self.base.features(delta, batch, slots=slots, updated=updated)


def _slot_shapes(kinds: Sequence[DeltaKind]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the leaves of a slot, which has room for an adapter of any of these kinds.

    Raises UnsupportedDelta if two kinds have leaves of the same name and neither leaf is at least as large as the other in every
    dimension.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for kind in kinds:
        for name, shape in {**kind.shapes, **dict.fromkeys(kind.counts, ())}.items():
            other = shapes.get(name, shape)
            shapes[name] = tuple(map(max, shape, other))
            if len(shape) != len(other) or shapes[name] not in (shape, other):
                raise UnsupportedDelta(f"leaf {name}: adapters of shapes {list(other)} and {list(shape)} cannot be in one batch")
    return shapes


_HEAD_CLASSES = 8  # all slots share the memory for readouts, which is that of one head with this many classes for each slot


def _trailing(shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the index that selects the last part of a larger leaf: `shape[i]` entries of dimension i."""
    return tuple(slice(-size, None) for size in shape)
