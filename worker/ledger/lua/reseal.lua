-- Replace fields of a record by the same values in another form (encrypted with another key, or not at all), and move the job to the
-- queue of that form, if all fields still have the values that the caller read. The name of a queue has the id of the key, and
-- workers read only the queues of keys that they have.
--
-- KEYS  1 record, 2 queues
-- ARGV  1 member, 2 digest of the initialization, 3 queue read ('' if there is none), 4 new queue,
--       5... field, value read ('' if there is none), new value, field ...
-- Returns 0 if a field has changed, and writes nothing.

local queue, new_queue = ARGV[3], ARGV[4]
if (redis.call('HGET', KEYS[1], 'queue') or '') ~= queue then return 0 end
for i = 5, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 5, #ARGV, 3 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
redis.call('HSET', KEYS[1], 'initialization_digest', ARGV[2])
if new_queue == queue then return 1 end
redis.call('HSET', KEYS[1], 'queue', new_queue)
redis.call('SADD', KEYS[2], new_queue)
local since = waits_since(queue, ARGV[1])
if since then
  wait_no_more(queue, ARGV[1])
  wait(new_queue, ARGV[1], since)
end
if redis.call('HGET', KEYS[1], 'status') == 'queued' then
  redis.call('HSET', KEYS[1], 'announced_at', 0)  -- its wake-up is in the earlier queue, so a reaper sends another one
end
return 1
