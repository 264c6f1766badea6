"""Claim a job, keep its lease, and end it: the lease and the fence decide who may write a record. Torch-free.

A claim gives a worker the job for `LEASE_SECONDS`, which heartbeats extend, and a *fence*: a number from one global counter that
never comes again. Only the holder of the record's current fence may report progress, commit, or hand the job back. So a worker
that was taken for dead cannot overwrite the one that replaced it, nor an adapter that was deleted and asked for again.

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
"""The queues that a worker takes jobs of, each with the digests of the initializations that it may take; any if there are none."""
WITHOUT_NAME: Queues = MappingProxyType({"": ()})
"""The queue of jobs that were accepted before queues had names."""


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one job until its lease ends."""

    tenant: str
    adapter_id: str
    fence: int
    recipe: JobRecipe
    waited_ms: int
    ttl_ms: int
    attempt: int
    request: str
    previous_fence: int
    """The fence of the claim before this one, 0 if there was none. Weights stored under it are useless."""


@dataclass(frozen=True)
class WeightsLifetime:
    """How long the weights of an ended job are to be kept: `ttl_ms`, or without end if `pinned`."""

    ttl_ms: int
    pinned: bool


class Claims:
    """Claim and end jobs on one Redis. Every method may raise `redis.RedisError` if it cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._claim = scripts.register(client, "claim")
        self._heartbeat = scripts.register(client, "heartbeat")
        self._commit = scripts.register(client, "commit")
        self._hand_back = scripts.register(client, "hand_back")
        self._give_up = scripts.register(client, "give_up")

    def claim(
        self, tenant: str, adapter_id: str, *, lease_ms: int, attempts: int, worker: str, queues: Queues = WITHOUT_NAME
    ) -> Claim | None:
        """Claim a job that is queued, or whose lease ran out. Return None if it cannot be claimed, or none of `queues` may take it.

        A job that has used up its `attempts` ends as failed here.
        """
        keys = [*names.job_keys(tenant, adapter_id), names.FENCE]
        arguments: list[Any] = [names.member(tenant, adapter_id), lease_ms, attempts, worker, json.dumps(dict(queues))]
        answer = self._claim(keys=keys, args=arguments)
        verdict = text(answer[0])
        if verdict == "capped":
            reason = f"no worker finished this job in {attempts} attempt{'s' if attempts > 1 else ''}"
            with fields(adapter=adapter_id, tenant=tenant):
                log.warning("dead: %s", reason)
            self.give_up(tenant, adapter_id, reason, attempts)
        if verdict != "claimed":
            return None
        recipe = JobRecipe.model_validate_json(answer[2])
        fence, waited, ttl, attempt, previous = (int(answer[i]) for i in (1, 3, 4, 5, 7))
        return Claim(tenant, adapter_id, fence, recipe, waited, ttl, attempt, text(answer[6]), previous)

    def give_up(self, tenant: str, adapter_id: str, reason: str, attempts: int) -> None:
        """End a job as failed and dead, unless a worker holds it or it has some of its `attempts` left."""
        keys = names.job_keys(tenant, adapter_id)
        self._give_up(keys=keys, args=[names.member(tenant, adapter_id), DONE_CHANNEL, reason, attempts])

    def heartbeat(self, claim: Claim, lease_ms: int, support_loss: list[float] | None = None) -> bool:
        """Extend the lease and store the support loss so far. Return False if the claim no longer holds."""
        losses = "" if support_loss is None else json.dumps(support_loss)
        return bool(self._heartbeat(keys=_keys(claim), args=[*_held_by(claim), lease_ms, losses]))

    def commit(self, claim: Claim, outcome: Outcome) -> WeightsLifetime | None:
        """End the job if its claim still holds; else write nothing and return None.

        May be repeated if the answer was lost: the same commit is done once.
        """
        written: dict[str, Any] = {"status": outcome.status, "timings": json.dumps(outcome.timings)}
        written |= {"support_loss": json.dumps(outcome.support_loss)}
        written |= {key: value for key, value in (("digest", outcome.digest), ("error", outcome.error)) if value is not None}
        flat: list[Any] = [part for pair in written.items() for part in pair]
        arguments = [*_held_by(claim), DONE_CHANNEL, json.dumps(RECOVERY_BOUNDS_MS), outcome.digest or "", outcome.size, *flat]
        answer = self._commit(keys=_keys(claim), args=arguments)
        return None if answer is None else WeightsLifetime(int(answer[0]), text(answer[1]) == "1")

    def hand_back(self, claim: Claim, reason: str, *, delay_ms: int, counts: bool) -> bool:
        """Queue the job again, to be announced after `delay_ms`. Return False if the claim no longer holds.

        `counts`: True if this was one of the job's attempts.
        """
        arguments = [*_held_by(claim), delay_ms, reason, "1" if counts else "0"]
        return bool(self._hand_back(keys=_keys(claim), args=arguments))


def _keys(claim: Claim) -> list[str]:
    return names.job_keys(claim.tenant, claim.adapter_id)


def _held_by(claim: Claim) -> list[Any]:
    """Return the first two arguments of every script that asks whether a claim still holds."""
    return [names.member(claim.tenant, claim.adapter_id), claim.fence]
