-- Pin an adapter, so that it does not expire, or unpin it, which restarts its TTL. An expired adapter stays expired, because the
-- tenant's usage no longer includes its bytes.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 retire
-- ARGV  1 member, 2 '1' to pin, '0' to unpin, 3 ms that a record is kept after its adapter expires
-- Returns the TTL in ms; -1 if the adapter has expired; nil if there is no record.

local ttl, status, pinned, expires_at = unpack(redis.call('HMGET', KEYS[1], 'ttl_ms', 'status', 'pinned', 'expires_at'))
local ready = status == 'ready'
if not ttl then return nil end
if ready and pinned ~= '1' and tonumber(expires_at) <= now then return -1 end
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('HSET', KEYS[1], 'pinned', ARGV[2], 'expires_at', now + tonumber(ttl))
if ARGV[2] ~= '1' then redis.call('ZADD', KEYS[6], now + tonumber(ttl) + tonumber(ARGV[3]), ARGV[1]) end
if ready then weigh(size_of(id), ARGV[2] == '1' and '+inf' or now + tonumber(ttl)) end
return ttl
