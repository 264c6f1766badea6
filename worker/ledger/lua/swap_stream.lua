-- Put a merged stream in the place of a stream, with the entries that were added to the old one since the caller read it.
--
-- KEYS  1 stream, 2 merged stream
-- ARGV  1 id of the last entry that the caller read

for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+')) do
  local answer = redis.pcall('XADD', KEYS[2], entry[1], unpack(entry[2]))
  if type(answer) == 'table' then  -- an error: the merged stream has a later entry, of a server whose clock was ahead
    redis.call('XADD', KEYS[2], '*', unpack(entry[2]))
  end
end
redis.call('RENAME', KEYS[2], KEYS[1])
