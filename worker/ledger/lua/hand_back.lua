-- Queue a claimed job again, so that any worker can claim it.
--
-- ARGV  1 member, 2 fence, 3 delay in ms before it is announced again, 4 reason, 5 '1' if this uses up an attempt, else '0'
-- Returns 0 if the claim no longer holds.

if not held then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[5] ~= '1' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('HSET', KEYS[1], 'status', 'queued', 'lease_until', 0, 'last_error', ARGV[4])
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
wait(redis.call('HGET', KEYS[1], 'queue') or '', ARGV[1], now + tonumber(ARGV[3]))
count('handed_back')
return 1
