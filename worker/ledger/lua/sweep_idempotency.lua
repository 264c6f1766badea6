-- Remove idempotency keys that have expired.
--
-- KEYS  1 qs:idempotency
-- ARGV  1 most keys to remove
-- Returns the number of removed keys.

local over = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, key in ipairs(over) do
  redis.call('ZREM', KEYS[1], key)
  redis.call('DEL', key)
end
return #over
