-- note(first): write the notes (name, tags, parent) from ARGV[first...] into the record. These arguments are field, value, field,
-- value ... An empty value removes the note.

local function note(first)
  for i = first, #ARGV, 2 do
    if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i]) else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  end
end
