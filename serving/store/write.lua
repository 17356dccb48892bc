-- Writes one user's events to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, then for each event: id hash, record, stream entry.
-- Returns 1 for each new event and 0 for each duplicate.
local function insert(list, record, cap)
  local head = redis.call('LINDEX', list, 0)
  if not head or newer(record, head) then
    if redis.call('LPUSH', list, record) > cap then redis.call('LTRIM', list, 0, cap - 1) end
    return
  end
  local existing = redis.call('LRANGE', list, 0, -1)
  for _, other in ipairs(existing) do
    if other == record then return end
    if newer(record, other) then
      redis.call('LINSERT', list, 'BEFORE', other, record)
      if #existing >= cap then redis.call('LTRIM', list, 0, cap - 1) end
      return
    end
  end
  if #existing < cap then redis.call('RPUSH', list, record) end
end

local new = {}
for i = 4, #ARGV, 3 do
  local id, record, entry = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('SISMEMBER', KEYS[4], id) == 1 or redis.call('SADD', KEYS[3], id) == 0 then
    new[#new + 1] = 0
  else
    if string.byte(record, 9) == 0 then
      insert(KEYS[2], record, tonumber(ARGV[2]))
    else
      insert(KEYS[1], record, tonumber(ARGV[1]))
    end
    redis.call('XADD', KEYS[5], '*', 'e', entry)
    new[#new + 1] = 1
  end
end
redis.call('EXPIRE', KEYS[3], ARGV[3])
return new
