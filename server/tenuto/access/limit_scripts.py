"""What Redis runs to count limits, each script whole: nobody comes between its lines.

A window is a hash from seconds to what was spent in them, each of which counts for a minute from
its end on. Places are members of a sorted set, whose scores are the seconds in which they end. A
limit of 0 does not limit.
"""

LEASE_S = 30

NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""

_WINDOW = """
local function milliseconds(seconds)
  return math.ceil(seconds * 1000)
end

-- What counts, when nothing of it will, and when it will be below the limit: in milliseconds.
local function window(key, limit)
  if limit == 0 then
    return 0, 0, 0
  end
  local total, newest, buckets = 0, now - 60, {}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local second, amount = tonumber(fields[i]), tonumber(fields[i + 1])
    if second <= now - 60 then
      redis.call('HDEL', key, fields[i])
    else
      total = total + amount
      newest = math.max(newest, second)
      buckets[#buckets + 1] = {second, amount}
    end
  end
  local over, below = total - limit, now - 60
  if over >= 0 then
    table.sort(buckets, function(a, b) return a[1] < b[1] end)
    for _, bucket in ipairs(buckets) do
      over = over - bucket[2]
      if over < 0 then
        below = bucket[1]
        break
      end
    end
  end
  return total, milliseconds(newest + 60 - now), milliseconds(below + 60 - now)
end
"""

_SPEND = """
local function spend(key, amount)
  redis.call('HINCRBY', key, math.ceil(now), amount)
  redis.call('EXPIRE', key, 61)
end
"""

_MONTH = """
-- At least what the caller knows of: nothing is known to a Redis that has lost its memory.
local function in_month(key, known, tokens)
  local before = tonumber(redis.call('GET', key) or 0)
  local spent = math.max(before, known) + tokens
  if spent ~= before then
    redis.call('SET', key, string.format('%.0f', spent), 'EX', 40 * 86400)
  end
  return spent
end
"""

_HOLD = f"""
local function hold(key, place)
  redis.call('ZADD', key, string.format('%.6f', now + {LEASE_S}), place)
  redis.call('EXPIRE', key, {LEASE_S})
end
"""

# KEYS: requests, tokens, places, month. ARGV: the limits of each, the request's place, the month's
# known tokens. What it answers was before this request; Python comes to the same verdict from it.
ADMIT = (
    NOW
    + _WINDOW
    + _SPEND
    + _MONTH
    + _HOLD
    + """
local limits = {}
for i = 1, 4 do
  limits[i] = tonumber(ARGV[i])
end
local requests, requests_end, requests_below = window(KEYS[1], limits[1])
local tokens, tokens_end, tokens_below = window(KEYS[2], limits[2])
local running, month = 0, 0
if limits[3] > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  running = redis.call('ZCARD', KEYS[3])
end
if limits[4] > 0 then
  month = in_month(KEYS[4], tonumber(ARGV[6]), 0)
end
local is_free = true
for i, spent in ipairs({requests, tokens, running, month}) do
  is_free = is_free and (limits[i] == 0 or spent < limits[i])
end
if is_free and limits[1] > 0 then
  spend(KEYS[1], 1)
end
if is_free and limits[3] > 0 then
  hold(KEYS[3], ARGV[5])
end
return {requests, requests_end, requests_below, tokens, tokens_end, tokens_below, running, month}
"""
)

# KEYS: tokens, places, month. ARGV: the tokens, 1 where they count by the minute, 1 where they
# count by the month, its known tokens without these, and the place that is given back or "".
SPEND = (
    NOW
    + _SPEND
    + _MONTH
    + """
local tokens = tonumber(ARGV[1])
if ARGV[2] == '1' and tokens > 0 then
  spend(KEYS[1], tokens)
end
if ARGV[3] == '1' and tokens > 0 then
  in_month(KEYS[3], tonumber(ARGV[4]), tokens)
end
if ARGV[5] ~= '' then
  redis.call('ZREM', KEYS[2], ARGV[5])
end
"""
)

# KEYS: places. ARGV: how many are still held, these, and others that were given back.
RENEW = (
    NOW
    + _HOLD
    + """
for i = 2, #ARGV do
  if i - 1 <= tonumber(ARGV[1]) then
    hold(KEYS[1], ARGV[i])
  else
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
"""
)
