-- `held`: the claim with the fence ARGV[2] still owns the job. `c`: the record's fence and status.

local c = redis.call('HMGET', KEYS[1], 'fence', 'status')
local held = c[1] == ARGV[2] and c[2] == 'running'
