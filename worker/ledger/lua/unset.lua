-- Remove a field of a hash, or replace it by a smaller value, and record that. The first write is a removal, which a server that is
-- out of memory accepts.
--
-- KEYS  1 the hash
-- ARGV  1 field, 2 value that the caller read ('' if there is none, '*': any), 3 new value ('' for none), 4 context of `audit`,
--       5 action, 6 subject, 7 details as JSON
-- Returns 0 if the field has another value than the caller read, and writes nothing.

if ARGV[2] ~= '*' and (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
audit(ARGV[4], ARGV[5], ARGV[6], cjson.decode(ARGV[7]))
return 1
