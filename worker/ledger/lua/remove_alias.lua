-- Remove an alias.
--
-- KEYS  1 alias targets, 2 alias names, 3 history of the alias
-- ARGV  1 alias, 2 prefix of the keys `aliases-of`, 3 context of `audit`
-- Returns 0 if there is no such alias.

local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored then return 0 end
local target = string.match(stored, '^%w+')
redis.call('SREM', ARGV[2] .. target, ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
audit(ARGV[3], 'alias.removed', ARGV[1], {from = target})
return 1
