-- Point an alias at the latest usable adapter of its history, and remove the entries up to that one. An adapter that was deleted,
-- has failed or has expired is not usable.
--
-- The current target does not enter the history, so calling this again goes further back.
--
-- KEYS  1 alias targets, 2 history of the alias
-- ARGV  1 alias, 2 prefix of the keys `aliases-of`, 3 prefix of the keys of records, 4 context of `audit`
-- Returns {verdict, current target, previous target}. The verdict is 'set', 'unknown' (there is no such alias) or 'none' (no
-- adapter of the history is usable; nothing changes but the history, which is then empty).

local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored then return {'unknown', '', ''} end
local current = string.match(stored, '^%w+')
while true do
  local entry = redis.call('LPOP', KEYS[2])
  if not entry then return {'none', current, current} end
  local target = string.match(entry, '^%w+')
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local status, expires_at, pinned = unpack(redis.call('HMGET', ARGV[3] .. target, 'status', 'expires_at', 'pinned'))
  if target ~= current and status and status ~= 'failed' and (pinned == '1' or tonumber(expires_at) > now) then
    redis.call('SREM', ARGV[2] .. current, ARGV[1])
    redis.call('HSET', KEYS[1], ARGV[1], target .. ' ' .. string.format('%.0f', now))
    redis.call('SADD', ARGV[2] .. target, ARGV[1])
    audit(ARGV[4], 'alias.rolled_back', ARGV[1], {from = current, to = target})
    return {'set', target, current}
  end
end
