-- Count requests of a tenant in the current minute, unless they would exceed the limit.
--
-- ARGV  1 tenant, 2 number of requests, 3 most requests in a minute (0: no limit)
-- Returns {} if the requests were counted, else {requests already counted, seconds until the minute ends}.

local second = redis.call('TIME')[1]
local key = 'qs:' .. ARGV[1] .. ':requests:' .. math.floor(second / 60)
local used, most = tonumber(redis.call('GET', key) or 0), tonumber(ARGV[3])
if most > 0 and used + tonumber(ARGV[2]) > most then return {used, 60 - second % 60} end
redis.call('INCRBY', key, ARGV[2])
redis.call('EXPIRE', key, 120)
return {}
