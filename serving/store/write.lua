-- One user's events into their two lists and the stream: all or nothing, and once only.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the one before, stream.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, then for each event: id hash, record, stream entry.
-- Returns 1 for each event that was new, 0 for each seen before.
local function insert(list, record, cap)
  local head = redis.call('LINDEX', list, 0)
  if not head or newer(record, head) then
    if redis.call('LPUSH', list, record) > cap then redis.call('LTRIM', list, 0, cap - 1) end
    return
  end
  local held = redis.call('LRANGE', list, 0, -1)
  for _, other in ipairs(held) do
    if other == record then return end
    if newer(record, other) then
      redis.call('LINSERT', list, 'BEFORE', other, record)
      if #held >= cap then redis.call('LTRIM', list, 0, cap - 1) end
      return
    end
  end
  if #held < cap then redis.call('RPUSH', list, record) end
end

local fresh = {}
for i = 4, #ARGV, 3 do
  local id, record, entry = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('SISMEMBER', KEYS[4], id) == 1 or redis.call('SADD', KEYS[3], id) == 0 then
    fresh[#fresh + 1] = 0
  else
    if string.byte(record, 9) == 0 then
      insert(KEYS[2], record, tonumber(ARGV[2]))
    else
      insert(KEYS[1], record, tonumber(ARGV[1]))
    end
    redis.call('XADD', KEYS[5], '*', 'e', entry)
    fresh[#fresh + 1] = 1
  end
end
redis.call('EXPIRE', KEYS[3], ARGV[3])
return fresh
