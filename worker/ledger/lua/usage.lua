-- Read what a tenant uses. Stops counting expired adapters first, up to a thousand in a call.
--
-- ARGV  1 the tenant and a slash
-- Returns the fields of `worker.ledger.usage.Used`, in their order.

for _, which in ipairs(expired()) do unweigh(which) end
local sums = redis.call('HMGET', own .. ':usage', 'bytes', 'example_bytes', 'adaptations', 'predictions')
local requests = redis.call('GET', own .. ':requests:' .. math.floor(t[1] / 60))
return {redis.call('ZCARD', own .. ':adapters'), redis.call('HLEN', own .. ':alias-targets'), tonumber(sums[1] or 0),
        tonumber(sums[2] or 0), redis.call('SCARD', own .. ':unfinished'), tonumber(requests or 0), tonumber(sums[3] or 0),
        tonumber(sums[4] or 0)}
