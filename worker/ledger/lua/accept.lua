-- Accept a job: check the tenant's limits, then write the record as `queued`. A job that is queued, running or ready (and not
-- expired) is not new: no limit applies, and only its TTL starts again.
--
-- KEYS  ... 6 index, 7 sequence, 8 retire, 9 queues
-- ARGV  1 member, 2 adapter id, 3 ttl_ms, 4 recipe, 5 truncated, 6 delay in ms before an unclaimed job is announced again,
--       7 ms that a record outlives its adapter, 8 request id, 9 pass key (kin), 10 queue, 11 limits as JSON (0: none),
--       12 most bytes that the weights can have, 13 summary of the recipe, 14... notes
-- Returns {1 if new else 0, status}, or {-1, limit, its value, what is used} if a limit refuses the job; then nothing is written.
--
-- A record that is accepted again keeps its fence: weights stored under that fence may have to be removed.
-- The first write, `count`, needs memory, so a server that has none left refuses the job before anything is written.

local old = redis.call('HMGET', KEYS[1], 'status', 'expires_at', 'pinned', 'created_at', 'fence', 'example_bytes')
local status, pinned = old[1], old[3] == '1'
local expire_at = now + tonumber(ARGV[3])
local live = status == 'queued' or status == 'running' or (status == 'ready' and (pinned or tonumber(old[2]) > now))
if not live then
  local over, freed = expired(), 0
  for _, which in ipairs(over) do freed = freed + size_of(which) end
  local limits, size, more = cjson.decode(ARGV[11]), tonumber(ARGV[12]), redis.call('ZSCORE', KEYS[6], ARGV[2]) and 0 or 1
  local sums = redis.call('HMGET', own .. ':usage', 'bytes', 'example_bytes')
  local bytes, examples = tonumber(sums[1] or 0) - freed, tonumber(sums[2] or 0)
  for _, each in ipairs({{'MAX_ADAPTERS', redis.call('ZCARD', KEYS[6]), more}, {'MAX_ADAPTER_BYTES', bytes, size},
                         {'MAX_EXAMPLE_BYTES', examples, #ARGV[4] - tonumber(old[6] or 0)},
                         {'MAX_JOBS', redis.call('SCARD', own .. ':unfinished'), 1}}) do
    local most = limits[each[1]] or 0
    if most > 0 and each[3] > 0 and each[2] + each[3] > most then
      for _, which in ipairs(over) do unweigh(which) end  -- there may be more of them, for who comes next
      return {-1, each[1], most, each[2]}
    end
  end
  count('accepted')  -- the first write: refused where memory is short
  local kept = redis.call('HMGET', KEYS[1], 'name', 'tags', 'parent')
  for _, which in ipairs(over) do unweigh(which) end
  unweigh(id)
  forget_examples()
  redis.call('DEL', KEYS[1])
  redis.call('HINCRBY', own .. ':usage', 'example_bytes', #ARGV[4])
  redis.call('HSET', KEYS[1], 'example_bytes', #ARGV[4], 'summary', ARGV[13])
  redis.call('HSET', KEYS[1], 'status', 'queued', 'recipe', ARGV[4], 'truncated', ARGV[5], 'created_at', old[4] or now,
             'queued_at', now, 'attempt', 0, 'fence', old[5] or 0, 'lease_until', 0, 'pinned', old[3] or 0, 'request', ARGV[8],
             'kin', ARGV[9], 'queue', ARGV[10])
  redis.call('SADD', KEYS[9], ARGV[10])
  redis.call('ZADD', 'qs:waiting:' .. ARGV[9], now, ARGV[1])
  for i, field in ipairs({'name', 'tags', 'parent'}) do
    if kept[i] then redis.call('HSET', KEYS[1], field, kept[i]) end
  end
  if not redis.call('ZSCORE', KEYS[6], ARGV[2]) then redis.call('ZADD', KEYS[6], redis.call('INCR', KEYS[7]), ARGV[2]) end
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[6]), ARGV[1])
  redis.call('ZREM', KEYS[5], ARGV[1])
  weigh(size, '+inf')
  unfinished()
  redis.call('HINCRBY', own .. ':usage', 'adaptations', 1)
  status = 'queued'
end
redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[3], 'expires_at', expire_at)
note(14)
if status == 'ready' and not pinned then redis.call('ZADD', own .. ':weighed', 'XX', expire_at, id) end
if not pinned then redis.call('ZADD', KEYS[8], expire_at + tonumber(ARGV[7]), ARGV[1]) end
return {live and 0 or 1, status}
