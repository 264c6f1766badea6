-- Idempotency keys. `idempotency` is false for a request without a key, else {key, request, kept_ms}. Needs `now` and tenant.lua.
--
-- key_conflict(idempotency)  compare the request with the one that first used its key. Returns nil if the key is unused, or was used
--                            for the same request and adapter. Otherwise returns the adapter of the same earlier request, or '' if
--                            the earlier request was another one.
-- keep_key(idempotency)      store the key unless it is stored. Call it once the job is accepted.

local function is_over(idempotency) return tonumber(redis.call('ZSCORE', 'qs:idempotency', idempotency.key) or now + 1) <= now end
local function key_conflict(idempotency)
  if not idempotency then return nil end
  local first = not is_over(idempotency) and redis.call('GET', idempotency.key)
  if not first then return nil end
  local request, adapter = string.match(first, '^(%S+) (%S+)$')
  if request ~= idempotency.request then return '' end
  if adapter ~= id and redis.call('EXISTS', prefix .. ':adapter:' .. adapter) == 1 then return adapter end
end
local function keep_key(idempotency)
  if not idempotency then return end
  if is_over(idempotency) then redis.call('DEL', idempotency.key) end
  if redis.call('SET', idempotency.key, idempotency.request .. ' ' .. id, 'NX') then
    redis.call('ZADD', 'qs:idempotency', now + idempotency.kept_ms, idempotency.key)
  end
end
