"""Claims: a worker claims a job, keeps its lease with heartbeats, and ends or hands back the job.

A claim gives a worker the job for `LEASE_SECONDS`, which heartbeats extend, and a *fence*: a number from one global counter, never
used twice. Only the holder of the record's current fence may report progress, commit the job, or hand it back. So a worker that
was wrongly considered dead cannot overwrite the results of the worker that replaced it, nor an adapter that was deleted and
requested again.

A job that has used up its attempts ends as failed and dead (`dead_jobs.py`).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import redis

from worker.ledger import names, scripts
from worker.ledger.counts import RECOVERY_BOUNDS_MS
from worker.ledger.messages import DONE_CHANNEL, JobRecipe, Outcome
from worker.ledger.names import text
from worker.logs import fields

log = logging.getLogger(__name__)
Queues = Mapping[str, Sequence[str]]
"""The queues whose jobs a worker may claim. Each maps to the digests of the initializations that these jobs may have; if there are
no digests, any initialization is allowed."""
UNNAMED_QUEUE: Queues = MappingProxyType({"": ()})
"""The queue of jobs that were accepted before queues had names."""


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one job until the lease expires."""

    tenant: str
    adapter_id: str
    fence: int
    recipe: JobRecipe
    waited_ms: int
    ttl_ms: int
    attempt: int
    request: str
    previous_fence: int
    """The fence of the claim before this one, 0 if there was none. Weights stored under it are useless and may be removed."""


@dataclass(frozen=True)
class WeightsLifetime:
    """The lifetime of the weights of an ended job: `ttl_ms`, or unlimited if `pinned`."""

    ttl_ms: int
    pinned: bool


class Claims:
    """Claims and ends jobs in Redis. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._claim = scripts.register(client, "claim")
        self._heartbeat = scripts.register(client, "heartbeat")
        self._commit = scripts.register(client, "commit")
        self._hand_back = scripts.register(client, "hand_back")
        self._give_up = scripts.register(client, "give_up")

    def claim(
        self, tenant: str, adapter_id: str, *, lease_ms: int, attempts: int, worker: str, queues: Queues = UNNAMED_QUEUE
    ) -> Claim | None:
        """Claim a job that is queued, or running with an expired lease.

        Returns None if the job cannot be claimed, or not by a worker of these `queues`. A job that has used up its `attempts`
        ends as failed here.
        """
        keys = [*names.job_keys(tenant, adapter_id), names.FENCE]
        arguments: list[Any] = [names.member(tenant, adapter_id), lease_ms, attempts, worker, json.dumps(dict(queues))]
        answer = self._claim(keys=keys, args=arguments)
        verdict = text(answer[0])
        if verdict == "attempts_used_up":
            reason = f"no worker finished this job in {attempts} attempt{'s' if attempts > 1 else ''}"
            with fields(adapter=adapter_id, tenant=tenant):
                log.warning("dead: %s", reason)
            self.give_up(tenant, adapter_id, reason, attempts)
        if verdict != "claimed":
            return None
        recipe = JobRecipe.model_validate_json(answer[2])
        fence, waited_ms, ttl_ms, attempt, previous_fence = (int(answer[i]) for i in (1, 3, 4, 5, 7))
        return Claim(tenant, adapter_id, fence, recipe, waited_ms, ttl_ms, attempt, text(answer[6]), previous_fence)

    def give_up(self, tenant: str, adapter_id: str, reason: str, attempts: int) -> None:
        """End a job as failed and dead, unless a worker holds it or some of its `attempts` are left."""
        keys = names.job_keys(tenant, adapter_id)
        self._give_up(keys=keys, args=[names.member(tenant, adapter_id), DONE_CHANNEL, reason, attempts])

    def heartbeat(self, claim: Claim, lease_ms: int, support_loss: list[float] | None = None) -> bool:
        """Extend the lease and store the support loss so far. Return False if the claim no longer holds."""
        losses = "" if support_loss is None else json.dumps(support_loss)
        return bool(self._heartbeat(keys=_keys(claim), args=[*_claim_arguments(claim), lease_ms, losses]))

    def commit(self, claim: Claim, outcome: Outcome) -> WeightsLifetime | None:
        """End the job and return the lifetime of its weights, or None if the claim no longer holds.

        Without a claim, nothing is written. A commit whose answer was lost can be retried: it takes effect only once.
        """
        written: dict[str, Any] = {"status": outcome.status, "timings": json.dumps(outcome.timings)}
        written |= {"support_loss": json.dumps(outcome.support_loss)}
        written |= {key: value for key, value in (("digest", outcome.digest), ("error", outcome.error)) if value is not None}
        flat: list[Any] = [part for pair in written.items() for part in pair]
        bounds = json.dumps(RECOVERY_BOUNDS_MS)
        arguments = [*_claim_arguments(claim), DONE_CHANNEL, bounds, outcome.digest or "", outcome.size, *flat]
        answer = self._commit(keys=_keys(claim), args=arguments)
        return None if answer is None else WeightsLifetime(int(answer[0]), text(answer[1]) == "1")

    def hand_back(self, claim: Claim, reason: str, *, delay_ms: int, is_attempt: bool) -> bool:
        """Queue the job again, to be announced after `delay_ms`. Return False if the claim no longer holds.

        `is_attempt`: True if this uses up one of the job's attempts.
        """
        arguments = [*_claim_arguments(claim), delay_ms, reason, "1" if is_attempt else "0"]
        return bool(self._hand_back(keys=_keys(claim), args=arguments))


def _keys(claim: Claim) -> list[str]:
    return names.job_keys(claim.tenant, claim.adapter_id)


def _claim_arguments(claim: Claim) -> list[Any]:
    """Return the first two arguments of every script that checks if a claim still holds."""
    return [names.member(claim.tenant, claim.adapter_id), claim.fence]
