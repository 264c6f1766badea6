-- Record that a worker is alive, and remove the workers whose announcement has expired.
--
-- KEYS  1 workers, with the time at which their announcement expires, 2 descriptions
-- ARGV  1 name, 2 description, 3 ms until the announcement expires

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
