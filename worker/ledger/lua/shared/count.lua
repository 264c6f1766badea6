-- count(name, amount): add `amount` (default 1) to a count in `qs:counts`, which /metrics reads. Needs KEYS[4].
local function count(name, amount) redis.call('HINCRBY', KEYS[4], name, amount or 1) end
