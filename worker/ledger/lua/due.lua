-- List the jobs to announce again: their lease expired, they were handed back, or their wake-up was lost. The next check of every
-- checked job is postponed, so that several reapers do not announce the same job. Workers consume the wake-ups of a queue in order.
-- So the wake-up of a queued job is still in its queue if it was sent no earlier than the oldest wake-up there. A job that was handed
-- back with a delay gets back its place among its tenant's jobs.
--
-- KEYS  1 pending, 2... one per non-empty queue: the record of the job that the oldest wake-up in the queue names
-- ARGV  1 most jobs to check, 2 delay in ms before the next check of a job, 3... the queues of KEYS 2..., in the same order
-- Returns member, queue, member, queue ...

local due, lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]), {}
local oldest_sent_at = {}
for i = 2, #KEYS do
  local announced_at, queued_at = unpack(redis.call('HMGET', KEYS[i], 'announced_at', 'queued_at'))
  oldest_sent_at[ARGV[i + 1]] = tonumber(announced_at or queued_at or 0)
end
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), member)
  local record = record_of(member)
  local r = redis.call('HMGET', record, 'status', 'last_error', 'announced_at', 'queued_at', 'queue')
  local status, last_error, sent_at, queue = r[1], r[2], tonumber(r[3] or r[4] or 0), r[5] or ''
  if status == 'queued' and last_error and waits_since(queue, member) then wait(queue, member, r[4]) end
  if status ~= 'queued' or last_error or sent_at < (oldest_sent_at[queue] or math.huge) then
    table.insert(lost, member)
    table.insert(lost, queue)
    if status then redis.call('HSET', record, 'announced_at', now) end
  end
end
return lost
