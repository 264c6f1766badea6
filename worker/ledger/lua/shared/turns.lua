-- Turns: whose job a queue gives out next. This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each tenant has a
-- virtual time at which its next turn starts. The tenant with the earliest one is next; its turn then moves on by the cost of the job.
-- A tenant that had no waiting jobs starts at the queue's virtual time, so that it neither saves up turns nor waits for the jobs that
-- others queued before. Needs `now`.
--
-- tenant_of(member)              the tenant of tenant/adapter_id
-- record_of(member)              the key of a job's record
-- wait(queue, member, since)     add a job to those that wait in the queue; it is given out at time `since` in ms at the earliest
-- waits(queue, member)           true if the job is one of them
-- wait_no_more(queue, member)    remove it
-- charge(queue, member, in_turn) move the turn of the job's tenant by the cost of the job, divided by the tenant's share (`tenants.py`);
--                                `in_turn`: it is the tenant's turn

local function tenant_of(member) return string.sub(member, 1, string.find(member, '/', 1, true) - 1) end
local function record_of(member)
  local tenant = tenant_of(member)
  return 'qs:' .. tenant .. ':adapter:' .. string.sub(member, #tenant + 2)
end
local function turns_of(queue) return 'qs:turns_in:' .. queue end
local function jobs_of(queue, tenant) return 'qs:waiting_in:' .. tenant .. ':' .. queue end
local function queue_time(queue) return tonumber(redis.call('GET', 'qs:turn_time:' .. queue) or 0) end

local function wait(queue, member, since)
  local tenant = tenant_of(member)
  redis.call('ZADD', jobs_of(queue, tenant), since, member)
  redis.call('ZADD', turns_of(queue), 'NX', queue_time(queue), tenant)
end
local function waits(queue, member) return redis.call('ZSCORE', jobs_of(queue, tenant_of(member)), member) ~= false end
local function wait_no_more(queue, member) redis.call('ZREM', jobs_of(queue, tenant_of(member)), member) end
local function share_of(tenant)
  local settings = redis.call('HGET', 'qs:tenants', tenant)
  return settings and cjson.decode(settings).share or 1
end
local function charge(queue, member, in_turn)
  local tenant = tenant_of(member)
  local cost = tonumber(redis.call('HGET', record_of(member), 'cost') or 1) / share_of(tenant)
  local start = math.max(queue_time(queue), tonumber(redis.call('ZSCORE', turns_of(queue), tenant) or 0))
  redis.call('ZADD', turns_of(queue), string.format('%.17g', start + cost), tenant)
  if in_turn then redis.call('SET', 'qs:turn_time:' .. queue, string.format('%.17g', start)) end
end
