-- End a job as failed and dead, if its attempts are used up and no worker holds it.
--
-- ARGV  1 member, 2 channel, 3 reason, 4 attempts allowed

local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'last_error', 'attempt')
local status, lease_until, last_error, attempts = unpack(r)
local free = status == 'queued' or (status == 'running' and tonumber(lease_until) < now)
if free and tonumber(attempts) >= tonumber(ARGV[4]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  wait_no_more(redis.call('HGET', KEYS[1], 'queue') or '', ARGV[1])
  finished()
  unweigh(id)
  if status == 'running' then count('lost_workers') end
  local reason = ARGV[3]
  if status == 'running' then reason = reason .. '; the last one stopped answering' end
  if status == 'queued' and last_error then reason = reason .. '; the last one ended with: ' .. last_error end
  redis.call('HSET', KEYS[1], 'status', 'failed', 'error', reason)
  redis.call('HDEL', KEYS[1], 'lost_at', 'readapting', 'last_error')
  redis.call('ZADD', KEYS[5], now, ARGV[1])
  count('failed'); count('dead')
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
