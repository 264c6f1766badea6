"""Prepare a predictor for adapters of initializations that were not loaded at its start."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from metatrain.artifacts.adapter import AdapterMetadata
from metatrain.artifacts.catalog import SHIPPED_BEFORE
from metatrain.artifacts.stored_initialization import initialization_from_bytes
from metatrain.deltas import DeltaKind
from metatrain.errors import ArtifactError, MetatrainError
from metatrain.models.base import Base
from metatrain.serving.probe_cache import probe_once

_REFUSED_SECONDS = 30.0
"""How long an initialization that cannot be supported is refused without another attempt, in seconds."""


class SupportedInitializations:
    """The initializations whose adapters the bank of a predictor can hold.

    `loaded`: the digests of those that were loaded at the start. `stored`: returns the bytes of a stored initialization by its
    digest, None if it is not stored. `extend_bank(kind, digest, update)`: makes room in the bank for a delta kind and the changed
    parameters of the base model.
    """

    def __init__(
        self,
        base: Base,
        loaded: Iterable[str],
        stored: Callable[[str], bytes | None],
        extend_bank: Callable[[DeltaKind, str, Mapping[str, Tensor]], None],
    ) -> None:
        self._base, self._stored, self._extend_bank = base, stored, extend_bank
        self._supported = set(loaded)
        self._refused: dict[str, tuple[float, MetatrainError]] = {}  # until when, and why
        self._supporting = threading.Lock()  # held while an initialization is added to `_supported`

    def require(self, adapter: AdapterMetadata) -> None:
        """Make room in the bank for adapters of this adapter's initialization, unless there is.

        The probe runs in the calling thread, so that other calls are answered meanwhile. Raises UnsupportedDelta, and ArtifactError
        if the initialization is unknown, because its adapters may need changed parameters of the base model.
        """
        digest = adapter.initialization_digest
        if digest in self._supported:
            return
        with self._supporting:
            if digest in self._supported:  # another thread was first
                return
            if digest in self._refused and time.monotonic() < self._refused[digest][0]:
                raise self._refused[digest][1]
            try:
                self._support(adapter, digest)
            except MetatrainError as error:  # remembered, so that its callers do not hold up the loading of other adapters
                self._refused[digest] = (time.monotonic() + _REFUSED_SECONDS, error)
                raise

    def _support(self, adapter: AdapterMetadata, digest: str) -> None:
        content = self._stored(digest)
        if content is None and digest not in SHIPPED_BEFORE:
            raise ArtifactError(
                f"its initialization, with digest {digest[:12]}…, is neither loaded nor stored; "
                "add its folder to INITIALIZATIONS_DIR"
            )
        kind = self._base.attach(adapter.delta)
        probe_once(self._base, kind)
        update = {} if content is None else initialization_from_bytes(content, self._base, digest).base_update
        self._extend_bank(kind, digest, update)
        self._supported.add(digest)
