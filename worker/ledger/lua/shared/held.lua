-- `held`: true if the claim with the fence ARGV[2] still holds, so that its worker may change the job.
-- `current`: {fence, status} of the record.

local current = redis.call('HMGET', KEYS[1], 'fence', 'status')
local held = current[1] == ARGV[2] and current[2] == 'running'
