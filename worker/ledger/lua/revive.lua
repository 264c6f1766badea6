-- Queue a dead job again, with no attempt used and a new TTL. A reaper announces it in its next round.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 retire
-- ARGV  1 member, 2 ms that a record is kept after its adapter expires, 3 context of `audit` ('': write no entry)
-- Returns 0 if the job is not dead.

if redis.call('ZREM', KEYS[5], ARGV[1]) == 0 then return 0 end
local expires_at = now + tonumber(redis.call('HGET', KEYS[1], 'ttl_ms'))
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'announced_at', 0,
           'expires_at', expires_at)
redis.call('HDEL', KEYS[1], 'error')
redis.call('ZADD', KEYS[2], now, ARGV[1])
wait(redis.call('HGET', KEYS[1], 'queue') or '', ARGV[1], now)
weigh(size_of(id), '+inf')
unfinished()
if redis.call('HGET', KEYS[1], 'pinned') ~= '1' then redis.call('ZADD', KEYS[6], expires_at + tonumber(ARGV[2]), ARGV[1]) end
count('revived')
if ARGV[3] ~= '' then audit(ARGV[3], 'job.retried', id, {}) end
return 1
