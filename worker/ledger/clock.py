"""The clock of the Redis server.

All times in the ledger come from it, so the clocks of the other machines need not agree.
"""

import redis


def server_ms(client: "redis.Redis") -> int:
    """Return the server's time in milliseconds."""
    return to_ms(client.time())


def to_ms(time: tuple[int, int]) -> int:
    """Convert the answer to Redis's TIME, (seconds, microseconds), to milliseconds."""
    seconds, microseconds = time
    return int(seconds * 1000 + microseconds // 1000)
