-- `now`: the server's time in ms. `time`: the answer to TIME, {seconds, microseconds}.
local time = redis.call('TIME'); local now = time[1] * 1000 + math.floor(time[2] / 1000)
