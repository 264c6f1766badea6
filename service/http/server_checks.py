"""Check for `/readyz` whether the Redis servers answer and workers run.

Everybody may ask for `/readyz`, and it is not metered. So its result is used for a second, however many requests ask.
"""

import asyncio
from collections.abc import Sequence

import redis

from metatrain.models.description import BaseDescription
from service.http.deployment_schemas import Missing
from service.http.shared_reads import SharedReads
from worker.errors import EncryptionKeyMissing, SealBroken
from worker.initializations import KnownInitializations
from worker.ledger.records import Records
from worker.runtime import Resident

KEEP_SECONDS = 1.0
"""How long a result may be used, in seconds."""
Found = tuple[list[Missing], list[str]]
"""What is missing, and the digests of initializations that are missing without keeping the service from being ready."""


class ServerChecks:
    """Checks the servers, at most once a second. Must be used on the event loop."""

    def __init__(
        self,
        records: Records,
        cache: redis.Redis,
        residents: Sequence[Resident[BaseDescription]],
        known: KnownInitializations[BaseDescription],
    ) -> None:
        self._records, self._cache, self._residents, self._known = records, cache, residents, known
        self._checks = {"records": self._check_records, "cache": self._check_cache}
        self._found = SharedReads(lambda name: self._checks[name](), KEEP_SECONDS)

    async def found(self) -> Found:
        """Return what is missing, and the initializations that only unknown workers have.

        Both servers are asked at the same time, so that the answer comes in time even if neither of them answers.
        """
        (missing, lacking), (missing_cache, _) = await asyncio.gather(*map(self._found.get, self._checks))
        return [*missing, *missing_cache], lacking

    def _check_records(self) -> Found:
        try:
            workers = self._records.workers.by_queue()
            missing: list[Missing] = []
            if not all(workers.get(queue) for resident in self._residents for queue in resident.queues):
                missing.append("worker")
            try:
                self._records.id_key()
            except (EncryptionKeyMissing, SealBroken):
                missing.append("encryption_key")  # this service could answer nothing that has to do with adapters
            return missing, sorted(self._records.initializations.lacking().keys() - set(self._known.digests))
        except redis.RedisError:
            return ["redis"], []

    def _check_cache(self) -> Found:
        try:
            self._cache.ping()
        except redis.RedisError:
            return ["cache"], []
        return [], []
