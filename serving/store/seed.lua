-- One user's lists from the log: only what is missing is added, and what is there stays.
-- KEYS: engagements, shown, ids seen in this period.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, how many records are engagements, how many are shown,
-- then those records, newest first, then the id hashes of recent events, which may yet come by the other way too.
-- Returns how many records were added.
local function repair(list, cap, first, count)
  if count == 0 then return 0 end
  local held = redis.call('LRANGE', list, 0, -1)
  if #held == 0 then
    redis.call('RPUSH', list, unpack(ARGV, first, first + count - 1))
    return count
  end
  local known, all = {}, {}
  for i, record in ipairs(held) do
    known[string.sub(record, 10, 17)] = true
    all[i] = record
  end
  for i = first, first + count - 1 do
    if not known[string.sub(ARGV[i], 10, 17)] then all[#all + 1] = ARGV[i] end
  end
  local missing = #all - #held
  if missing > 0 then
    table.sort(all, newer)
    redis.call('DEL', list)
    redis.call('RPUSH', list, unpack(all, 1, math.min(#all, cap)))
  end
  return missing
end

local engaged, shown = tonumber(ARGV[4]), tonumber(ARGV[5])
local added = repair(KEYS[1], tonumber(ARGV[1]), 6, engaged) + repair(KEYS[2], tonumber(ARGV[2]), 6 + engaged, shown)
for i = 6 + engaged + shown, #ARGV do
  redis.call('SADD', KEYS[3], ARGV[i])
end
if #ARGV >= 6 + engaged + shown then redis.call('EXPIRE', KEYS[3], ARGV[3]) end
return added
