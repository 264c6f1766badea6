-- Count requests of a tenant in the current minute, unless they would exceed the limit.
--
-- ARGV  1 tenant, 2 number of requests, 3 most requests in a minute (0: no limit), 4 number to count if the limit leaves room for them,
--       at least ARGV[2]: a service takes requests in blocks, 5 requests that were counted in this minute and are given back first
-- Returns {number counted, ms until the minute ends}, or, if ARGV[2] requests would exceed the limit, {0, ms, requests already counted}.

local time = redis.call('TIME')
local minute = math.floor(time[1] / 60)
local left = 60000 - (time[1] % 60) * 1000 - math.floor(time[2] / 1000)
local counted, used = requests_in(ARGV[1], minute)
local most, number = tonumber(ARGV[3]), tonumber(ARGV[4])
local given_back = math.min(tonumber(ARGV[5]), counted)
if given_back > 0 then
  counted, used = counted - given_back, used - given_back
  redis.call('HSET', 'qs:' .. ARGV[1] .. ':requests', 'minute', minute, 'number', counted)
end
if most > 0 then
  if used + tonumber(ARGV[2]) > most then return {0, left, used} end
  number = math.min(number, most - used)
end
redis.call('HSET', 'qs:' .. ARGV[1] .. ':requests', 'minute', minute, 'number', counted + number)
return {number, left}
