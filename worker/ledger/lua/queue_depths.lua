-- Count a part of the unfinished jobs by queue. The cost is one read for each of them, however many records there are.
--
-- KEYS  1 pending
-- ARGV  1 how many jobs to skip, in the order of `pending`, 2 most jobs to count
-- Returns {number of jobs counted, JSON of {queue: {queued, running, ms that the oldest queued job has waited}}}.

local members = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)
local queues = {}
for _, member in ipairs(members) do
  local status, queue, queued_at = unpack(redis.call('HMGET', record_of(member), 'status', 'queue', 'queued_at'))
  local found = queues[queue or ''] or {0, 0, 0}
  queues[queue or ''] = found
  if status == 'queued' then
    found[1] = found[1] + 1
    found[3] = math.max(found[3], now - tonumber(queued_at))
  elseif status == 'running' then
    found[2] = found[2] + 1
  end
end
return {#members, cjson.encode(queues)}
