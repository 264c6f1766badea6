"""Claims: a worker claims a job, extends its lease with heartbeats, and ends or hands back the job.

A claim gives one worker the right to run a job for `LEASE_SECONDS`, its *lease*. Heartbeats extend the lease. Each claim has a
*fence*: a number from one global counter that is never used twice. Only the worker with the record's current fence may report
progress, commit the job, or hand it back. So a worker that was wrongly considered dead cannot overwrite the results of the worker
that replaced it. Nor can it overwrite an adapter that was deleted and requested again.

A job that has used up its attempts ends as failed and dead (`dead_jobs.py`).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import redis

from worker.ledger import names, scripts
from worker.ledger.counts import RECOVERY_BOUNDS_MS
from worker.ledger.encryption import PLAIN, Cipher, field_name
from worker.ledger.messages import DONE_CHANNEL, JobRecipe, Outcome
from worker.ledger.names import text
from worker.ledger.record import sealed_field
from worker.ledger.weights_cache import SealedWeights
from worker.logs import fields

log = logging.getLogger(__name__)
Queues = Mapping[str, Sequence[str]]
"""The queues from which a worker may claim jobs: {queue: digests of the allowed initializations}. An empty sequence allows any
initialization."""
UNNAMED_QUEUE: Queues = MappingProxyType({"": ()})
"""Only the queue with the empty name, for jobs from versions in which queues had no names."""


@dataclass(frozen=True)
class Claimant:
    """A worker process that claims jobs.

    `lease_ms`: the lease of its claims. `attempts`: the number of attempts after which a job fails. `worker`: its name.
    """

    worker: str
    lease_ms: int = 4_000
    attempts: int = 3
    queues: Queues = field(default_factory=lambda: UNNAMED_QUEUE)


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
    """The fence of the previous claim of this job, or 0. Weights stored under it are useless and may be removed."""
    queue: str
    waiting: int
    """The number of further jobs of its tenant that wait in this queue."""


@dataclass(frozen=True)
class WeightsLifetime:
    """The lifetime of the weights of a finished job: unlimited if `pinned`, otherwise `ttl_ms`."""

    ttl_ms: int
    pinned: bool


class Claims:
    """Claims and ends jobs in Redis. Every method raises `redis.RedisError` if Redis cannot be reached.

    `cipher`: opens recipes, and seals the reasons of failures.
    """

    def __init__(self, client: "redis.Redis", cipher: Cipher = PLAIN) -> None:
        self._cipher = cipher
        self._claim = scripts.register(client, "claim")
        self._heartbeat = scripts.register(client, "heartbeat")
        self._commit = scripts.register(client, "commit")
        self._hand_back = scripts.register(client, "hand_back")
        self._give_up = scripts.register(client, "give_up")

    def claim(self, tenant: str, adapter_id: str, claimant: Claimant) -> Claim | None:
        """Claim a job that is queued, or running with an expired lease.

        Returns None if the job is finished, held by another worker, not for this claimant, or encrypted with a key that this
        process does not have. If the job has used up its attempts, this call ends it as failed and returns None.
        """
        claim, _ = self._try(tenant, adapter_id, claimant, "named")
        return claim

    def claim_in_turn(self, tenant: str, adapter_id: str, claimant: Claimant) -> Claim | None:
        """Claim the job whose turn it is, after a wake-up that names a job.

        Returns None if no job waits for this claimant. Tenants take turns, weighted by the cost of their jobs, and the jobs of one
        tenant keep their order. A job whose worker was lost waits again, at its place in this order. The named job comes first only
        if it has no turn, because an earlier version queued it.
        """
        return self._claim_until_settled(tenant, adapter_id, claimant, "turn")

    def claim_for_pass(self, first: Claim, claimant: Claimant, passed_over: Sequence[str] = ()) -> Claim | None:
        """Claim a job that may share a pass with the claimed job `first`. Return None if there is none.

        It is the next job in turn that has the same pass key and waits for its first attempt. `passed_over`: tenants whose jobs
        are not taken.
        """
        more = first.recipe.pass_key, json.dumps(list(passed_over))
        return self._claim_until_settled(first.tenant, first.adapter_id, claimant, "pass", *more)

    def _claim_until_settled(self, tenant: str, adapter_id: str, claimant: Claimant, which: str, *more: str) -> Claim | None:
        """Claim in turn. Jobs in turn whose attempts are used up are ended on the way."""
        settled = False
        while not settled:
            claim, settled = self._try(tenant, adapter_id, claimant, which, *more)
        return claim

    def _try(self, tenant: str, adapter_id: str, claimant: Claimant, which: str, *more: str) -> tuple[Claim | None, bool]:
        """Run the script once, and return (claim or None, whether that is settled).

        It is not settled if the script met a job whose attempts are used up. This call then ends that job as failed.
        """
        keys, stored = [*names.job_keys(tenant, adapter_id), names.FENCE], names.initialization("")
        arguments: list[Any] = [names.member(tenant, adapter_id), claimant.lease_ms, claimant.attempts, claimant.worker]
        arguments += [json.dumps(dict(claimant.queues)), stored, which, " ".join(self._cipher.key_ids)]
        answer = self._claim(keys=keys, args=[*arguments, *more])
        verdict = text(answer[0])
        if verdict == "attempts_used_up":
            attempts = claimant.attempts
            reason = f"no worker finished this job in {attempts} attempt{'s' if attempts > 1 else ''}"
            dead_tenant, dead_id = names.split_member(answer[1])
            with fields(adapter=dead_id, tenant=dead_tenant):
                log.warning("dead: %s", reason)
            self.give_up(dead_tenant, dead_id, reason, attempts)
            return None, False
        if verdict != "claimed":
            return None, True
        job = names.split_member(answer[8])
        recipe = JobRecipe.model_validate_json(self._cipher.open(field_name(names.record(*job), "recipe"), answer[2]))
        fence, waited_ms, ttl_ms, attempt, previous_fence = (int(answer[i]) for i in (1, 3, 4, 5, 7))
        queue, waiting = text(answer[9]), int(answer[10])
        return Claim(*job, fence, recipe, waited_ms, ttl_ms, attempt, text(answer[6]), previous_fence, queue, waiting), True

    def give_up(self, tenant: str, adapter_id: str, reason: str, attempts: int) -> None:
        """End a job as failed and dead, if its `attempts` are used up and no worker holds it."""
        keys = names.job_keys(tenant, adapter_id)
        self._give_up(keys=keys, args=[names.member(tenant, adapter_id), DONE_CHANNEL, reason, attempts])

    def heartbeat(self, claim: Claim, lease_ms: int, support_loss: list[float] | None = None) -> bool:
        """Extend the lease of a claimed job. Return False if the claim no longer holds.

        `support_loss`: the losses so far, to store in the record; None keeps the stored ones.
        """
        losses = "" if support_loss is None else json.dumps(support_loss)
        return bool(self._heartbeat(keys=_keys(claim), args=[*_claim_arguments(claim), lease_ms, losses]))

    def commit(self, claim: Claim, outcome: Outcome, weights: SealedWeights | None = None) -> WeightsLifetime | None:
        """End a claimed job with its outcome. Return the lifetime of its weights.

        `weights`: stored in the same step, with that lifetime; None if they are stored already. Raises redis.ResponseError, and
        commits nothing, if the server has no memory for them.

        If the claim no longer holds, writes nothing and returns None. If the answer to a commit is lost, the caller can retry it:
        the commit takes effect only once.
        """
        written: dict[str, Any] = {"status": outcome.status, "timings": json.dumps(outcome.timings)}
        written |= {"support_loss": json.dumps(outcome.support_loss)}
        written |= {} if outcome.digest is None else {"digest": outcome.digest}
        if outcome.label_words_used is not None:
            written["label_words_used"] = int(outcome.label_words_used)
        if outcome.label_words_gain is not None:
            written["label_words_gain"] = outcome.label_words_gain
        if outcome.error is not None:
            written["error"] = sealed_field(claim.tenant, claim.adapter_id, "error", outcome.error, self._cipher)
        flat: list[Any] = [part for pair in written.items() for part in pair]
        bounds = json.dumps(RECOVERY_BOUNDS_MS)
        arguments = [*_claim_arguments(claim), DONE_CHANNEL, bounds, outcome.digest or "", outcome.size]
        arguments += ["" if weights is None else weights.content, *flat]
        keys = _keys(claim) if weights is None else [*_keys(claim), weights.key]
        answer = self._commit(keys=keys, args=arguments)
        return None if answer is None else WeightsLifetime(int(answer[0]), text(answer[1]) == "1")

    def hand_back(self, claim: Claim, reason: str, *, delay_ms: int, is_attempt: bool) -> bool:
        """Queue a claimed job again after `delay_ms`. Return False if the claim no longer holds.

        `is_attempt`: True if this uses up one of the job's attempts.
        """
        arguments = [*_claim_arguments(claim), delay_ms, reason, "1" if is_attempt else "0"]
        return bool(self._hand_back(keys=_keys(claim), args=arguments))


def _keys(claim: Claim) -> list[str]:
    return names.job_keys(claim.tenant, claim.adapter_id)


def _claim_arguments(claim: Claim) -> list[Any]:
    """Return the first two arguments of every Lua script that checks whether a claim still holds."""
    return [names.member(claim.tenant, claim.adapter_id), claim.fence]
