"""Rewrite everything that is derived from examples with the present key, or without encryption.

It can run while services and workers run, and can be repeated after an interruption: what already has the right form is skipped.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import redis

from worker.errors import SealBroken
from worker.ledger import audit, names, scripts
from worker.ledger.clock import server_ms
from worker.ledger.contents import contents_of
from worker.ledger.encryption import HEADER_BYTES, PLAIN_LINE, Cipher, field_name
from worker.ledger.messages import JobRecipe, with_key
from worker.ledger.names import text
from worker.ledger.record import SEALED_FIELDS
from worker.ledger.records import Records

_SCANNED_AT_ONCE = 500
_TRIES = 20
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Rewritten:
    """The numbers of values that were rewritten, and of those that already had the right form."""

    records: int
    weights: int
    skipped: int


class Reencryption:
    """Rewrites the records in `client` and the weights in `cache`.

    Every method may raise `redis.RedisError`. `cipher`: opens values in any form, and seals them as new values are sealed.
    """

    def __init__(self, client: "redis.Redis", cache: "redis.Redis", cipher: Cipher) -> None:
        self._redis, self._cache, self._cipher = client, cache, cipher
        self._reseal = scripts.register(client, "reseal")

    def apply(self, on_progress: Callable[[], object] = lambda: None) -> Rewritten:
        """Rewrite all values, and write an entry of the audit log. Return how many were rewritten.

        Calls `on_progress` after each record and each adapter's weights.

        Raises EncryptionKeyMissing or SealBroken at a record that cannot be opened. Weights that were changed since they were
        encrypted are left: they are rebuilt when they are needed.
        """
        self._rewrite_id_key()
        counts = {True: 0, False: 0}
        for key in self._keys(self._redis, names.record("*", "*"), "records"):
            counts[self._rewrite_record(key)] += 1
            on_progress()
        records = counts[True]
        for key in self._keys(self._cache, "qs:*:weights:*", "weights"):
            counts[self._rewrite_weights(key)] += 1
            on_progress()
        done = Rewritten(records, counts[True] - records, counts[False])
        with self._redis.pipeline() as pipe:
            form = self._cipher.sealing_key or PLAIN_LINE
            audit.record_in(pipe, "", "encryption.applied", form, {"records": done.records, "weights": done.weights})
            pipe.execute()
        return done

    def _keys(self, client: "redis.Redis", pattern: str, part: str) -> Iterator[str]:
        for key in client.scan_iter(pattern, count=_SCANNED_AT_ONCE):
            contents = contents_of(text(key))
            if contents is not None and contents.part == part:
                yield text(key)

    def _rewrite_id_key(self) -> None:
        stored = cast(bytes | None, self._redis.get(names.ID_KEY))
        if stored is not None and not self._cipher.is_current(stored):
            self._redis.set(names.ID_KEY, self._cipher.seal(names.ID_KEY, self._cipher.open(names.ID_KEY, stored)))

    def _rewrite_record(self, key: str) -> bool:
        """Rewrite the fields of a record that have another form.

        Moves its job to the queue of the present key.
        Returns False if all have the right one, or if the record was deleted.
        """
        for _ in range(_TRIES):
            fields = (*SEALED_FIELDS, "queue")
            stored = dict(zip(fields, cast(list[bytes | None], self._redis.hmget(key, fields)), strict=True))
            queue = text(stored.pop("queue") or b"")
            new_queue = with_key(queue, self._cipher.sealing_key)
            if stored["recipe"] is None:
                return False
            other = {field: value for field, value in stored.items() if value is not None and not self._cipher.is_current(value)}
            if not other and stored["summary"] is not None and new_queue == queue:
                return False
            recipe = JobRecipe.model_validate_json(self._cipher.open(field_name(key, "recipe"), stored["recipe"]))
            plain = {field: self._cipher.open(field_name(key, field), value) for field, value in other.items()}
            if stored["summary"] is None:  # the record is from a version without summaries
                plain["summary"] = recipe.summary.model_dump_json().encode()
            _, tenant, _, adapter_id = key.split(":")
            arguments: list[Any] = [names.member(tenant, adapter_id), recipe.initialization_digest, queue, new_queue]
            for field, value in plain.items():
                arguments += [field, stored[field] or b"", self._cipher.seal(field_name(key, field), value)]
            if self._reseal(keys=[key, names.QUEUES], args=arguments):
                return True
        raise redis.RedisError(f"{key} changes faster than it can be rewritten")

    def _rewrite_weights(self, key: str) -> bool:
        """Rewrite the weights of an adapter. Return False if they have the right form, or are gone or changed."""
        if self._cipher.is_current(cast(bytes, self._cache.getrange(key, 0, HEADER_BYTES - 1))):
            return False
        stored = cast(bytes | None, self._cache.get(key))
        if stored is None:
            return False
        try:
            content = self._cipher.open(key, stored)
        except SealBroken:
            return False
        return bool(self._cache.set(key, self._cipher.seal(key, content), xx=True, keepttl=True))

    def erase_earlier_forms(self, records: Records, seconds: float) -> bool:
        """Make Redis rewrite its append-only file, which still has the earlier forms of all values.

        Waits for at most `seconds`. Returns False if the file is not rewritten by then; a worker has it rewritten later.
        Raises redis.ResponseError if the server does not allow it.
        """
        now = server_ms(self._redis)
        self._redis.set(names.ERASE, now)
        self._redis.set(names.ERASE_LAST, now)
        deadline = time.monotonic() + seconds
        while self._redis.exists(names.ERASE):
            if records.retention.erase(0):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True  # a reaper was first
