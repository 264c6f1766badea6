-- Read the usage of a tenant, after subtracting the bytes of up to 1000 expired adapters from it.
--
-- ARGV  1 the tenant's name and a slash
-- Returns the fields of `worker.ledger.usage.Used`, in their order.

for _, adapter in ipairs(expired()) do unweigh(adapter) end
local sums = redis.call('HMGET', prefix .. ':usage', 'bytes', 'example_bytes', 'adaptations', 'predictions')
local bytes, example_bytes, adaptations, predictions = unpack(sums)
local _, requests = requests_in(string.sub(ARGV[1], 1, -2), math.floor(time[1] / 60))
return {redis.call('ZCARD', prefix .. ':adapters'), redis.call('HLEN', prefix .. ':alias-targets'), tonumber(bytes or 0),
        tonumber(example_bytes or 0), redis.call('SCARD', prefix .. ':unfinished'), requests,
        tonumber(adaptations or 0), tonumber(predictions or 0)}
