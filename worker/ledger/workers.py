"""The list of live workers. Each worker announces itself every second."""

import json
from collections import Counter
from typing import Any, cast

import redis

from worker.ledger import names, scripts
from worker.ledger.clock import server_ms


class Workers:
    """Announces and counts workers. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._announce = scripts.register(client, "announce_worker")

    def announce(self, name: str, description: dict[str, Any], seconds: int) -> None:
        """List a worker as alive for the next `seconds`. `description`: its device, precision and queues."""
        keys = [names.WORKERS, names.WORKER_DESCRIPTIONS]
        self._announce(keys=keys, args=[name, json.dumps(description), 1000 * seconds])

    def remove(self, name: str) -> None:
        """Remove a worker that has stopped from the list."""
        with self._redis.pipeline() as pipe:
            pipe.zrem(names.WORKERS, name)
            pipe.hdel(names.WORKER_DESCRIPTIONS, name)
            pipe.execute()

    def names(self) -> list[str]:
        """Return the names of all live workers."""
        return [names.text(name) for name in self._alive_names()]

    def by_queue(self) -> dict[str, int]:
        """Return {queue: number of live workers that take jobs from it}."""
        return dict(Counter(queue for worker in self._alive() for queue in worker.get("queues", [worker.get("queue", "")])))

    def without_key(self, key_id: str) -> int:
        """Return how many live workers do not have an encryption key. Workers of earlier versions have none."""
        return sum(key_id not in worker.get("keys", ()) for worker in self._alive())

    def _alive_names(self) -> list[bytes]:
        return cast(list[bytes], self._redis.zrangebyscore(names.WORKERS, f"({server_ms(self._redis)}", "+inf"))

    def _alive(self) -> list[dict[str, Any]]:
        """Return what each live worker announced about itself."""
        alive = self._alive_names()
        stored = cast(list[bytes | None], self._redis.hmget(names.WORKER_DESCRIPTIONS, alive)) if alive else []
        return [json.loads(description) for description in stored if description is not None]
