"""Check the Redis keys of records, queues and usage once all jobs have ended."""

from collections.abc import Iterable
from typing import Any


def leftovers(client: Any, tenants: Iterable[str]) -> list[str]:
    """Return a line for each key that still has a job, and for each sum of usage that is wrong.

    `client`: a Redis client of the records. No job may be unfinished, and no adapter may be expired.
    """
    found = [
        f"{key}: expected no job, got {number}" for key in ("qs:pending", "qs:running", "qs:dead") if (number := client.zcard(key))
    ]
    waiting = [key.decode() for key in client.scan_iter("qs:waiting:*", count=1000)]
    found += [f"{key}: expected no such key" for key in waiting]
    for tenant in tenants:
        if number := client.scard(f"qs:{tenant}:unfinished"):
            found.append(f"qs:{tenant}:unfinished: expected no job, got {number}")
        records = list(client.scan_iter(f"qs:{tenant}:adapter:*", count=1000))
        listed = client.zcard(f"qs:{tenant}:adapters")
        if listed != len(records):
            found.append(f"qs:{tenant}:adapters: expected {len(records)} adapters, got {listed}")
        for name in ("bytes", "example_bytes"):
            total = sum(int(client.hget(record, name) or 0) for record in records)
            counted = int(client.hget(f"qs:{tenant}:usage", name) or 0)
            if counted != total:
                found.append(f"qs:{tenant}:usage: {name}: expected {total}, the sum over its records, got {counted}")
    return found
