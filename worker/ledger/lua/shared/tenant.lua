-- What a tenant uses, counted in the same step that changes it. Needs `now`, and ARGV[1] = tenant/adapter_id.
--
-- own                     prefix of the tenant's keys, `qs:TENANT`
-- id                      the adapter
-- size_of(which)          bytes of an adapter's weights, as its record has them
-- unweigh(which)          stop counting those bytes
-- weigh(size, expires)    count `size` bytes for this adapter until `expires` in ms ('+inf': while it is pinned or being adapted)
-- forget_examples()       stop counting the bytes of the record's examples
-- expired()               up to 1000 adapters whose bytes are counted although their time is over
-- finished(), unfinished()  remove this job from, or add it to, the tenant's unfinished jobs
--
-- Bytes are subtracted only if the adapter is in the sorted set `weighed`, or the record has `example_bytes`: so nothing is
-- subtracted twice, and records written before there were counts subtract nothing.

local slash = string.find(ARGV[1], '/', 1, true)
local own, id = 'qs:' .. string.sub(ARGV[1], 1, slash - 1), string.sub(ARGV[1], slash + 1)
local function size_of(which) return tonumber(redis.call('HGET', own .. ':adapter:' .. which, 'bytes') or 0) end
local function unweigh(which)
  local size = size_of(which)
  if redis.call('ZREM', own .. ':weighed', which) == 1 then redis.call('HINCRBY', own .. ':usage', 'bytes', -size) end
end
local function weigh(size, expires)
  unweigh(id)
  redis.call('HSET', KEYS[1], 'bytes', size)
  redis.call('HINCRBY', own .. ':usage', 'bytes', size)
  redis.call('ZADD', own .. ':weighed', expires, id)
end
local function forget_examples()
  local size = redis.call('HGET', KEYS[1], 'example_bytes')
  if size then redis.call('HINCRBY', own .. ':usage', 'example_bytes', -size) end
end
local function expired() return redis.call('ZRANGEBYSCORE', own .. ':weighed', '-inf', now, 'LIMIT', 0, 1000) end
local function finished() redis.call('SREM', own .. ':unfinished', id) end
local function unfinished() redis.call('SADD', own .. ':unfinished', id) end
