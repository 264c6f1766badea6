-- End a job as ready or failed, if the claim still holds. A commit that is repeated is done once.
--
-- ARGV  1 member, 2 fence, 3 channel, 4 bounds in ms of the recovery histogram as JSON, 5 digest ('': none),
--       6 bytes of the weights, 7... fields of the record: field, value, field, value ...
-- Returns {ttl_ms, pinned} as they are now, so that the worker can adjust the TTL of the weights; nil if the claim does not hold.

local r = redis.call('HMGET', KEYS[1], 'digest', 'ttl_ms', 'pinned', 'expires_at')
local same = (c[2] == 'ready' and r[1] == ARGV[5]) or (c[2] == 'failed' and ARGV[5] == '')
if c[1] == ARGV[2] and same then return {r[2], r[3] or '0'} end
if not held then count('refused_commits'); return nil end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
finished()
if ARGV[5] == '' then unweigh(id) else weigh(tonumber(ARGV[6]), r[3] == '1' and '+inf' or r[4]) end
for i = 7, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'status' then count(ARGV[i + 1]) end
end
local lost = redis.call('HGET', KEYS[1], 'lost_at')
if lost then
  local took = now - tonumber(lost)
  redis.call('HSET', KEYS[1], 'recovery_ms', took)
  count('recoveries'); count('recovery_ms', took)
  for _, bound in ipairs(cjson.decode(ARGV[4])) do if took <= bound then count('recovery_le_' .. bound) end end
end
redis.call('HDEL', KEYS[1], 'readapting', 'lost_at', 'last_error')
redis.call('PUBLISH', ARGV[3], ARGV[1])
return {r[2], r[3] or '0'}
