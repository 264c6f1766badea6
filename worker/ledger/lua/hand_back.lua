-- Queue a claimed job again, so that any worker can claim it. It gets back its place among its tenant's jobs; after a delay, `due.lua`
-- gives it back.
--
-- ARGV  1 member, 2 fence, 3 delay in ms before it is announced again, 4 reason, 5 '1' if this uses up an attempt, else '0'
-- Returns 0 if the claim no longer holds.

if not held then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[5] ~= '1' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('HSET', KEYS[1], 'status', 'queued', 'lease_until', 0, 'last_error', ARGV[4])
local delay = tonumber(ARGV[3])
redis.call('ZADD', KEYS[2], now + delay, ARGV[1])
local queue, queued_at = unpack(redis.call('HMGET', KEYS[1], 'queue', 'queued_at'))
wait(queue or '', ARGV[1], delay > 0 and now + delay or queued_at)
count('handed_back')
return 1
