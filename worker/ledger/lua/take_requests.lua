-- Count requests of a tenant in the current minute, unless they would exceed the limit.
--
-- ARGV  1 tenant, 2 number of requests, 3 most requests in a minute (0: no limit)
-- Returns {} if the requests were counted, else {requests already counted, seconds until the minute ends}.

local second = redis.call('TIME')[1]
local minute = math.floor(second / 60)
local number, used = requests_in(ARGV[1], minute)
local most = tonumber(ARGV[3])
if most > 0 and used + tonumber(ARGV[2]) > most then return {used, 60 - second % 60} end
redis.call('HSET', 'qs:' .. ARGV[1] .. ':requests', 'minute', minute, 'number', number + tonumber(ARGV[2]))
return {}
