"""What can go wrong between a job and its adapter.

WorkerError
├── WeightsMissing  the cache no longer has an adapter's weights
├── WeightsCorrupt  the cache has other bytes than the record's digest says
├── ClaimLost       somebody else holds the job now, or it was deleted
├── Stopping        the worker was told to stop and gives the job back
├── AdapterAliased  aliases point at the adapter that was to be deleted
└── SettingsError   an environment variable with a value that cannot be used
"""


class WorkerError(Exception):
    """Root of the tree."""


class WeightsMissing(WorkerError):
    pass


class WeightsCorrupt(WorkerError):
    pass


class ClaimLost(WorkerError):
    pass


class Stopping(WorkerError):
    pass


class AdapterAliased(WorkerError):
    def __init__(self, aliases: list[str]) -> None:
        super().__init__(f"aliases point at it: {', '.join(aliases)}")
        self.aliases = aliases


class SettingsError(WorkerError):
    pass
