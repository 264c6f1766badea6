-- Record that a worker is alive, and remove those that have fallen silent.
--
-- KEYS  1 workers, by the time their announcement ends, 2 descriptions
-- ARGV  1 name, 2 description, 3 ms that the announcement lasts

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
