"""Initializations beside the records, each under its digest, and the names that point at them.

An initialization is stored when a job names it, before the job's record is written (`Records.accept` makes sure of both). So any
worker can run the job, and any predictor can use the adapter, whatever folders it has.

A name is a pointer that can be moved. It belongs to a base model, given by its identity. A name without a pointer means the
initialization that a service has loaded under that name.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import cast

import redis

from worker.ledger import audit, names, scripts
from worker.ledger.names import text

_SCANNED_AT_ONCE = 500


@dataclass(frozen=True)
class StoredInitialization:
    """An initialization as it is stored.

    `content`: its bytes. `name`: the name under which it was loaded first. `base`: the identity of its base model; `base_model`:
    that model's name. `readout`: the kind of its readout.
    """

    content: bytes
    name: str
    base: str
    base_model: str
    readout: str


class Initializations:
    """Stores initializations in Redis. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._forget = scripts.register(client, "forget_initialization")
        self._unset = scripts.register(client, "unset")

    def store(self, digest: str, stored: StoredInitialization) -> None:
        """Store an initialization. Storing it again changes nothing but its first name."""
        self._redis.hset(names.initialization(digest), mapping={name: getattr(stored, name) for name in _FIELDS})

    def get(self, digest: str) -> bytes | None:
        """Return the bytes of a stored initialization, or None if it is not stored."""
        keys = names.initialization(digest), names.initialization_set_aside(digest)
        found = (cast(bytes | None, self._redis.hget(key, "content")) for key in keys)
        return next((content for content in found if content is not None), None)

    def read(self, digest: str) -> StoredInitialization | None:
        values = cast(list[bytes | None], self._redis.hmget(names.initialization(digest), _FIELDS))
        if values[0] is None:
            return None
        return StoredInitialization(values[0], *(text(value or b"") for value in values[1:]))

    def has(self, digest: str) -> bool:
        return bool(self._redis.exists(names.initialization(digest)))

    def digests(self) -> list[str]:
        """Return the digests of all stored initializations, sorted. Repairs what a killed `forget` has left."""
        for key in list(self._redis.scan_iter(f"{names.initialization_set_aside('')}*", count=_SCANNED_AT_ONCE)):
            self._put_back(text(key).removeprefix(names.initialization_set_aside("")))
        prefix = names.initialization("")
        return sorted({text(key).removeprefix(prefix) for key in self._redis.scan_iter(f"{prefix}*", count=_SCANNED_AT_ONCE)})

    def pointers(self) -> dict[tuple[str, str], str]:
        """Return the digest that each name points at, by (base, name)."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(names.INITIALIZATION_NAMES))
        split = {tuple(text(field).split("/", 1)): text(digest) for field, digest in stored.items()}
        return {(base, name): digest for (base, name), digest in split.items()}

    def pointer(self, base: str, name: str) -> str | None:
        """Return the digest that a name points at, or None if the name has no pointer."""
        digest = cast(bytes | None, self._redis.hget(names.INITIALIZATION_NAMES, f"{base}/{name}"))
        return None if digest is None else text(digest)

    def point(self, base: str, name: str, digest: str | None) -> None:
        """Point a name at a stored initialization; None removes the pointer.

        The audit log gets an entry.
        """
        field = f"{base}/{name}"
        if digest is None:
            context, details = audit.script_context(""), json.dumps({"base": base})
            arguments = [field, "*", "", context, "initialization.reset", name, details]
            self._unset(keys=[names.INITIALIZATION_NAMES], args=arguments)
            return
        with self._redis.pipeline() as pipe:
            pipe.hset(names.INITIALIZATION_NAMES, field, digest)
            audit.record_in(pipe, "", "initialization.moved", name, {"base": base, "to": digest})
            pipe.execute()

    def needed(self) -> dict[str, int]:
        """Return how many records need each initialization, by digest. Reads every record."""
        return Counter(self._digests_of_records())

    def lacking(self, most: int = 1000) -> dict[str, int]:
        """Return how many unfinished jobs name each initialization that is not stored, by digest.

        Only a worker that has loaded such an initialization can run these jobs. Earlier versions stored none. Reads the `most` jobs
        that the reaper checks next.
        """
        members = cast(list[bytes], self._redis.zrange(names.PENDING, 0, most - 1))
        counts = Counter(self._read([names.record(*names.split_member(member)).encode() for member in members]))
        return {digest: jobs for digest, jobs in counts.items() if not self.has(digest)}

    def forget(self, digest: str) -> int:
        """Remove a stored initialization unless records need it. Return how many need it: 0 if it was removed.

        The records are counted first. If none needs the initialization, its key is renamed and the records are counted again, for
        jobs that were accepted meanwhile. Only then is the initialization deleted. After an error in between, it is put back. If
        this process is killed in between, readers still find it under the other name.
        """
        if needed := self.needed().get(digest, 0):
            return needed
        key, set_aside = names.initialization(digest), names.initialization_set_aside(digest)
        if not self._redis.exists(key) and not self._redis.exists(set_aside):
            return 0
        if self._redis.exists(key):
            self._redis.rename(key, set_aside)
        try:
            needed = self.needed().get(digest, 0)
        except BaseException:
            self._put_back(digest)
            raise
        if needed:
            self._put_back(digest)
        else:
            self._forget(keys=[set_aside], args=[digest, audit.script_context("")])
        return needed

    def _put_back(self, digest: str) -> None:
        """Undo the renaming of a `forget` that did not end."""
        key, set_aside = names.initialization(digest), names.initialization_set_aside(digest)
        if self._redis.exists(set_aside) and not self._redis.renamenx(set_aside, key):
            self._redis.delete(set_aside)  # stored again meanwhile

    def _digests_of_records(self) -> Iterator[str]:
        """Yield the digest that each record names."""
        pattern, batch = names.record("*", "*"), list[bytes]()
        for key in self._redis.scan_iter(pattern, count=_SCANNED_AT_ONCE):
            batch.append(key)
            if len(batch) == _SCANNED_AT_ONCE:
                yield from self._read(batch)
                batch.clear()
        yield from self._read(batch)

    def _read(self, keys: list[bytes]) -> Iterator[str]:
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(key, "initialization_digest")
            digests = pipe.execute() if keys else []
        yield from (text(digest) for digest in digests if digest is not None)
        yield from self._read_recipes([key for key, digest in zip(keys, digests, strict=True) if digest is None])

    def _read_recipes(self, keys: list[bytes]) -> Iterator[str]:
        """Yield the digests that records of earlier versions name, which wrote no `initialization_digest`."""
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, "summary", "recipe")
            rows = pipe.execute() if keys else []
        for summary, recipe in rows:
            if (content := summary or recipe) is not None:
                yield str(json.loads(content)["initialization_digest"])


_FIELDS = tuple(field.name for field in fields(StoredInitialization))
