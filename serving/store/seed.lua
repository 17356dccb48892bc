-- Adds missing records of the log to one list of a user; existing records are kept. Then adds ids to the ids seen.
-- Records that a merge moved to another user since are left out.
-- KEYS: list, ids seen in this period, users, engagements, shown, marks of merges.
-- ARGV: cap of the list, seconds to keep the ids, user hash, seconds to keep the list, maximum number of users, now,
-- number of records, then the records, oldest first, then the id hashes of recent events, which may also arrive by
-- write.lua.
-- Returns the number of records added; or -1, and adds nothing, if the user is new and the maximum number of users have
-- lists.
local cap, count, now = tonumber(ARGV[1]), tonumber(ARGV[7]), tonumber(ARGV[6])
if not admit(KEYS[3], ARGV[3], {KEYS[4], KEYS[5]}, tonumber(ARGV[5]), now) then return -1 end
local added = 0
if count > 0 then
  local known, missing, marks = {}, {}, marks_of(KEYS[6])
  for _, record in ipairs(redis.call('LRANGE', KEYS[1], 0, cap - 1)) do known[string.sub(record, 10, 17)] = true end
  for i = 8, 7 + count do
    local is_known = known[string.sub(ARGV[i], 10, 17)] or moved_by(marks, (struct.unpack('<d', ARGV[i])))
    if not is_known then missing[#missing + 1] = ARGV[i] end
  end
  added = extend(KEYS[1], missing, cap, KEYS[3], ARGV[3], tonumber(ARGV[4]), now)
end
if #ARGV > 7 + count then
  redis.call('SADD', KEYS[2], unpack(ARGV, 8 + count))
  redis.call('EXPIRE', KEYS[2], ARGV[2])
end
return added
