"""The atomic steps of a job's life, as Lua that runs inside the records' Redis: a reader never sees half of one. Torch-free.

KEYS[1] is the record, KEYS[2] `qs:pending` (unfinished jobs by when the reaper should look at them), KEYS[3] `qs:running`
(claimed jobs by the end of their lease), KEYS[4] `qs:counts` (what has happened so far, for `/metrics`), KEYS[5] `qs:dead` (jobs
that used up their attempts, by when); what else a script touches follows. ARGV[1] is the member, `tenant/adapter_id`.
"""

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_COUNT = "local function count(what, by) redis.call('HINCRBY', KEYS[4], what, by or 1) end\n"
_HOLDS = """
local r = redis.call('HMGET', KEYS[1], 'fence', 'status')
if r[1] ~= ARGV[2] or r[2] ~= 'running' then return 0 end
"""

# KEYS … index, sequence, retire. ARGV member, id, ttl_ms, recipe, truncated, wake_ms, retention_ms, request id.
ACCEPT = (
    _NOW
    + _COUNT
    + """
local status = redis.call('HGET', KEYS[1], 'status')
local expires = tonumber(redis.call('HGET', KEYS[1], 'expires_at') or 0)
local expire_at = now + tonumber(ARGV[3])
local pinned = redis.call('HGET', KEYS[1], 'pinned') == '1'
local live = status == 'queued' or status == 'running' or (status == 'ready' and (pinned or expires > now))
if not live then
  local old = redis.call('HMGET', KEYS[1], 'created_at', 'pinned')
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'status', 'queued', 'recipe', ARGV[4], 'truncated', ARGV[5], 'created_at', old[1] or now,
             'queued_at', now, 'attempt', 0, 'fence', 0, 'lease_until', 0, 'pinned', old[2] or 0, 'request', ARGV[8])
  if not redis.call('ZSCORE', KEYS[6], ARGV[2]) then redis.call('ZADD', KEYS[6], redis.call('INCR', KEYS[7]), ARGV[2]) end
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[6]), ARGV[1])
  redis.call('ZREM', KEYS[5], ARGV[1])
  count('accepted')
  status = 'queued'
end
redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[3], 'expires_at', expire_at)
if not pinned then redis.call('ZADD', KEYS[8], expire_at + tonumber(ARGV[7]), ARGV[1]) end
return {live and 0 or 1, status}
"""
)

# KEYS … fence. ARGV member, lease_ms, attempt cap, worker.
CLAIM = (
    _NOW
    + _COUNT
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'attempt', 'heard_at', 'fence')
if not r[1] then redis.call('ZREM', KEYS[2], ARGV[1]); return {'gone'} end
if r[1] ~= 'queued' and not (r[1] == 'running' and tonumber(r[2]) < now) then return {'taken'} end
if tonumber(r[3]) >= tonumber(ARGV[3]) then return {'capped'} end
if r[1] == 'running' then  -- its worker fell silent
  count('lost_workers')
  redis.call('HSETNX', KEYS[1], 'lost_at', r[4] or r[2])
end
local fence = redis.call('INCR', KEYS[6])
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]', 'heard_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
count('attempts')
local f = redis.call('HMGET', KEYS[1], 'recipe', 'queued_at', 'ttl_ms', 'pinned', 'request')
return {'claimed', fence, f[1], now - tonumber(f[2]), f[3], f[4] or '0', attempt, f[5] or '', r[5]}
"""
)

# ARGV member, fence, lease_ms, support_loss ('' leaves it).
HEARTBEAT = (
    _NOW
    + _COUNT
    + _HOLDS.replace("return 0", "count('overtaken'); return 0")
    + """
redis.call('HSET', KEYS[1], 'lease_until', now + tonumber(ARGV[3]), 'heard_at', now)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'support_loss', ARGV[4]) end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)

# ARGV member, fence, channel, recovery bounds in ms as JSON, field, value, field, value … Ends the job.
COMMIT = (
    _NOW
    + _COUNT
    + _HOLDS.replace("return 0", "count('refused_commits'); return 0")
    + """
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'status' then count(ARGV[i + 1]) end
end
local lost = redis.call('HGET', KEYS[1], 'lost_at')
if lost then
  local took = now - tonumber(lost)
  redis.call('HSET', KEYS[1], 'recovery_ms', took)
  count('recoveries'); count('recovery_ms', took)
  for _, bound in ipairs(cjson.decode(ARGV[4])) do if took <= bound then count('recovery_le_' .. bound) end end
end
redis.call('HDEL', KEYS[1], 'readapting', 'lost_at', 'last_error')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""
)

# ARGV member, fence, delay_ms, reason, '1' where it counts as an attempt. The job waits again, for any worker.
HAND_BACK = (
    _NOW
    + _COUNT
    + _HOLDS
    + """
if ARGV[5] ~= '1' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('HSET', KEYS[1], 'status', 'queued', 'lease_until', 0, 'last_error', ARGV[4])
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
count('handed_back')
return 1
"""
)

# ARGV member, channel, reason. Ends a job whose attempts are used up, unless somebody holds it.
GIVE_UP = (
    _NOW
    + _COUNT
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'last_error')
if r[1] == 'queued' or (r[1] == 'running' and tonumber(r[2]) < now) then
  local why = ARGV[3]
  if r[1] == 'queued' and r[3] then why = why .. '; the last one ended with: ' .. r[3] end
  redis.call('HSET', KEYS[1], 'status', 'failed', 'error', why)
  redis.call('HDEL', KEYS[1], 'lost_at', 'readapting', 'last_error')
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZADD', KEYS[5], now, ARGV[1])
  count('failed'); count('dead')
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
"""
)

# KEYS … index, retire, erase. ARGV member, id, channel. Returns the fence, whose weights the caller removes; nil: unknown.
# `qs:erase` says since when the append-only file holds text that was deleted.
DELETE = (
    _NOW
    + _COUNT
    + """
redis.call('SETNX', KEYS[8], now)
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence then count('deleted') end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[2])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return fence
"""
)

# ARGV member, fence, wake_ms, what is counted. A ready job whose weights are gone starts again, if it is still that very one.
REQUEUE = (
    _NOW
    + _COUNT
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'fence')
if r[1] ~= 'ready' or r[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'readapting', 1)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
count('recomputed'); count(ARGV[4])
return 1
"""
)

# ARGV member, wake_ms. A dead job waits again with all its attempts; 0 where it is not dead.
REVIVE = (
    _NOW
    + _COUNT
    + """
if redis.call('ZREM', KEYS[5], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0)
redis.call('HDEL', KEYS[1], 'error')
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
count('revived')
return 1
"""
)

# KEYS … retire. ARGV member, '1' or '0', retention_ms. Pinned, an adapter does not expire; unpinned, its TTL starts anew. Returns
# the TTL in ms; nil: unknown.
PIN = (
    _NOW
    + """
local ttl = redis.call('HGET', KEYS[1], 'ttl_ms')
if not ttl then return nil end
redis.call('HSET', KEYS[1], 'pinned', ARGV[2], 'expires_at', now + tonumber(ttl))
if ARGV[2] == '1' then redis.call('ZREM', KEYS[6], ARGV[1])
else redis.call('ZADD', KEYS[6], now + tonumber(ttl) + tonumber(ARGV[3]), ARGV[1]) end
return ttl
"""
)

# KEYS erase. ARGV after_ms. Whether it is time to write the append-only file anew.
ERASE_DUE = (
    _NOW
    + """
local since = redis.call('GET', KEYS[1])
if not since or now - tonumber(since) < tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
return 1
"""
)

# KEYS pending. ARGV most, wake_ms, backlog ('1': the queue has messages still, so a job that was never claimed is not lost, unless
# it has waited for ten minutes). Members that are due, put off so that several reapers do not announce the same ones.
DUE = (
    _NOW
    + """
local due, lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]), {}
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), member)
  local slash = string.find(member, '/', 1, true)
  local record = 'qs:' .. string.sub(member, 1, slash - 1) .. ':adapter:' .. string.sub(member, slash + 1)
  local r = redis.call('HMGET', record, 'status', 'last_error', 'announced_at', 'queued_at')
  local waited = now - tonumber(r[3] or r[4] or now)
  if ARGV[3] ~= '1' or r[1] ~= 'queued' or r[2] or waited > 600000 then
    table.insert(lost, member)
    if r[1] then redis.call('HSET', record, 'announced_at', now) end
  end
end
return lost
"""
)
