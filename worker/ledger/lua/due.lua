-- List jobs to be announced again: their lease ran out, they were handed back, or their wake-up was lost. Each one is put off, so
-- that several reapers do not announce the same job. Wake-ups are consumed in order, so a queued job still has its own if that
-- was sent no earlier than the oldest one of its queue.
--
-- KEYS  1 pending, 2... for each queue with a wake-up in it, the record of the wake-up that has waited longest
-- ARGV  1 most, 2 delay in ms before a job is announced again, 3... those queues
-- Returns member, queue, member, queue ...

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
