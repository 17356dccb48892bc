-- Adds missing records of the log to one list of a user; existing records are kept. Then adds ids to the ids seen.
-- KEYS: list, ids seen in this period.
-- ARGV: cap of the list, seconds to keep the ids, number of records, then the records, oldest first, then the id hashes
-- of recent events, which may also arrive by write.lua.
-- Returns the number of records added.
local cap, count = tonumber(ARGV[1]), tonumber(ARGV[3])
local added = 0
if count > 0 then
  local known, missing = {}, {}
  for _, record in ipairs(redis.call('LRANGE', KEYS[1], 0, cap - 1)) do known[string.sub(record, 10, 17)] = true end
  for i = 4, 3 + count do
    if not known[string.sub(ARGV[i], 10, 17)] then missing[#missing + 1] = ARGV[i] end
  end
  added = insert(KEYS[1], missing, cap)
end
if #ARGV > 3 + count then
  redis.call('SADD', KEYS[2], unpack(ARGV, 4 + count))
  redis.call('EXPIRE', KEYS[2], ARGV[2])
end
return added
