-- Change the notes (name, tags, parent) of an adapter.
--
-- KEYS  1 record
-- ARGV  1... notes
-- Returns 0 if there is no record.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
note(1)
return 1
