"""The reaper: a thread in every worker that repeats lost wake-ups and removes old data.

A wake-up is the queue message that tells a worker to run a job. Old data are the records of adapters that expired long ago, and
deleted text that is still in Redis's append-only file.
"""

import base64
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any, cast

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from worker.ledger import names
from worker.ledger.messages import ADAPT_TASK, FIRST, IN_TURN, wake_up
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore
from worker.logs import fields, places
from worker.pass_times import PassTimes

log = logging.getLogger(__name__)
REAP_INTERVAL_SECONDS = 1.0
STOP_SECONDS = 2.0
"""How long `Reaper.stop` waits for a round that is under way, in seconds."""
WORKER_ALIVE_SECONDS = 6
"""Time after its last announcement until a worker is no longer listed as alive, in seconds."""


class Reaper:
    """Reports this worker as alive and maintains the records, every second until it is stopped.

    It also writes the times that this worker's passes took. The reapers of several workers may run at once.

    `description`: what the worker announces about itself. `erase_seconds`: delay after a deletion before Redis's append-only file
    is rewritten without the deleted text.
    """

    def __init__(
        self,
        client: "redis.Redis",
        records: Records,
        store: WeightStore,
        app: Celery,
        times: PassTimes,
        *,
        name: str,
        description: Mapping[str, Any],
        erase_seconds: float,
    ) -> None:
        self._client, self._records, self._store, self._app, self._times = client, records, store, app, times
        self._name, self._description = name, dict(description)
        self._erase_ms = int(1000 * erase_seconds)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the reaper, and remove this worker from the list of live workers."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)  # otherwise its last announcement could come after the removal
        try:
            self._records.workers.remove(self._name)
        except redis.RedisError:
            log.info("Redis is out of reach: this worker counts as alive for up to %d s", WORKER_ALIVE_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._records.workers.announce(self._name, self._description, WORKER_ALIVE_SECONDS)
                self._times.write()
                self.reap()
            except (redis.RedisError, OperationalError) as error:
                log.warning("Redis is out of reach (%s), trying again", type(error).__name__)
            except Exception as error:  # lost jobs must still be announced, whatever the error
                log.error("the reaper failed, trying again\n%s", places(error))
            self._stopping.wait(REAP_INTERVAL_SECONDS)

    def reap(self) -> None:
        """Do one round: repeat lost wake-ups, remove old records and idempotency keys, and erase deleted text."""
        self._announce_lost_jobs()
        self._records.expired_keys.remove()
        for tenant, adapter_id, fence in self._records.retention.retire():
            self._store.remove(tenant, adapter_id, fence)
        try:
            if self._records.retention.erase(self._erase_ms):
                log.info("the append-only file was rewritten without the deleted text")
        except redis.ResponseError as error:
            log.warning("deleted text stays in the append-only file until the server itself rewrites it: %s", error)

    def _announce_lost_jobs(self) -> None:
        by_queue = {queue: oldest_wake_up(self._client, queue) for queue in self._records.waiting.queues()}
        oldest = {queue: job for queue, job in by_queue.items() if job is not None}
        for tenant, adapter_id, queue in self._records.waiting.due(oldest=oldest):
            with fields(adapter=adapter_id, tenant=tenant):
                log.info("announced again")
            queue = queue or self._app.conf.task_default_queue
            self._app.send_task(ADAPT_TASK, kwargs=wake_up(tenant, adapter_id), priority=FIRST, queue=queue)


def oldest_wake_up(client: "redis.Redis", queue: str) -> tuple[str, str] | None:
    """Return the (tenant, adapter id) from a queue's oldest wake-up, or None if the queue is empty.

    Repeated wake-ups (priority FIRST) are considered only if the queue contains no new wake-ups (priority IN_TURN).
    """
    for priority in (IN_TURN, FIRST):
        message = cast(bytes | None, client.lindex(names.wake_ups(queue, priority), -1))
        if message is not None:
            _, arguments, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
            return arguments["tenant"], arguments["adapter_id"]
    return None
