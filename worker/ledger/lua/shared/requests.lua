-- requests_in(tenant, minute): the number of requests of a tenant that were counted in a minute. Earlier versions count in keys of
-- their own, which have a TTL and can be evicted with the weights.
local function requests_in(tenant, minute)
  local stored = redis.call('HMGET', 'qs:' .. tenant .. ':requests', 'minute', 'number')
  local number = tonumber(stored[1] or -1) == minute and tonumber(stored[2]) or 0
  return number, number + tonumber(redis.call('GET', 'qs:' .. tenant .. ':requests:' .. string.format('%.0f', minute)) or 0)
end
