-- key_conflict(): compare the request with the one that first used its idempotency key. ARGV[15] is '' for a request without a key,
--   else JSON {key, request, kept_ms}. Returns nil if the key is unused, or was used for the same request and adapter. Otherwise
--   returns the adapter of the same earlier request, or '' if the earlier request was another one.
-- keep_key(): store the key unless it is stored. Call it once the job is accepted.
-- Needs `now`, and ARGV[2] = adapter id.

local idempotency = ARGV[15] ~= '' and cjson.decode(ARGV[15])
local function key_conflict()
  if not idempotency then return nil end
  local over = tonumber(redis.call('ZSCORE', 'qs:idempotency', idempotency.key) or now + 1) <= now
  local first = not over and redis.call('GET', idempotency.key)
  if not first then return nil end
  local request, adapter = string.match(first, '^(%S+) (%S+)$')
  if request ~= idempotency.request then return '' end
  if adapter ~= ARGV[2] and redis.call('EXISTS', prefix .. ':adapter:' .. adapter) == 1 then return adapter end
end
local function keep_key()
  if not idempotency then return end
  local over = tonumber(redis.call('ZSCORE', 'qs:idempotency', idempotency.key) or now + 1) <= now
  if over then redis.call('DEL', idempotency.key) end
  if redis.call('SET', idempotency.key, idempotency.request .. ' ' .. ARGV[2], 'NX') then
    redis.call('ZADD', 'qs:idempotency', now + idempotency.kept_ms, idempotency.key)
  end
end
