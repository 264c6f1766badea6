-- Extend the lease of a claim, and store the support loss so far.
--
-- ARGV  1 member, 2 fence, 3 lease_ms, 4 support loss as JSON ('': keep the stored one)
-- Returns 0 if the claim no longer holds.

if not held then
  redis.call('ZREM', KEYS[3], '')  -- removes nothing, but lets a server that is out of memory accept the next write
  count('overtaken')
  return 0
end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[1], 'lease_until', now + tonumber(ARGV[3]), 'heard_at', now)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'support_loss', ARGV[4]) end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), ARGV[1])
return 1
