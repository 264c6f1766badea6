-- Functions that keep the usage of a tenant up to date, in the atomic step that changes it. Needs `now`, and ARGV[1] =
-- tenant/adapter_id.
--
-- prefix                  prefix of the tenant's keys, `qs:TENANT`
-- id                      id of the adapter
-- size_of(adapter)        size of an adapter's weights in bytes, as its record states it
-- unweigh(adapter)        subtract an adapter's weights from the usage
-- weigh(size, expires)    add `size` bytes for this adapter to the usage until `expires` in ms ('+inf': while pinned or adapting)
-- forget_examples()       subtract the bytes of the record's examples from the usage
-- expired()               up to 1000 adapters that have expired but whose bytes the usage still includes
-- finished(), unfinished()  remove this job from the tenant's unfinished jobs, or add it
--
-- The bytes of weights are subtracted only if the adapter is in the sorted set `weighed`, and those of examples only if the record
-- has `example_bytes`. So nothing is subtracted twice, and nothing for records from versions that did not count bytes.

local slash = string.find(ARGV[1], '/', 1, true)
local prefix, id = 'qs:' .. string.sub(ARGV[1], 1, slash - 1), string.sub(ARGV[1], slash + 1)
local function size_of(adapter) return tonumber(redis.call('HGET', prefix .. ':adapter:' .. adapter, 'bytes') or 0) end
local function unweigh(adapter)
  local size = size_of(adapter)
  if redis.call('ZREM', prefix .. ':weighed', adapter) == 1 then redis.call('HINCRBY', prefix .. ':usage', 'bytes', -size) end
end
local function weigh(size, expires)
  unweigh(id)
  redis.call('HSET', KEYS[1], 'bytes', size)
  redis.call('HINCRBY', prefix .. ':usage', 'bytes', size)
  redis.call('ZADD', prefix .. ':weighed', expires, id)
end
local function forget_examples()
  local size = redis.call('HGET', KEYS[1], 'example_bytes')
  if size then redis.call('HINCRBY', prefix .. ':usage', 'example_bytes', -size) end
end
local function expired() return redis.call('ZRANGEBYSCORE', prefix .. ':weighed', '-inf', now, 'LIMIT', 0, 1000) end
local function finished() redis.call('SREM', prefix .. ':unfinished', id) end
local function unfinished() redis.call('SADD', prefix .. ':unfinished', id) end
