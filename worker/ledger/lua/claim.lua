-- Give a worker a lease and a new fence for a job that is queued, or running with an expired lease.
--
-- KEYS  1-5 of every job script (see scripts.py) for the named job, 6 fence
-- ARGV  1 member of the named job, 2 lease_ms, 3 attempts allowed, 4 worker, 5 the queues whose jobs the worker may claim, as JSON
--       {queue: digests of the initializations that the worker has; an empty list allows any},
--       6 the start of the keys of stored initializations, which every worker can load,
--       7 which job: 'named'; 'turn': the named job if it has no turn, because an earlier version queued it, otherwise the next job
--         in turn, of the named job's queue or else of another; or 'pass': the next job in turn of the named job's queue that waits
--         for its first attempt, has the pass key ARGV[9], and is of none of the tenants in ARGV[10],
--       8 ids of the encryption keys that the worker has, separated by spaces, 9 pass key, 10 tenants as a JSON list
-- Returns {'claimed', fence, recipe, ms waited, ttl_ms, attempt, request id, previous fence, member, queue, number of jobs of its
-- tenant that still wait in the queue}, {'no_record'},
-- {'not_claimable'} (finished, held by a worker, or not for this worker), or {'attempts_used_up', member}.
--
-- A fence is never below the current time in ms. So after a failover, a new master that never received the latest fences does not
-- reuse them.

local queues = cjson.decode(ARGV[5])
-- How many waiting jobs are read, of one tenant and in all, so that jobs that this worker must leave alone do not make a claim slow.
local READ_OF_TENANT, READ_AT_MOST = 64, 256
local left_to_read = READ_AT_MOST
local passed_over = {}
for _, tenant in ipairs(cjson.decode(ARGV[10] or '[]')) do passed_over[tenant] = true end

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

-- Returns true for a job that no worker holds: it is queued, or its worker was lost.
local function is_free(status, lease_until)
  return status == 'queued' or (status == 'running' and tonumber(lease_until) < now)
end

local function verdict(member)
  local record = record_of(member)
  local status, lease_until, attempts, queue = unpack(redis.call('HMGET', record, 'status', 'lease_until', 'attempt', 'queue'))
  if not status then return 'no_record' end
  if not is_free(status, lease_until) then return 'not_claimable' end
  local digests = queues[queue or '']
  if not digests then return 'not_claimable' end  -- the job needs another base model or precision
  if not is_readable(record) or not has_initialization(record, digests) then return 'not_claimable' end
  return tonumber(attempts) >= tonumber(ARGV[3]) and 'attempts_used_up' or 'claimable'
end

-- Give the jobs whose worker was lost their place among the waiting jobs of their tenants again.
local function queue_lost_jobs()
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. now, 'LIMIT', 0, READ_AT_MOST)) do
    redis.call('ZREM', KEYS[3], member)
    local status, queue, queued_at = unpack(redis.call('HMGET', record_of(member), 'status', 'queue', 'queued_at'))
    if status == 'running' then wait(queue or '', member, queued_at) end
  end
end

-- Returns a job of this tenant that this worker may claim now, and its verdict. Removes jobs that no longer wait in this queue. If the
-- first jobs have to be left alone, the named job may still be the tenant's.
local function job_of(queue, tenant)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', jobs_of(queue, tenant), '-inf', now, 'LIMIT', 0, READ_OF_TENANT)) do
    left_to_read = left_to_read - 1
    local status, its_queue, attempts, pass_key, lease_until =
      unpack(redis.call('HMGET', record_of(member), 'status', 'queue', 'attempt', 'kin', 'lease_until'))
    if not is_free(status, lease_until) or (its_queue or '') ~= queue then
      wait_no_more(queue, member)
    elseif ARGV[7] ~= 'pass' or (pass_key == ARGV[9] and attempts == '0') then
      local found = verdict(member)
      if found ~= 'not_claimable' then return member, found end
    end
  end
  local since = ARGV[7] == 'turn' and tenant == tenant_of(ARGV[1]) and waits_since(queue, ARGV[1])
  if since and since <= now then
    local found = verdict(ARGV[1])
    if found == 'claimable' or found == 'attempts_used_up' then return ARGV[1], found end
  end
end

local function next_in_turn(queue)
  for _, tenant in ipairs(redis.call('ZRANGE', turns_of(queue), 0, READ_AT_MOST - 1)) do
    if left_to_read <= 0 then return nil end
    if not passed_over[tenant] then
      local member, found = job_of(queue, tenant)
      if member then return member, found end
    end
  end
end

-- Returns the queue of the chosen job, the job, its verdict, and true if it is the turn of its tenant.
local function choose()
  local named, verdict_of_named = ARGV[1], verdict(ARGV[1])
  local queue = redis.call('HGET', KEYS[1], 'queue') or ''
  if verdict_of_named == 'no_record' then redis.call('ZREM', KEYS[2], named) end
  if ARGV[7] == 'named' then return queue, named, verdict_of_named, false end
  if ARGV[7] == 'pass' then
    local member, found = next_in_turn(queue)
    if not member and not passed_over[tenant_of(named)] then
      left_to_read = READ_OF_TENANT
      member, found = job_of(queue, tenant_of(named))  -- its turn may be later than those that were read
    end
    return queue, member or named, found or 'not_claimable', false
  end
  local may_be_taken = verdict_of_named == 'claimable' or verdict_of_named == 'attempts_used_up'
  queue_lost_jobs()
  local since = waits_since(queue, named)
  if may_be_taken and not since then return queue, named, verdict_of_named, false end
  local queue_order = {queue}
  for other in pairs(queues) do if other ~= queue then table.insert(queue_order, other) end end
  for _, each in ipairs(queue_order) do
    local member, found = next_in_turn(each)
    if member then return each, member, found, true end
  end
  if may_be_taken and since <= now then return queue, named, verdict_of_named, true end
  return queue, named, 'not_claimable', false
end

local queue, member, found, is_turn = choose()
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
charge(queue, member, is_turn)
if pass_key then redis.call('ZREM', 'qs:waiting:' .. pass_key, member) end  -- earlier versions list the job there
local attempt = redis.call('HINCRBY', record, 'attempt', 1)
redis.call('HSET', record, 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]', 'heard_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), member)
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), member)
count('attempts')
local recipe, queued_at, ttl_ms, request = unpack(redis.call('HMGET', record, 'recipe', 'queued_at', 'ttl_ms', 'request'))
return {'claimed', fence, recipe, now - tonumber(queued_at), ttl_ms, attempt, request or '', previous_fence, member, queue,
        redis.call('ZCARD', jobs_of(queue, tenant_of(member)))}
