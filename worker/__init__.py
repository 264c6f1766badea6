"""Takes jobs from the queue, runs the inner loop, stores adapters. Knows no HTTP.

| to change | look in |
|---|---|
| a job from claim to commit | `job.py` |
| which jobs share a forward pass | `passes.py` |
| heartbeats, how a lost job is noticed | `heartbeat.py` |
| what happens if the cache or the records are away | `weights.py`, `retry.py` |
| how a worker stops | `draining.py` |
| what is announced again, removed, erased | `reaper.py` |
| the process, the queues that it listens to | `process.py`, `consumer.py` |
| the Celery app | `app.py` |
| a recipe into an adapter | `runtime.py`, `kinds/` |
| records, claims, weights, aliases, keys, usage (torch-free) | `ledger/` |
| environment variables, log lines, errors | `settings.py`, `logs.py`, `errors.py` |
"""
