-- Give a worker a lease and a new fence for a job that is queued, or running with an expired lease.
--
-- KEYS  1-5 of every job script (see scripts.py) for the named job, 6 fence
-- ARGV  1 member of the named job, 2 lease_ms, 3 attempts allowed, 4 worker, 5 the queues whose jobs the worker may claim, as JSON
--       {queue: digests of the initializations that the worker has; an empty list allows any},
--       6 the start of the keys of stored initializations, which every worker can load,
--       7 which job: 'named'; 'turn': the named job if it has no turn, because its worker was lost or an earlier version queued it,
--         otherwise the next job in turn, of the named job's queue or else of another; or 'pass': the next job in turn of the named
--         job's queue that waits for its first attempt and has the pass key ARGV[9],
--       8 ids of the encryption keys that the worker has, separated by spaces
-- Returns {'claimed', fence, recipe, ms waited, ttl_ms, attempt, request id, previous fence, member}, {'no_record'},
-- {'not_claimable'} (finished, held by a worker, or not for this worker), or {'attempts_used_up', member}.
--
-- A fence is never below the current time in ms. So after a failover, a new master that never received the latest fences does not
-- reuse them.

local queues = cjson.decode(ARGV[5])
local READ_AT_ONCE = 64  -- of the jobs of one tenant, so that jobs that this worker must leave alone do not make a claim slow

local function is_readable(record)
  local key = string.match(redis.call('HGET', record, 'summary') or '', '^%zsealed:(%x+):')
  return not key or string.find(ARGV[8], key, 1, true) ~= nil
end

local function has_initialization(record, digests)
  if #digests == 0 then return true end
  local wanted = redis.call('HGET', record, 'initialization_digest')
  if not wanted then  -- the record is from an earlier version, the oldest of which wrote no summary
    local summary, recipe = unpack(redis.call('HMGET', record, 'summary', 'recipe'))
    wanted = cjson.decode(summary or recipe).initialization_digest
  end
  for _, digest in ipairs(digests) do if digest == wanted then return true end end
  return redis.call('EXISTS', ARGV[6] .. wanted) == 1
end

local function verdict(member)
  local record = record_of(member)
  local status, lease_until, attempts, queue = unpack(redis.call('HMGET', record, 'status', 'lease_until', 'attempt', 'queue'))
  if not status then return 'no_record' end
  if status ~= 'queued' and not (status == 'running' and tonumber(lease_until) < now) then return 'not_claimable' end
  local digests = queues[queue or '']
  if not digests then return 'not_claimable' end  -- the job needs another base model or precision
  if not is_readable(record) or not has_initialization(record, digests) then return 'not_claimable' end
  return tonumber(attempts) >= tonumber(ARGV[3]) and 'attempts_used_up' or 'claimable'
end

-- Returns the tenant's first job that this worker may claim and its verdict. Removes jobs that no longer wait in this queue.
local function first_job(queue, tenant)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', jobs_of(queue, tenant), '-inf', now, 'LIMIT', 0, READ_AT_ONCE)) do
    local status, its_queue, attempts, pass_key = unpack(redis.call('HMGET', record_of(member), 'status', 'queue', 'attempt', 'kin'))
    if status ~= 'queued' or (its_queue or '') ~= queue then
      wait_no_more(queue, member)
    elseif ARGV[7] ~= 'pass' or (pass_key == ARGV[9] and attempts == '0') then
      local found = verdict(member)
      if found ~= 'not_claimable' then return member, found end
    end
  end
end

local function next_in_turn(queue)
  for _, tenant in ipairs(redis.call('ZRANGE', turns_of(queue), 0, -1)) do
    local member, found = first_job(queue, tenant)
    if member then return member, found end
    local idle = redis.call('EXISTS', jobs_of(queue, tenant)) == 0
    if idle and tonumber(redis.call('ZSCORE', turns_of(queue), tenant)) <= queue_time(queue) then
      redis.call('ZREM', turns_of(queue), tenant)  -- it starts at the queue's virtual time anyway
    end
  end
end

local function choose()
  local member, found = ARGV[1], verdict(ARGV[1])
  local queue = redis.call('HGET', KEYS[1], 'queue') or ''
  if found == 'no_record' then redis.call('ZREM', KEYS[2], ARGV[1]) end
  local free = found == 'claimable' or found == 'attempts_used_up'
  local has_no_turn = free and (redis.call('HGET', KEYS[1], 'status') == 'running' or not waits(queue, member))
  if ARGV[7] == 'named' or (ARGV[7] == 'turn' and has_no_turn) then return queue, member, found, false end
  local order = {queue}
  if ARGV[7] == 'turn' then for other in pairs(queues) do if other ~= queue then table.insert(order, other) end end end
  for _, each in ipairs(order) do
    local next_member, its_verdict = next_in_turn(each)
    if next_member then return each, next_member, its_verdict, ARGV[7] == 'turn' end
  end
  if ARGV[7] == 'pass' then return queue, member, 'not_claimable', false end
  return queue, member, found, false  -- behind more jobs of its tenant than are read, all of them to be left alone
end

local queue, member, found, in_turn = choose()
if found ~= 'claimable' then return {found, member} end
local record = record_of(member)
redis.call('ZREM', KEYS[3], member)
local status, lease_until, heard_at, previous_fence, pass_key =
  unpack(redis.call('HMGET', record, 'status', 'lease_until', 'heard_at', 'fence', 'kin'))
if status == 'running' then  -- the worker that held the job stopped sending heartbeats
  count('lost_workers')
  redis.call('HSETNX', record, 'lost_at', heard_at or lease_until)
end
local fence = string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[6]) or 0) + 1, now))
redis.call('SET', KEYS[6], fence)
wait_no_more(queue, member)
charge(queue, member, in_turn)
if pass_key then redis.call('ZREM', 'qs:waiting:' .. pass_key, member) end  -- earlier versions list the job there
local attempt = redis.call('HINCRBY', record, 'attempt', 1)
redis.call('HSET', record, 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]', 'heard_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), member)
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), member)
count('attempts')
local recipe, queued_at, ttl_ms, request = unpack(redis.call('HMGET', record, 'recipe', 'queued_at', 'ttl_ms', 'request'))
return {'claimed', fence, recipe, now - tonumber(queued_at), ttl_ms, attempt, request or '', previous_fence, member}
