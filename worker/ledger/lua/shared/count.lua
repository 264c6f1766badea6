-- count(what, by): add to a count of `qs:counts`, which /metrics reads. Needs KEYS[4].
local function count(what, by) redis.call('HINCRBY', KEYS[4], what, by or 1) end
