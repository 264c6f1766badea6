-- Queue a ready job again because its weights are missing or wrong, if it still has the fence that the caller read.
-- The tenant's usage continues to include its bytes.
--
-- ARGV  1 member, 2 fence, 3 delay in ms before the reaper checks an unclaimed job, 4 name of the count (evicted, corrupt),
--       5 queue, which replaces the one in the record ('': keep that one)
-- Returns 0 if the job is not ready or has another fence, else 1.

local status, fence = unpack(redis.call('HMGET', KEYS[1], 'status', 'fence'))
if status ~= 'ready' or fence ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'announced_at')
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'queue', ARGV[5])
  redis.call('SADD', 'qs:queues', ARGV[5])
end
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'readapting', 1)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
wait(redis.call('HGET', KEYS[1], 'queue') or '', ARGV[1], now)
weigh(size_of(id), '+inf')
unfinished()
count('recomputed'); count(ARGV[4])
return 1
