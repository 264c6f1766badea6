-- End a job as failed and dead because its attempts are used up, unless a worker holds it.
--
-- ARGV  1 member, 2 channel, 3 reason, 4 attempts allowed

local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'last_error', 'attempt')
local free = r[1] == 'queued' or (r[1] == 'running' and tonumber(r[2]) < now)
if free and tonumber(r[4]) >= tonumber(ARGV[4]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  finished()
  unweigh(id)
  if r[1] == 'running' then count('lost_workers') end
  local why = ARGV[3]
  if r[1] == 'queued' and r[3] then why = why .. '; the last one ended with: ' .. r[3] end
  redis.call('HSET', KEYS[1], 'status', 'failed', 'error', why)
  redis.call('HDEL', KEYS[1], 'lost_at', 'readapting', 'last_error')
  redis.call('ZADD', KEYS[5], now, ARGV[1])
  count('failed'); count('dead')
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
