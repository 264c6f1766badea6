-- End a claimed job as ready or failed, if the claim still holds. A repeated commit takes effect only once.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 the key of the weights (optional: only if they are to be stored here)
-- ARGV  1 member, 2 fence, 3 channel, 4 bounds in ms of the recovery histogram as JSON, 5 digest ('' if the job failed),
--       6 size of the weights in bytes, 7 the weights ('' without KEYS[6]), 8... fields of the record: field, value, field, value ...
-- Returns the present {ttl_ms, pinned}, so that the worker can adjust the TTL of the weights, or nil if the claim does not hold.
--
-- Weights and record are one write to the disk. The weights are the first write: a server that is out of memory refuses the script
-- there, and nothing is committed.

local digest, ttl_ms, pinned, expires_at = unpack(redis.call('HMGET', KEYS[1], 'digest', 'ttl_ms', 'pinned', 'expires_at'))
local status = current[2]
local committed = (status == 'ready' and digest == ARGV[5]) or (status == 'failed' and ARGV[5] == '')
if current[1] == ARGV[2] and committed then return {ttl_ms, pinned or '0'} end
if not held then
  redis.call('ZREM', KEYS[3], '')  -- removes nothing, but lets a server that is out of memory accept the next write
  count('refused_commits')
  return nil
end
if KEYS[6] then
  redis.call('SET', KEYS[6], ARGV[7])
  if pinned ~= '1' then redis.call('PEXPIRE', KEYS[6], ttl_ms) end
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
finished()
if ARGV[5] == '' then unweigh(id) else weigh(tonumber(ARGV[6]), pinned == '1' and '+inf' or expires_at) end
for i = 8, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'status' then count(ARGV[i + 1]) end
end
local lost_at = redis.call('HGET', KEYS[1], 'lost_at')
if lost_at then
  local recovery_ms = now - tonumber(lost_at)
  redis.call('HSET', KEYS[1], 'recovery_ms', recovery_ms)
  count('recoveries'); count('recovery_ms', recovery_ms)
  for _, bound in ipairs(cjson.decode(ARGV[4])) do if recovery_ms <= bound then count('recovery_le_' .. bound) end end
end
redis.call('HDEL', KEYS[1], 'readapting', 'lost_at', 'last_error')
redis.call('PUBLISH', ARGV[3], ARGV[1])
return {ttl_ms, pinned or '0'}
