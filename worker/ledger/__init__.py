"""The durable records of all jobs and adapters, in Redis. Nothing in this folder imports torch.

| to change | look in |
|---|---|
| the fields of a record, reading a record | `record.py` |
| accepting, listing, pinning, deleting adapters | `records.py` |
| claims, leases, heartbeats, fences, attempts, commits | `claims.py` |
| the order of waiting jobs, when a job is announced again | `waiting.py` |
| jobs that used up their attempts | `dead_jobs.py` |
| how long records are kept, erasing deleted text | `retention.py` |
| which workers are alive | `workers.py` |
| event counts and histogram bounds for `/metrics` | `counts.py` |
| a tenant's usage, and its own limits | `usage.py`, `tenants.py` |
| aliases; name, tags and parent of an adapter | `aliases.py`, `notes.py` |
| API keys, and when they were last used | `api_keys.py`, `key_uses.py` |
| the audit log | `audit.py` |
| ids of adapters; idempotency keys | `ids.py`, `idempotency.py` |
| weights in the cache | `weights_cache.py` |
| job recipes, outcomes and wake-ups | `messages.py` |
| keys in Redis and their names; which of them a backup has | `names.py`, `contents.py` |
| encryption at rest; rewriting stored values with another key | `encryption.py`, `reencryption.py` |
| backup and restore | `backup.py`, `restore.py`, `restored_streams.py` |
| an atomic step | `lua/`, composed by `scripts.py` |
| Redis URLs: one server, Sentinel, a cluster | `servers.py` |
| calls of a service while a server does not answer | `breaker.py` |
"""
