-- Give a worker a lease and a new fence for a job that is queued, or running with an expired lease.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 fence
-- ARGV  1 member, 2 lease_ms, 3 attempts allowed, 4 worker, 5 the queues whose jobs the worker may claim, as JSON
--       {queue: digests of the initializations that the worker has; an empty list allows any},
--       6 the start of the keys of stored initializations, which every worker can load
-- Returns {'claimed', fence, recipe, ms waited, ttl_ms, attempt, request id, previous fence}, {'no_record'},
-- {'not_claimable'} (finished, held by a worker, or not for this worker), or {'attempts_used_up'}.
--
-- A fence is never below the current time in ms. So after a failover, a new master that never received the latest fences does not
-- reuse them.

local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'attempt', 'heard_at', 'fence', 'queue', 'kin')
local status, lease_until, attempts, heard_at, previous_fence, queue, pass_key = unpack(r)
if not status then redis.call('ZREM', KEYS[2], ARGV[1]); return {'no_record'} end
if status ~= 'queued' and not (status == 'running' and tonumber(lease_until) < now) then return {'not_claimable'} end
local digests = cjson.decode(ARGV[5])[queue or '']
if not digests then return {'not_claimable'} end  -- the job needs another base model or precision
if #digests > 0 then
  local summary, recipe = unpack(redis.call('HMGET', KEYS[1], 'summary', 'recipe'))  -- old records have no summary
  local wanted = cjson.decode(summary or recipe).initialization_digest
  local has = redis.call('EXISTS', ARGV[6] .. wanted) == 1
  for _, digest in ipairs(digests) do has = has or digest == wanted end
  if not has then return {'not_claimable'} end
end
if tonumber(attempts) >= tonumber(ARGV[3]) then return {'attempts_used_up'} end
redis.call('ZREM', KEYS[3], ARGV[1])
if status == 'running' then  -- the worker that held the job stopped sending heartbeats
  count('lost_workers')
  redis.call('HSETNX', KEYS[1], 'lost_at', heard_at or lease_until)
end
local fence = string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[6]) or 0) + 1, now))
redis.call('SET', KEYS[6], fence)
if pass_key then redis.call('ZREM', 'qs:waiting:' .. pass_key, ARGV[1]) end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]', 'heard_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
count('attempts')
local recipe, queued_at, ttl_ms, request = unpack(redis.call('HMGET', KEYS[1], 'recipe', 'queued_at', 'ttl_ms', 'request'))
return {'claimed', fence, recipe, now - tonumber(queued_at), ttl_ms, attempt, request or '', previous_fence}
