-- Point an alias at an adapter, if the alias currently points at the target that the caller expects.
--
-- KEYS  1 aliases of the adapter, 2 alias targets, 3 alias names, 4 record of the adapter, 5 history of the alias
-- ARGV  1 alias, 2 adapter id, 3 expected target ('*': any, '': none), 4 prefix of the keys `aliases-of`,
--       5 most aliases (0: no limit), 6 most entries of the history, 7 context of `audit`
-- Returns {verdict, previous target}; if the limit refuses a new alias, {'full', previous target, number of aliases}.

local stored = redis.call('HGET', KEYS[2], ARGV[1])
local previous = stored and string.match(stored, '^%w+') or ''
if redis.call('EXISTS', KEYS[4]) == 0 then return {'unknown', previous} end
if ARGV[3] ~= '*' and ARGV[3] ~= previous then return {'moved', previous} end
local most, used = tonumber(ARGV[5]), redis.call('HLEN', KEYS[2])
if not stored and most > 0 and used >= most then return {'full', previous, used} end
local time = redis.call('TIME')
if stored then redis.call('SREM', ARGV[4] .. previous, ARGV[1]) end
if stored and previous ~= ARGV[2] then
  redis.call('LPUSH', KEYS[5], stored)
  redis.call('LTRIM', KEYS[5], 0, tonumber(ARGV[6]) - 1)
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('SADD', KEYS[1], ARGV[1])
if previous ~= ARGV[2] then audit(ARGV[7], 'alias.moved', ARGV[1], {from = stored and previous or nil, to = ARGV[2]}) end
return {'set', previous}
