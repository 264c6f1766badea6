"""The errors of the worker and its ledger, as a tree.

WorkerError
├── WeightsMissing  the weights of an adapter are no longer in the cache
├── WeightsCorrupt  the cached weights do not match the digest in the record
├── ClaimLost       the claim no longer holds: another worker has the job, or it was deleted
├── CacheRefused    the cache refused the weights of a job, or could not be reached
├── Stopping        the worker is shutting down and hands the job back
├── AdapterAliased  the adapter cannot be deleted while aliases point at it
├── AdapterExpired  the adapter cannot be pinned or unpinned any more: it has expired
├── InvalidKey      an API key cannot have this tenant, name or lifetime
├── LimitReached    the tenant has used up one of its limits
└── SettingsError   an environment variable has a value that cannot be used
"""

JOB_SECONDS, ROOM_SECONDS = 2, 60
"""Seconds after which a refused request is worth a retry: JOB_SECONDS at the limit on jobs, which end by themselves,
ROOM_SECONDS at a limit where something must be deleted first."""
_ALIASES_NAMED = 20


class WorkerError(Exception):
    """The base class of all errors of the worker."""


class WeightsMissing(WorkerError):
    pass


class WeightsCorrupt(WorkerError):
    pass


class ClaimLost(WorkerError):
    pass


class CacheRefused(WorkerError):
    """The cache did not store the weights of a job.

    `is_attempt`: True if this uses up one of the job's attempts, because the cache answered and refused. False if the cache
    could not be reached.
    """

    def __init__(self, reason: str, *, is_attempt: bool) -> None:
        super().__init__(reason)
        self.is_attempt = is_attempt


class Stopping(WorkerError):
    pass


class AdapterAliased(WorkerError):
    """Aliases point at an adapter. `aliases`: the first 20 of them; `number`: how many there are in all."""

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
    """A tenant has used up a limit.

    `limit`: the name of the setting; `most`: its value; `used`: what the tenant uses now; `retry_after`: in seconds.
    """

    def __init__(self, limit: str, most: int, used: int, *, retry_after: int) -> None:
        super().__init__(f"{limit}: expected at most {most}, and {used} are in use")
        self.limit, self.most, self.used, self.retry_after = limit, most, used, retry_after


class SettingsError(WorkerError):
    pass
