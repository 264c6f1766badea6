-- Pin an adapter, which then does not expire, or unpin it, which starts its TTL again. An expired one stays expired: its bytes are
-- no longer counted.
--
-- KEYS  ... 6 retire
-- ARGV  1 member, 2 '1' or '0', 3 ms that a record outlives its adapter
-- Returns the TTL in ms; -1 if it has expired; nil if there is no record.

local r = redis.call('HMGET', KEYS[1], 'ttl_ms', 'status', 'pinned', 'expires_at')
local ttl, ready = r[1], r[2] == 'ready'
if not ttl then return nil end
if ready and r[3] ~= '1' and tonumber(r[4]) <= now then return -1 end
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('HSET', KEYS[1], 'pinned', ARGV[2], 'expires_at', now + tonumber(ttl))
if ARGV[2] ~= '1' then redis.call('ZADD', KEYS[6], now + tonumber(ttl) + tonumber(ARGV[3]), ARGV[1]) end
if ready then weigh(size_of(id), ARGV[2] == '1' and '+inf' or now + tonumber(ttl)) end
return ttl
