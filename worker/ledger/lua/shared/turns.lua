-- Turns: whose job a queue gives out next. This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Each tenant has a
-- virtual time at which its next turn starts. The tenant with the earliest one is next; its turn then moves on by the cost of the job,
-- divided by the tenant's share (`tenants.py`). The queue's virtual time is the start of the latest turn. A tenant that comes back
-- starts there, or where its own last turn ended if that is later. So it neither saves up turns nor waits for the jobs that others
-- queued before. Once no job waits, the queue's virtual time moves to the latest end of a turn, so that nobody pays later for what it
-- got while nobody else waited. Needs member.lua.
--
-- wait(queue, member, since)        add a job to those that wait in the queue; it is given out at time `since` in ms at the earliest
-- waits_since(queue, member)        the `since` of a waiting job, or nil if it does not wait
-- wait_no_more(queue, member)       remove it
-- charge(queue, member, is_turn)    move the turn of the job's tenant by the job's cost. `is_turn`: it was the tenant's turn

local function turns_of(queue) return 'qs:turns_in:' .. queue end
local function idle_of(queue) return 'qs:turns_idle:' .. queue end
local function jobs_of(queue, tenant) return 'qs:waiting_in:' .. tenant .. ':' .. queue end
local function queue_time(queue) return tonumber(redis.call('GET', 'qs:turn_time:' .. queue) or 0) end
local function number(value) return string.format('%.17g', value) end

local function wait(queue, member, since)
  local tenant = tenant_of(member)
  redis.call('ZADD', jobs_of(queue, tenant), since, member)
  local start = math.max(queue_time(queue), tonumber(redis.call('ZSCORE', idle_of(queue), tenant) or 0))
  redis.call('ZADD', turns_of(queue), 'NX', number(start), tenant)
  redis.call('ZREM', idle_of(queue), tenant)
end
local function waits_since(queue, member)
  return tonumber(redis.call('ZSCORE', jobs_of(queue, tenant_of(member)), member) or nil)
end
local function wait_no_more(queue, member)
  local tenant = tenant_of(member)
  redis.call('ZREM', jobs_of(queue, tenant), member)
  local start = redis.call('ZSCORE', turns_of(queue), tenant)
  if start and redis.call('EXISTS', jobs_of(queue, tenant)) == 0 then
    redis.call('ZREM', turns_of(queue), tenant)
    redis.call('ZADD', idle_of(queue), start, tenant)
  end
end
local function share_of(tenant)
  local settings = redis.call('HGET', 'qs:tenants', tenant)
  return settings and cjson.decode(settings).share or 1
end
local function charge(queue, member, is_turn)
  local tenant, time = tenant_of(member), queue_time(queue)
  local cost = tonumber(redis.call('HGET', record_of(member), 'cost') or 1) or 1
  if not (cost >= 1) then cost = 1 end  -- also if it is not a number
  local turns = redis.call('ZSCORE', turns_of(queue), tenant) and turns_of(queue) or idle_of(queue)
  local start = math.max(time, tonumber(redis.call('ZSCORE', turns, tenant) or 0))
  redis.call('ZADD', turns, number(start + math.min(cost, 1e12) / share_of(tenant)), tenant)
  if is_turn then time = start end
  if redis.call('EXISTS', turns_of(queue)) == 0 then
    local latest = redis.call('ZREVRANGE', idle_of(queue), 0, 0, 'WITHSCORES')
    time = math.max(time, tonumber(latest[2] or 0))
  end
  redis.call('ZREMRANGEBYSCORE', idle_of(queue), '-inf', number(time))  -- these tenants start at the queue's time anyway
  redis.call('SET', 'qs:turn_time:' .. queue, number(time))
end
