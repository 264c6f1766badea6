-- Store when API keys were last used, unless a later use is stored. Several services do so for the same keys.
--
-- KEYS  1 uses of keys
-- ARGV  1 field for the time since which uses are recorded, 2... id, ms since its last use, id, ms ...

redis.call('HSETNX', KEYS[1], ARGV[1], string.format('%.0f', now))
for i = 2, #ARGV, 2 do
  local used = now - tonumber(ARGV[i + 1])
  if used > tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0) then
    redis.call('HSET', KEYS[1], ARGV[i], string.format('%.0f', used))
  end
end
