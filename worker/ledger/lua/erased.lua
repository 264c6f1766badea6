-- Record that the append-only file was rewritten. The file still contains text that was deleted after the rewrite began.
--
-- KEYS  1 erase, 2 erase-last
-- ARGV  1 the time in ms at which the rewrite began
-- Returns 0 if the file still contains deleted text, else 1.

local last = tonumber(redis.call('GET', KEYS[2]) or 0)
redis.call('DEL', KEYS[1])
if last >= tonumber(ARGV[1]) then redis.call('SET', KEYS[1], last); return 0 end
return 1
