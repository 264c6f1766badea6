-- Delete a record, its examples and the aliases that point at it.
--
-- KEYS  ... 6 index, 7 retire, 8 erase, 9 erase-last, 10 aliases of the adapter, 11 alias targets, 12 alias names
-- ARGV  1 member, 2 adapter id, 3 channel, 4 condition: '' (always), 'dead', or 'over' (its time in `qs:retire` has come)
-- Returns the fence, under which the caller removes the weights; nil if there is no record or the condition does not hold; with
-- the condition '', the aliases that point at the adapter, if any: then nothing is deleted.
--
-- `qs:erase` is the time since when the append-only file holds deleted text, `qs:erase-last` the time of the latest deletion.

if ARGV[4] == 'dead' and not redis.call('ZSCORE', KEYS[5], ARGV[1]) then return nil end
if ARGV[4] == 'over' and tonumber(redis.call('ZSCORE', KEYS[7], ARGV[1]) or now + 1) > now then return nil end
local aliases = redis.call('SMEMBERS', KEYS[10])
if ARGV[4] == '' and #aliases > 0 then return aliases end
local fence, kin = unpack(redis.call('HMGET', KEYS[1], 'fence', 'kin'))
if kin then redis.call('ZREM', 'qs:waiting:' .. kin, ARGV[1]) end
finished()
unweigh(id)
forget_examples()
redis.call('DEL', KEYS[1], KEYS[10])
for _, alias in ipairs(aliases) do
  redis.call('HDEL', KEYS[11], alias)
  redis.call('ZREM', KEYS[12], alias)
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
end
return fence
