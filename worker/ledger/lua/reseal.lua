-- Replace fields of a record by the same values in another form (encrypted with another key, or not at all), if all fields still have
-- the values that the caller read.
--
-- KEYS  1 record
-- ARGV  1 digest of the initialization, 2... field, value read ('' if there is none), new value, field ...
-- Returns 0 if a field has changed, and writes nothing.

for i = 2, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 2, #ARGV, 3 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
redis.call('HSET', KEYS[1], 'initialization_digest', ARGV[1])
return 1
