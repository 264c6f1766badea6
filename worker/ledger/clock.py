"""The time of the Redis server. All times of the ledger come from it, so that the clocks of several machines do not matter."""

import redis


def server_ms(client: "redis.Redis") -> int:
    """Return the server's time in milliseconds."""
    return to_ms(client.time())


def to_ms(time: tuple[int, int]) -> int:
    """Convert Redis's TIME, seconds and microseconds, to milliseconds."""
    seconds, microseconds = time
    return int(seconds * 1000 + microseconds // 1000)
