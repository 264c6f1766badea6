-- Limits of a tenant. Needs KEYS[1] (the record), `now` and tenant.lua.
--
-- refusal(limits, size, example_bytes, expired_adapters)
--         return {limit, its value, usage now} for the first limit that a new job of this adapter would exceed, or nil
--   limits            the tenant's limits by name, 0 for no limit
--   size              largest possible size of the weights in bytes
--   example_bytes     bytes of the job's examples
--   expired_adapters  the answer of expired(): adapters whose bytes no longer count
--
-- live()  return true if the job is queued, running or ready and not expired, so that no limit applies to it

local function refusal(limits, size, example_bytes, expired_adapters)
  local freed = 0
  for _, adapter in ipairs(expired_adapters) do freed = freed + size_of(adapter) end
  local sums = redis.call('HMGET', prefix .. ':usage', 'bytes', 'example_bytes')
  local bytes, all_examples = tonumber(sums[1] or 0) - freed, tonumber(sums[2] or 0)
  local new_records = redis.call('ZSCORE', prefix .. ':adapters', id) and 0 or 1
  local before = tonumber(redis.call('HGET', KEYS[1], 'example_bytes') or 0)
  for _, check in ipairs({{'MAX_ADAPTERS', redis.call('ZCARD', prefix .. ':adapters'), new_records}, {'MAX_ADAPTER_BYTES', bytes, size},
                          {'MAX_EXAMPLE_BYTES', all_examples, example_bytes - before},
                          {'MAX_JOBS', redis.call('SCARD', prefix .. ':unfinished'), 1}}) do
    local limit, used, added = unpack(check)
    local most = limits[limit] or 0
    if most > 0 and added > 0 and used + added > most then return {limit, most, used} end
  end
end

local function live()
  local status, expires_at, pinned = unpack(redis.call('HMGET', KEYS[1], 'status', 'expires_at', 'pinned'))
  return status == 'queued' or status == 'running' or (status == 'ready' and (pinned == '1' or tonumber(expires_at) > now))
end
