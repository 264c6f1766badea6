"""The errors of the worker and its ledger, as a tree.

WorkerError
├── WeightsMissing  the weights of an adapter are no longer in the cache
├── WeightsCorrupt  the cached weights do not match the digest in the record
├── ClaimLost       this worker may no longer run the job: another worker has claimed it, or it was deleted
├── CacheRefused    the cache did not store the weights of a job: it refused them, or could not be reached
├── Stopping        the worker is shutting down and hands the job back
├── AdapterAliased  the adapter cannot be deleted while aliases point at it
├── AdapterExpired  the adapter cannot be pinned or unpinned, because it has expired
├── InvalidKey      the tenant, name, scopes or lifetime of a new API key is not allowed, or the key cannot be rotated
├── UnknownKey      there is no API key with this id
├── InvalidLimit    the value of a tenant's own limit or share is not allowed
├── KeyUsed         the idempotency key was used for another request, or for the same one with another adapter
├── LimitReached    the request would exceed one of the limits of its tenant
├── EncryptionKeyMissing  a stored value is encrypted with a key that this process does not have
├── SealBroken      an encrypted value was changed, or moved to another place
├── InvalidKeyFile  a file of encryption keys cannot be used
├── InvalidBackup   a backup file cannot be used, or must not be restored to this server
└── SettingsError   an environment variable has an invalid value
"""

RETRY_JOB_SECONDS, ROOM_SECONDS = 2, 60
"""Suggested delay in seconds before retrying a request that exceeded a limit. RETRY_JOB_SECONDS is for the limit on unfinished
jobs, because jobs end by themselves. ROOM_SECONDS is for the limits on stored data, because something must be deleted first."""
_ALIASES_NAMED = 20


class WorkerError(Exception):
    """The base class of all errors of the worker. `exit_code`: the exit code of a command that raises it."""

    exit_code = 1


class WeightsMissing(WorkerError):
    pass


class WeightsCorrupt(WorkerError):
    pass


class ClaimLost(WorkerError):
    pass


class CacheRefused(WorkerError):
    """The cache did not store the weights of a job.

    `is_attempt`: True if the cache answered and refused, which uses up one of the job's attempts. False if the cache could not
    be reached, which uses up none.
    """

    def __init__(self, reason: str, *, is_attempt: bool) -> None:
        super().__init__(reason)
        self.is_attempt = is_attempt


class Stopping(WorkerError):
    pass


class AdapterAliased(WorkerError):
    """The adapter cannot be deleted while aliases point at it.

    `aliases`: the first 20 of these aliases; `number`: the number of all of them.
    """

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


class UnknownKey(WorkerError):
    pass


class InvalidLimit(WorkerError):
    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(f"{field}: expected {expected}, got {got!r}")


class KeyUsed(WorkerError):
    """The idempotency key of a request is in use, and no job was written.

    `adapter_id`: the adapter that an equal request got, which now would get another one; None if the first request was different.
    """

    def __init__(self, adapter_id: str | None) -> None:
        super().__init__("the idempotency key was used before")
        self.adapter_id = adapter_id


class LimitReached(WorkerError):
    """The request would exceed a limit of its tenant.

    `limit`: the name of the setting; `most`: its value; `used`: the tenant's usage now; `retry_after`: seconds before a retry.
    """

    def __init__(self, limit: str, most: int, used: int, *, retry_after: int) -> None:
        super().__init__(f"{limit}: expected at most {most}, and {used} are in use")
        self.limit, self.most, self.used, self.retry_after = limit, most, used, retry_after


class EncryptionKeyMissing(WorkerError):
    pass


class SealBroken(WorkerError):
    pass


class InvalidKeyFile(WorkerError):
    pass


class InvalidBackup(WorkerError):
    pass


class SettingsError(WorkerError):
    pass
