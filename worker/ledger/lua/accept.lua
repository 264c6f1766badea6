-- Accept a job: check the tenant's limits, then write the record as `queued`. If the job is already queued, running or ready (and
-- not expired), it is not new: no limit applies, and only its TTL and notes change.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 adapters of the tenant, 7 sequence, 8 retire, 9 queues, 10 the list of new
--       wake-ups of the queue, 11 the job's initialization (optional)
-- ARGV  1 member, 2 adapter id, 3 ttl_ms, 4 recipe, 5 truncated, 6 delay in ms before the reaper checks an unclaimed job,
--       7 ms that a record is kept after its adapter expires, 8 request id, 9 pass key (field `kin`), 10 queue,
--       11 limits as JSON (0: no limit), 12 largest possible size of the weights in bytes, 13 summary of the recipe,
--       14 cost of the job, 15 idempotency key (see shared/idempotency.lua), 16 wake-up message for a new job ('': none),
--       17... notes
-- Returns {1 if new else 0, status}. If a limit refuses the job, writes no job and returns {-1, limit, its value, usage now}. If
-- KEYS[11] is not stored, writes no job and returns {-2}. If the idempotency key was used for another request or adapter, writes
-- nothing and returns {-3, the first adapter of the same request or ''}.
--
-- A job that is accepted again keeps the fence in its record, because weights stored under that fence may have to be removed.
-- The first write, `count`, needs memory. So a server that is out of memory refuses the job before anything is written.

local idempotency = ARGV[15] ~= '' and cjson.decode(ARGV[15])
local first_adapter = key_conflict(idempotency)
if first_adapter then return {-3, first_adapter} end
local old = redis.call('HMGET', KEYS[1], 'status', 'pinned', 'created_at', 'fence')
local status, pinned = old[1], old[2] == '1'
local expires_at = now + tonumber(ARGV[3])
local is_live = live()
if not is_live then
  if KEYS[11] and redis.call('EXISTS', KEYS[11]) == 0 then return {-2} end
  local expired_adapters, size = expired(), tonumber(ARGV[12])
  local refused = refusal(cjson.decode(ARGV[11]), size, #ARGV[4], expired_adapters)
  if refused then
    for _, adapter in ipairs(expired_adapters) do unweigh(adapter) end  -- the next call can then free further ones
    return {-1, unpack(refused)}
  end
  count('accepted')  -- the first write: a server that is out of memory refuses the script here
  local kept = redis.call('HMGET', KEYS[1], 'name', 'tags', 'parent')
  for _, adapter in ipairs(expired_adapters) do unweigh(adapter) end
  unweigh(id)
  forget_examples()
  redis.call('DEL', KEYS[1])
  redis.call('HINCRBY', prefix .. ':usage', 'example_bytes', #ARGV[4])
  redis.call('HSET', KEYS[1], 'example_bytes', #ARGV[4], 'summary', ARGV[13])
  redis.call('HSET', KEYS[1], 'status', 'queued', 'recipe', ARGV[4], 'truncated', ARGV[5], 'created_at', old[3] or now,
             'queued_at', now, 'attempt', 0, 'fence', old[4] or 0, 'lease_until', 0, 'pinned', old[2] or 0, 'request', ARGV[8],
             'kin', ARGV[9], 'queue', ARGV[10], 'cost', ARGV[14])
  redis.call('SADD', KEYS[9], ARGV[10])
  wait(ARGV[10], ARGV[1], now)
  for i, field in ipairs({'name', 'tags', 'parent'}) do
    if kept[i] then redis.call('HSET', KEYS[1], field, kept[i]) end
  end
  if not redis.call('ZSCORE', KEYS[6], ARGV[2]) then redis.call('ZADD', KEYS[6], redis.call('INCR', KEYS[7]), ARGV[2]) end
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[6]), ARGV[1])
  redis.call('ZREM', KEYS[5], ARGV[1])
  weigh(size, '+inf')
  unfinished()
  redis.call('HINCRBY', prefix .. ':usage', 'adaptations', 1)
  -- The record and its wake-up are one write to the disk, and the wake-up cannot be lost on its way.
  if ARGV[16] ~= '' then redis.call('LPUSH', KEYS[10], ARGV[16]) end
  status = 'queued'
end
redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[3], 'expires_at', expires_at)
note(17)
keep_key(idempotency)
if status == 'ready' and not pinned then redis.call('ZADD', prefix .. ':weighed', 'XX', expires_at, id) end
if not pinned then redis.call('ZADD', KEYS[8], expires_at + tonumber(ARGV[7]), ARGV[1]) end
return {is_live and 0 or 1, status}
