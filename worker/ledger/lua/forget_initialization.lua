-- Delete an initialization that was set aside. The first write is a removal, which a server that is out of memory accepts.
--
-- KEYS  1 the initialization that was set aside
-- ARGV  1 digest, 2 context of `audit`

redis.call('DEL', KEYS[1])
audit(ARGV[2], 'initialization.forgotten', ARGV[1], {})
