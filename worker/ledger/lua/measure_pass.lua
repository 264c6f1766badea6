-- Add the time that a worker took for each job of a pass to the moving average of the queue.
--
-- KEYS  1 average times of jobs, by queue
-- ARGV  1 queue, 2 ms for each job, 3 weight of this pass, between 0 and 1

local average, measured = tonumber(redis.call('HGET', KEYS[1], ARGV[1])), tonumber(ARGV[2])
if average then measured = average + tonumber(ARGV[3]) * (measured - average) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.3f', measured))
