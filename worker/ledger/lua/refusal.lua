-- Say whether `accept` would now refuse a job because of a limit. Writes nothing.
--
-- KEYS  1 the record
-- ARGV  1 member, 2 limits as JSON (0: no limit), 3 largest possible size of the weights in bytes, 4 bytes of the recipe,
--       5 idempotency key (see shared/idempotency.lua)
-- Returns {} if not, or if `accept` would first refuse the idempotency key. Otherwise returns {limit, its value, usage now}.

if live() or key_conflict(ARGV[5] ~= '' and cjson.decode(ARGV[5])) then return {} end
return refusal(cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), expired()) or {}
