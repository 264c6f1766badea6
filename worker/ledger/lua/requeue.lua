-- Queue a ready job again because its weights are missing or wrong, if it still has the fence that the caller saw.
-- Its bytes stay counted meanwhile.
--
-- ARGV  1 member, 2 fence, 3 delay in ms before an unclaimed job is announced again, 4 name of the count (evicted, corrupt),
--       5 queue, for a record that was written before there were several

local r = redis.call('HMGET', KEYS[1], 'status', 'fence')
if r[1] ~= 'ready' or r[2] ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'announced_at')
local kin = redis.call('HGET', KEYS[1], 'kin')
if kin then redis.call('ZADD', 'qs:waiting:' .. kin, now, ARGV[1]) end
if redis.call('HSETNX', KEYS[1], 'queue', ARGV[5]) == 1 then redis.call('SADD', 'qs:queues', ARGV[5]) end
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'readapting', 1)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
weigh(size_of(id), '+inf')
unfinished()
count('recomputed'); count(ARGV[4])
return 1
