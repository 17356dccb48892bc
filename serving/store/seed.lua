-- Adds missing records of the log to one user's lists; existing records are kept.
-- KEYS: engagements, shown, ids seen in this period.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, number of engagement records, number of shown
-- records, then those records, newest first, then the id hashes of recent events, which may also arrive by write.lua.
-- Returns the number of records added.
local function merge(list, cap, first, count)
  if count == 0 then return 0 end
  local existing = redis.call('LRANGE', list, 0, -1)
  if #existing == 0 then
    redis.call('RPUSH', list, unpack(ARGV, first, first + count - 1))
    return count
  end
  local known, all = {}, {}
  for i, record in ipairs(existing) do
    known[string.sub(record, 10, 17)] = true
    all[i] = record
  end
  for i = first, first + count - 1 do
    if not known[string.sub(ARGV[i], 10, 17)] then all[#all + 1] = ARGV[i] end
  end
  local missing = #all - #existing
  if missing > 0 then
    table.sort(all, newer)
    redis.call('DEL', list)
    redis.call('RPUSH', list, unpack(all, 1, math.min(#all, cap)))
  end
  return missing
end

local engaged, shown = tonumber(ARGV[4]), tonumber(ARGV[5])
local added = merge(KEYS[1], tonumber(ARGV[1]), 6, engaged) + merge(KEYS[2], tonumber(ARGV[2]), 6 + engaged, shown)
for i = 6 + engaged + shown, #ARGV do
  redis.call('SADD', KEYS[3], ARGV[i])
end
if #ARGV >= 6 + engaged + shown then redis.call('EXPIRE', KEYS[3], ARGV[3]) end
return added
