-- Give a worker the job, with a lease and a new fence: a job that is queued, or whose lease ran out.
--
-- KEYS  ... 6 fence
-- ARGV  1 member, 2 lease_ms, 3 attempts allowed, 4 worker, 5 the queues that the worker takes jobs of, as JSON: for each one the
--       digests of the initializations that it may take, any if the list is empty
-- Returns {'claimed', fence, recipe, ms waited, ttl_ms, attempt, request id, previous fence}, or {'gone'} (no record),
-- {'taken'} (not claimable, or not by this worker), {'capped'} (its attempts are used up).
--
-- A fence is never below the time in ms: a new master that lost the latest fences of its predecessor gives out none of them again.

local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'attempt', 'heard_at', 'fence', 'queue', 'kin')
if not r[1] then redis.call('ZREM', KEYS[2], ARGV[1]); return {'gone'} end
if r[1] ~= 'queued' and not (r[1] == 'running' and tonumber(r[2]) < now) then return {'taken'} end
local digests = cjson.decode(ARGV[5])[r[6] or '']
if not digests then return {'taken'} end  -- it is for workers of another base model or precision
if #digests > 0 then
  local wanted, has = cjson.decode(redis.call('HGET', KEYS[1], 'recipe')).initialization_digest, false
  for _, digest in ipairs(digests) do has = has or digest == wanted end
  if not has then return {'taken'} end
end
if tonumber(r[3]) >= tonumber(ARGV[3]) then return {'capped'} end
redis.call('ZREM', KEYS[3], ARGV[1])
if r[1] == 'running' then  -- its worker fell silent
  count('lost_workers')
  redis.call('HSETNX', KEYS[1], 'lost_at', r[4] or r[2])
end
local fence = string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[6]) or 0) + 1, now))
redis.call('SET', KEYS[6], fence)
if r[7] then redis.call('ZREM', 'qs:waiting:' .. r[7], ARGV[1]) end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]', 'heard_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
count('attempts')
local f = redis.call('HMGET', KEYS[1], 'recipe', 'queued_at', 'ttl_ms', 'request')
return {'claimed', fence, f[1], now - tonumber(f[2]), f[3], attempt, f[4] or '', r[5]}
