"""What can go wrong between a job and its adapter.

WorkerError
├── WeightsMissing  the cache no longer has an adapter's weights
├── WeightsCorrupt  the cache has other bytes than the record's digest says
├── ClaimLost       somebody else holds the job now, or it was deleted
├── CacheRefused    the cache did not take a job's weights
├── Stopping        the worker was told to stop and gives the job back
├── AdapterAliased  aliases point at the adapter that was to be deleted
├── AdapterExpired  the adapter that was to be kept has expired
├── InvalidKey      a tenant, name or life that no API key can have
├── LimitReached    a tenant has all that a limit allows
└── SettingsError   an environment variable with a value that cannot be used
"""

JOB_SECONDS, ROOM_SECONDS = 2, 60
"""When to ask again that met the limit of jobs, which end by themselves; of what somebody deletes."""
_ALIASES_NAMED = 20


class WorkerError(Exception):
    """Root of the tree."""


class WeightsMissing(WorkerError):
    pass


class WeightsCorrupt(WorkerError):
    pass


class ClaimLost(WorkerError):
    pass


class CacheRefused(WorkerError):
    """`counts`: True if this was one of the job's attempts: the cache answered, and refused."""

    def __init__(self, reason: str, *, counts: bool) -> None:
        super().__init__(reason)
        self.counts = counts


class Stopping(WorkerError):
    pass


class AdapterAliased(WorkerError):
    """`aliases`: the first of them; `number`: how many there are."""

    def __init__(self, aliases: list[str]) -> None:
        self.aliases, self.number = aliases[:_ALIASES_NAMED], len(aliases)
        more = f" and {self.number - _ALIASES_NAMED} more" if self.number > _ALIASES_NAMED else ""
        super().__init__(f"aliases point at it: {', '.join(self.aliases)}{more}")


class AdapterExpired(WorkerError):
    pass


class InvalidKey(WorkerError):
    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(f"{field}: expected {expected}, got {got!r}")
        self.expected = expected


class LimitReached(WorkerError):
    """`limit`: the setting's name; `most`: its value; `used`: what the tenant has; `retry_after`: seconds."""

    def __init__(self, limit: str, most: int, used: int, *, retry_after: int) -> None:
        super().__init__(f"{limit}: expected at most {most}, used are {used}")
        self.limit, self.most, self.used, self.retry_after = limit, most, used, retry_after


class SettingsError(WorkerError):
    pass
