-- Write the record of a backup, and add it to the indexes and the usage of its tenant. An unfinished job is written as a dead one,
-- which `revive` then queues again.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 adapters of the tenant, 7 retire, 8 queues
-- ARGV  1 member, 2 adapter id, 3 ms that a record is kept after its adapter expires, 4... field, value, field, value ...
-- Returns {1 if the job is unfinished else 0, 1 if the tenant's list of adapters has it else 0}.

redis.call('DEL', KEYS[1])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local r = redis.call('HMGET', KEYS[1], 'status', 'bytes', 'example_bytes', 'expires_at', 'pinned', 'queue')
local status, size, example_bytes, expires_at, pinned, queue = unpack(r)
local is_numbered = redis.call('ZSCORE', KEYS[6], ARGV[2]) and 1 or 0
if example_bytes then redis.call('HINCRBY', prefix .. ':usage', 'example_bytes', example_bytes) end
if queue then redis.call('SADD', KEYS[8], queue) end
if pinned ~= '1' then redis.call('ZADD', KEYS[7], tonumber(expires_at) + tonumber(ARGV[3]), ARGV[1]) end
if status == 'ready' and size then weigh(tonumber(size), pinned == '1' and '+inf' or expires_at) end
if status ~= 'queued' and status ~= 'running' then return {0, is_numbered} end
redis.call('HSET', KEYS[1], 'status', 'failed', 'lease_until', 0)
redis.call('HDEL', KEYS[1], 'lost_at', 'last_error')
redis.call('ZADD', KEYS[5], now, ARGV[1])
return {1, is_numbered}
