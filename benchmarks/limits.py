"""Settings of a service without limits: a benchmark is one tenant that uses all of it."""

from worker.ledger.usage import LIMITS

NO_LIMITS = dict.fromkeys(LIMITS, "0")
