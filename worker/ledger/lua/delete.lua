-- Delete a record, its examples and the aliases that point at it.
--
-- KEYS  1-5 of every job script (see scripts.py), 6 adapters of the tenant, 7 retire, 8 erase, 9 erase-last, 10 aliases of the
--       adapter, 11 alias targets, 12 alias names
-- ARGV  1 member, 2 adapter id, 3 channel, 4 condition: '' (none), 'dead' (only if the job is dead), or 'over' (only if its time in
--       `qs:retire` has come), 5 context of `audit`
-- Returns the fence, so that the caller can remove the weights stored under it, or nil if there is no record or the condition does
-- not hold. If the condition is '' and aliases point at the adapter, returns these aliases and deletes nothing.
--
-- The audit log gets an entry for the adapter unless the condition is 'over', and one for each alias that is deleted.
--
-- `qs:erase` is the time since which the append-only file has contained deleted text. `qs:erase-last` is the time of the latest
-- deletion.

if ARGV[4] == 'dead' and not redis.call('ZSCORE', KEYS[5], ARGV[1]) then return nil end
if ARGV[4] == 'over' and tonumber(redis.call('ZSCORE', KEYS[7], ARGV[1]) or now + 1) > now then return nil end
local aliases = redis.call('SMEMBERS', KEYS[10])
if ARGV[4] == '' and #aliases > 0 then return aliases end
local fence, pass_key, queue = unpack(redis.call('HMGET', KEYS[1], 'fence', 'kin', 'queue'))
wait_no_more(queue or '', ARGV[1])
if pass_key then redis.call('ZREM', 'qs:waiting:' .. pass_key, ARGV[1]) end  -- earlier versions list the job there
finished()
unweigh(id)
forget_examples()
redis.call('DEL', KEYS[1], KEYS[10])
for _, alias in ipairs(aliases) do
  redis.call('HDEL', KEYS[11], alias)
  redis.call('ZREM', KEYS[12], alias)
  redis.call('DEL', prefix .. ':alias-history:' .. alias)
  audit(ARGV[5], 'alias.removed', alias, {from = id})
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[2])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
if fence then
  redis.call('SETNX', KEYS[8], now)
  redis.call('SET', KEYS[9], now)
  count(ARGV[4] == 'over' and 'retired' or 'deleted')
  if ARGV[4] ~= 'over' then audit(ARGV[5], 'adapter.deleted', id, {}) end
end
return fence
