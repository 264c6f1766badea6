"""The initializations that a process can use: the loaded ones and the stored ones."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from metatrain.artifacts.files import canonical_json, sha256
from metatrain.artifacts.initialization import Initialization
from metatrain.artifacts.stored_initialization import described_in, initialization_from_bytes, initialization_to_bytes
from metatrain.deltas import DeltaConfig
from metatrain.models.description import BaseDescription
from worker.ledger.initializations import StoredInitialization

B = TypeVar("B", bound=BaseDescription)


def base_identity(base: BaseDescription) -> str:
    """Return the identity of a base model, to which names of initializations belong.

    The precision is not a part of it.
    """
    return sha256(canonical_json(base.spec.identity))


class KnownInitializations(Generic[B]):
    """Finds initializations by digest. Thread-safe.

    `loaded`: base models, each with its loaded initializations. `stored`: returns the bytes of a stored initialization by its
    digest, None if it is not stored. `probe`: called for the delta of a stored initialization before its first use; None in a
    process that runs no delta.
    """

    def __init__(
        self,
        loaded: Sequence[tuple[B, Sequence[Initialization]]],
        stored: Callable[[str], bytes | None] = lambda digest: None,
        *,
        probe: Callable[[B, DeltaConfig], None] | None = None,
    ) -> None:
        self._bases = [base for base, _ in loaded]
        self._by_digest = {init.digest: (base, init) for base, inits in loaded for init in inits}
        self._stored, self._probe = stored, probe
        self._renamed: dict[tuple[str, str], Initialization] = {}  # kept, because computing a digest takes milliseconds
        self._loading = threading.Lock()

    @property
    def digests(self) -> list[str]:
        """The digests of the initializations in memory."""
        return list(self._by_digest)

    def find(self, digest: str) -> tuple[B, Initialization] | None:
        """Return an initialization with its base model. One that is only stored is loaded at its first use.

        Returns None if it is neither loaded nor stored. Raises ArtifactError if the stored one is damaged or for none of the
        base models, and UnsupportedDelta if its delta does not work on its base model.
        """
        if digest not in self._by_digest:
            with self._loading:
                if digest not in self._by_digest and (content := self._stored(digest)) is not None:
                    self._by_digest[digest] = self._load(content, digest)
        return self.in_memory(digest)

    def in_memory(self, digest: str) -> tuple[B, Initialization] | None:
        """Return an initialization that is in memory, with its base model; None for all others."""
        return self._by_digest.get(digest)

    def renamed(self, digest: str, name: str) -> Initialization:
        """Return an initialization that is in memory under another name. Raises KeyError for all others."""
        if (digest, name) not in self._renamed:
            self._renamed[digest, name] = replace(self._by_digest[digest][1], name=name)
        return self._renamed[digest, name]

    def to_store(self, digest: str) -> StoredInitialization:
        """Return an initialization that is in memory, in the form in which it is stored.

        Raises KeyError if it is not in memory.
        """
        base, init = self._by_digest[digest]
        return StoredInitialization(initialization_to_bytes(init), init.name, base_identity(base), base.spec.model, init.readout)

    def _load(self, content: bytes, digest: str) -> tuple[B, Initialization]:
        identity = described_in(content, f"initialization {digest[:12]}…").base.identity
        base = next((base for base in self._bases if base.spec.identity == identity), self._bases[0])
        init = initialization_from_bytes(content, base, digest)  # if no base model fits, this names the difference
        if self._probe is not None:
            self._probe(base, init.delta)
        return base, init
