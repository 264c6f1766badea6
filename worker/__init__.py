"""The worker takes jobs from the queue, runs the inner loop and stores the adapters. No HTTP code.

| to change | look in |
|---|---|
| a job from claim to commit | `job.py` |
| which jobs share a pass (one batched inner loop) | `passes.py` |
| heartbeats, how a worker notices that it lost a job | `heartbeat.py` |
| behaviour while the cache or the records cannot be reached | `weights.py`, `retry.py` |
| how a worker shuts down | `draining.py` |
| how a worker that hangs is ended | `watchdog.py` |
| repeating lost wake-ups, removing old records, erasing deleted text | `reaper.py` |
| the process and the queues that it listens to | `process.py`, `consumer.py` |
| pausing the garbage collector while a process starts | `collection.py` |
| the Celery app | `app.py` |
| running the inner loop: recipe in, adapter out | `runtime.py`, `kinds/` |
| records, claims, weights, aliases, keys, usage (torch-free) | `ledger/` |
| environment variables, log lines, errors | `settings.py`, `logs.py`, `errors.py` |
"""
