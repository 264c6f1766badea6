"""The atomic steps of a job's life, as Lua that runs inside the records' Redis: a reader never sees half of one. Torch-free.

KEYS[1] is the record, KEYS[2] `qs:pending` (unfinished jobs by when the reaper should look at them), KEYS[3] `qs:running`
(claimed jobs by the end of their lease), KEYS[4] `qs:counts` (what has happened so far, for `/metrics`), KEYS[5] `qs:dead` (jobs
that used up their attempts, by when); what else a script touches follows. `qs:waiting:KIN` has the jobs of a kin that wait for a
first attempt, by since when. ARGV[1] is the member, `tenant/adapter_id`.

What a tenant has is counted in the same steps, under keys that begin as its records' do: `…:unfinished`, its unfinished jobs;
`…:weighed`, adapters whose weights are counted, by when they expire (never, while they are pinned or made), each with its size in
`bytes` of the record; `…:usage`, sums, among them of the records' `example_bytes`. What is in no set, or has no such field, gives
nothing back, so nothing is counted twice.

A server without memory refuses a script's first write if that could need some, and none after it: so all but ACCEPT begin with a
removal, and jobs can end, wait or be deleted there.
"""

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_COUNT = "local function count(what, by) redis.call('HINCRBY', KEYS[4], what, by or 1) end\n"
_HELD = """
local c = redis.call('HMGET', KEYS[1], 'fence', 'status')
local held = c[1] == ARGV[2] and c[2] == 'running'
"""

# ARGV from a number on are notes: field, value, field, value …; an empty value takes the note away.
_NOTE = """
local function note(from)
  for i = from, #ARGV, 2 do
    if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i]) else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  end
end
"""

_TENANT = """
local slash = string.find(ARGV[1], '/', 1, true)
local own, id = 'qs:' .. string.sub(ARGV[1], 1, slash - 1), string.sub(ARGV[1], slash + 1)
local function size_of(which) return tonumber(redis.call('HGET', own .. ':adapter:' .. which, 'bytes') or 0) end
local function unweigh(which)
  local size = size_of(which)
  if redis.call('ZREM', own .. ':weighed', which) == 1 then redis.call('HINCRBY', own .. ':usage', 'bytes', -size) end
end
local function weigh(size, expires)
  unweigh(id)
  redis.call('HSET', KEYS[1], 'bytes', size)
  redis.call('HINCRBY', own .. ':usage', 'bytes', size)
  redis.call('ZADD', own .. ':weighed', expires, id)
end
local function forget_examples()
  local size = redis.call('HGET', KEYS[1], 'example_bytes')
  if size then redis.call('HINCRBY', own .. ':usage', 'example_bytes', -size) end
end
local function expired() return redis.call('ZRANGEBYSCORE', own .. ':weighed', '-inf', now, 'LIMIT', 0, 1000) end
local function finished() redis.call('SREM', own .. ':unfinished', id) end
local function unfinished() redis.call('SADD', own .. ':unfinished', id) end
"""

# KEYS … index, sequence, retire, queues. ARGV member, id, ttl_ms, recipe, truncated, wake_ms, retention_ms, request id, kin, queue,
# limits as JSON (0: none), most bytes that the weights will have, what is shown of the recipe, notes. The fence stays: under it
# there may be weights to remove. What is there already is not new: nothing limits it. Returns 1 or 0, status; or -1, the limit, the
# most it allows, what is used, where nothing was done.
ACCEPT = (
    _NOW
    + _COUNT
    + _NOTE
    + _TENANT
    + """
local old = redis.call('HMGET', KEYS[1], 'status', 'expires_at', 'pinned', 'created_at', 'fence', 'example_bytes')
local status, pinned = old[1], old[3] == '1'
local expire_at = now + tonumber(ARGV[3])
local live = status == 'queued' or status == 'running' or (status == 'ready' and (pinned or tonumber(old[2]) > now))
if not live then
  local over, freed = expired(), 0
  for _, which in ipairs(over) do freed = freed + size_of(which) end
  local limits, size, more = cjson.decode(ARGV[11]), tonumber(ARGV[12]), redis.call('ZSCORE', KEYS[6], ARGV[2]) and 0 or 1
  local sums = redis.call('HMGET', own .. ':usage', 'bytes', 'example_bytes')
  local bytes, examples = tonumber(sums[1] or 0) - freed, tonumber(sums[2] or 0)
  for _, each in ipairs({{'MAX_ADAPTERS', redis.call('ZCARD', KEYS[6]), more}, {'MAX_ADAPTER_BYTES', bytes, size},
                         {'MAX_EXAMPLE_BYTES', examples, #ARGV[4] - tonumber(old[6] or 0)},
                         {'MAX_JOBS', redis.call('SCARD', own .. ':unfinished'), 1}}) do
    local most = limits[each[1]] or 0
    if most > 0 and each[3] > 0 and each[2] + each[3] > most then
      for _, which in ipairs(over) do unweigh(which) end  -- there may be more of them, for who comes next
      return {-1, each[1], most, each[2]}
    end
  end
  count('accepted')  -- the first write: refused where memory is short
  local kept = redis.call('HMGET', KEYS[1], 'name', 'tags', 'parent')
  for _, which in ipairs(over) do unweigh(which) end
  unweigh(id)
  forget_examples()
  redis.call('DEL', KEYS[1])
  redis.call('HINCRBY', own .. ':usage', 'example_bytes', #ARGV[4])
  redis.call('HSET', KEYS[1], 'example_bytes', #ARGV[4], 'summary', ARGV[13])
  redis.call('HSET', KEYS[1], 'status', 'queued', 'recipe', ARGV[4], 'truncated', ARGV[5], 'created_at', old[4] or now,
             'queued_at', now, 'attempt', 0, 'fence', old[5] or 0, 'lease_until', 0, 'pinned', old[3] or 0, 'request', ARGV[8],
             'kin', ARGV[9], 'queue', ARGV[10])
  redis.call('SADD', KEYS[9], ARGV[10])
  redis.call('ZADD', 'qs:waiting:' .. ARGV[9], now, ARGV[1])
  for i, field in ipairs({'name', 'tags', 'parent'}) do
    if kept[i] then redis.call('HSET', KEYS[1], field, kept[i]) end
  end
  if not redis.call('ZSCORE', KEYS[6], ARGV[2]) then redis.call('ZADD', KEYS[6], redis.call('INCR', KEYS[7]), ARGV[2]) end
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[6]), ARGV[1])
  redis.call('ZREM', KEYS[5], ARGV[1])
  weigh(size, '+inf')
  unfinished()
  redis.call('HINCRBY', own .. ':usage', 'adaptations', 1)
  status = 'queued'
end
redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[3], 'expires_at', expire_at)
note(14)
if status == 'ready' and not pinned then redis.call('ZADD', own .. ':weighed', 'XX', expire_at, id) end
if not pinned then redis.call('ZADD', KEYS[8], expire_at + tonumber(ARGV[7]), ARGV[1]) end
return {live and 0 or 1, status}
"""
)

# KEYS … fence. ARGV member, lease_ms, attempt cap, worker, the queues that the worker takes jobs of as JSON: for each the digests
# of the initializations that it may take, any where there are none. A job of a base model that the worker lacks is left alone. A
# fence is never below the time in ms, so that a new master, which may not know the last ones that its predecessor gave out, gives
# out none of them again.
CLAIM = (
    _NOW
    + _COUNT
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'attempt', 'heard_at', 'fence', 'queue', 'kin')
if not r[1] then redis.call('ZREM', KEYS[2], ARGV[1]); return {'gone'} end
if r[1] ~= 'queued' and not (r[1] == 'running' and tonumber(r[2]) < now) then return {'taken'} end
local digests = cjson.decode(ARGV[5])[r[6] or '']
if not digests then return {'taken'} end  -- it is for workers of another base model or precision
if #digests > 0 then
  local wanted, has = cjson.decode(redis.call('HGET', KEYS[1], 'recipe')).initialization_digest, false
  for _, digest in ipairs(digests) do has = has or digest == wanted end
  if not has then return {'taken'} end
end
if tonumber(r[3]) >= tonumber(ARGV[3]) then return {'capped'} end
redis.call('ZREM', KEYS[3], ARGV[1])
if r[1] == 'running' then  -- its worker fell silent
  count('lost_workers')
  redis.call('HSETNX', KEYS[1], 'lost_at', r[4] or r[2])
end
local fence = string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[6]) or 0) + 1, now))
redis.call('SET', KEYS[6], fence)
if r[7] then redis.call('ZREM', 'qs:waiting:' .. r[7], ARGV[1]) end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]', 'heard_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
count('attempts')
local f = redis.call('HMGET', KEYS[1], 'recipe', 'queued_at', 'ttl_ms', 'request')
return {'claimed', fence, f[1], now - tonumber(f[2]), f[3], attempt, f[4] or '', r[5]}
"""
)

# ARGV member, fence, lease_ms, support_loss ('' leaves it).
HEARTBEAT = (
    _NOW
    + _COUNT
    + _HELD
    + """
if not held then count('overtaken'); return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[1], 'lease_until', now + tonumber(ARGV[3]), 'heard_at', now)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'support_loss', ARGV[4]) end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)

# ARGV member, fence, channel, recovery bounds in ms as JSON, digest ('': none), bytes of the weights, field, value, field,
# value … Ends the job. Returns its TTL in ms and whether it is pinned, as they are now; nil where the claim does not hold. Said
# twice, it is done once.
COMMIT = (
    _NOW
    + _COUNT
    + _TENANT
    + _HELD
    + """
local r = redis.call('HMGET', KEYS[1], 'digest', 'ttl_ms', 'pinned', 'expires_at')
local same = (c[2] == 'ready' and r[1] == ARGV[5]) or (c[2] == 'failed' and ARGV[5] == '')
if c[1] == ARGV[2] and same then return {r[2], r[3] or '0'} end
if not held then count('refused_commits'); return nil end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
finished()
if ARGV[5] == '' then unweigh(id) else weigh(tonumber(ARGV[6]), r[3] == '1' and '+inf' or r[4]) end
for i = 7, #ARGV, 2 do
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
redis.call('PUBLISH', ARGV[3], ARGV[1])
return {r[2], r[3] or '0'}
"""
)

# ARGV member, fence, delay_ms, reason, '1' where it counts as an attempt. The job waits again, for any worker.
HAND_BACK = (
    _NOW
    + _COUNT
    + _HELD
    + """
if not held then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[5] ~= '1' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('HSET', KEYS[1], 'status', 'queued', 'lease_until', 0, 'last_error', ARGV[4])
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
count('handed_back')
return 1
"""
)

# ARGV member, channel, reason, attempt cap. Ends a job whose attempts are used up, unless somebody holds it.
GIVE_UP = (
    _NOW
    + _COUNT
    + _TENANT
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'last_error', 'attempt')
local free = r[1] == 'queued' or (r[1] == 'running' and tonumber(r[2]) < now)
if free and tonumber(r[4]) >= tonumber(ARGV[4]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  finished()
  unweigh(id)
  if r[1] == 'running' then count('lost_workers') end
  local why = ARGV[3]
  if r[1] == 'queued' and r[3] then why = why .. '; the last one ended with: ' .. r[3] end
  redis.call('HSET', KEYS[1], 'status', 'failed', 'error', why)
  redis.call('HDEL', KEYS[1], 'lost_at', 'readapting', 'last_error')
  redis.call('ZADD', KEYS[5], now, ARGV[1])
  count('failed'); count('dead')
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
"""
)

# KEYS … index, retire, erase, erase-last, aliases that point at it, targets, names (see `worker.ledger.aliases`). ARGV member, id,
# channel, only if it is 'dead' or 'over' (its time in `qs:retire` has come; '': always). Returns the fence, whose weights the
# caller removes; nil: unknown, or not so; with '', the aliases that point at it where there are any. `qs:erase` says since when
# the append-only file holds text that was deleted, `qs:erase-last` when the last of it was.
DELETE = (
    _NOW
    + _COUNT
    + _TENANT
    + """
if ARGV[4] == 'dead' and not redis.call('ZSCORE', KEYS[5], ARGV[1]) then return nil end
if ARGV[4] == 'over' and tonumber(redis.call('ZSCORE', KEYS[7], ARGV[1]) or now + 1) > now then return nil end
local aliases = redis.call('SMEMBERS', KEYS[10])
if ARGV[4] == '' and #aliases > 0 then return aliases end
local fence, kin = unpack(redis.call('HMGET', KEYS[1], 'fence', 'kin'))
if kin then redis.call('ZREM', 'qs:waiting:' .. kin, ARGV[1]) end
finished()
unweigh(id)
forget_examples()
redis.call('DEL', KEYS[1], KEYS[10])
for _, alias in ipairs(aliases) do
  redis.call('HDEL', KEYS[11], alias)
  redis.call('ZREM', KEYS[12], alias)
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[2])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
if fence then
  redis.call('SETNX', KEYS[8], now)
  redis.call('SET', KEYS[9], now)
  count(ARGV[4] == 'over' and 'retired' or 'deleted')
end
return fence
"""
)

# ARGV member, fence, wake_ms, what is counted, queue (for a record from before there were several). A ready job whose weights are
# gone starts again, if it is still that very one. They count on meanwhile.
REQUEUE = (
    _NOW
    + _COUNT
    + _TENANT
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'fence')
if r[1] ~= 'ready' or r[2] ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'announced_at')
local kin = redis.call('HGET', KEYS[1], 'kin')
if kin then redis.call('ZADD', 'qs:waiting:' .. kin, now, ARGV[1]) end
if redis.call('HSETNX', KEYS[1], 'queue', ARGV[5]) == 1 then redis.call('SADD', 'qs:queues', ARGV[5]) end
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'readapting', 1)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
weigh(size_of(id), '+inf')
unfinished()
count('recomputed'); count(ARGV[4])
return 1
"""
)

# KEYS … retire. ARGV member, retention_ms. A dead job waits again with all its attempts and its TTL anew, to be announced at once;
# 0 where it is not dead.
REVIVE = (
    _NOW
    + _COUNT
    + _TENANT
    + """
if redis.call('ZREM', KEYS[5], ARGV[1]) == 0 then return 0 end
local over = now + tonumber(redis.call('HGET', KEYS[1], 'ttl_ms'))
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'announced_at', 0,
           'expires_at', over)
redis.call('HDEL', KEYS[1], 'error')
redis.call('ZADD', KEYS[2], now, ARGV[1])
weigh(size_of(id), '+inf')
unfinished()
if redis.call('HGET', KEYS[1], 'pinned') ~= '1' then redis.call('ZADD', KEYS[6], over + tonumber(ARGV[2]), ARGV[1]) end
count('revived')
return 1
"""
)

# KEYS … retire. ARGV member, '1' or '0', retention_ms. Pinned, an adapter does not expire; unpinned, its TTL starts anew. One that
# has expired stays so: its bytes are given back. Returns the TTL in ms; -1: expired; nil: unknown.
PIN = (
    _NOW
    + _TENANT
    + """
local r = redis.call('HMGET', KEYS[1], 'ttl_ms', 'status', 'pinned', 'expires_at')
local ttl, ready = r[1], r[2] == 'ready'
if not ttl then return nil end
if ready and r[3] ~= '1' and tonumber(r[4]) <= now then return -1 end
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('HSET', KEYS[1], 'pinned', ARGV[2], 'expires_at', now + tonumber(ttl))
if ARGV[2] ~= '1' then redis.call('ZADD', KEYS[6], now + tonumber(ttl) + tonumber(ARGV[3]), ARGV[1]) end
if ready then weigh(size_of(id), ARGV[2] == '1' and '+inf' or now + tonumber(ttl)) end
return ttl
"""
)

# ARGV notes. 0: unknown.
ANNOTATE = (
    _NOTE
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
note(1)
return 1
"""
)

# ARGV the tenant and a slash. Gives back what has expired, up to a thousand adapters of it a call. Returns what `usage.Used`
# has, in its order.
USED = (
    _NOW
    + _TENANT
    + """
for _, which in ipairs(expired()) do unweigh(which) end
local sums = redis.call('HMGET', own .. ':usage', 'bytes', 'example_bytes', 'adaptations', 'predictions')
local requests = redis.call('GET', own .. ':requests:' .. math.floor(t[1] / 60))
return {redis.call('ZCARD', own .. ':adapters'), redis.call('HLEN', own .. ':alias-targets'), tonumber(sums[1] or 0),
        tonumber(sums[2] or 0), redis.call('SCARD', own .. ':unfinished'), tonumber(requests or 0), tonumber(sums[3] or 0),
        tonumber(sums[4] or 0)}
"""
)

# KEYS workers by the end of their announcement, descriptions. ARGV name, description, ms that it holds. Those that fell silent go.
ANNOUNCE = (
    _NOW
    + """
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
"""
)

# KEYS erase, erase-last. ARGV when the file was begun that is there now. What was deleted later is still in it.
ERASED = """
local last = tonumber(redis.call('GET', KEYS[2]) or 0)
redis.call('DEL', KEYS[1])
if last >= tonumber(ARGV[1]) then redis.call('SET', KEYS[1], last); return 0 end
return 1
"""

# KEYS pending, then for each queue in which a wake-up waits the record whose has waited longest. ARGV most, wake_ms, those queues.
# Members that are due and their queues, one after the other, put off so that several reapers do not announce the same ones.
# Wake-ups are taken in order, so a queued job still has its own if that was sent no earlier than the oldest of its queue.
DUE = (
    _NOW
    + """
local due, lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]), {}
local since = {}
for i = 2, #KEYS do
  local o = redis.call('HMGET', KEYS[i], 'announced_at', 'queued_at')
  since[ARGV[i + 1]] = tonumber(o[1] or o[2] or 0)
end
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), member)
  local slash = string.find(member, '/', 1, true)
  local record = 'qs:' .. string.sub(member, 1, slash - 1) .. ':adapter:' .. string.sub(member, slash + 1)
  local r = redis.call('HMGET', record, 'status', 'last_error', 'announced_at', 'queued_at', 'queue')
  if r[1] ~= 'queued' or r[2] or tonumber(r[3] or r[4] or 0) < (since[r[5] or ''] or math.huge) then
    table.insert(lost, member)
    table.insert(lost, r[5] or '')
    if r[1] then redis.call('HSET', record, 'announced_at', now) end
  end
end
return lost
"""
)
