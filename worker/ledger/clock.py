"""The clock of the Redis server.

All times in the ledger come from this clock, so the clocks of other machines need not agree.
"""

import redis


def server_ms(client: "redis.Redis") -> int:
    """Return the current time of the Redis server in milliseconds."""
    return to_ms(client.time())


def to_ms(time: tuple[int, int]) -> int:
    """Convert the answer to Redis's TIME, (seconds, microseconds), to milliseconds."""
    seconds, microseconds = time
    return int(seconds * 1000 + microseconds // 1000)
