-- note(from): write the notes that start at ARGV[from] as field, value, field, value ... An empty value removes the note.

local function note(from)
  for i = from, #ARGV, 2 do
    if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i]) else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  end
end
