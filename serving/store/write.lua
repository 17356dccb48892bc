-- Writes some events of one user to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream, users.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, user hash, seconds to keep the lists, maximum number
-- of users, now, then for the n-th event: id hash, record, stream entry, and the number of the event with the n-th
-- oldest record. The id hashes differ.
-- Returns 1 for each new event and 0 for each duplicate; or -1 for every event, and writes none, if the user is new and
-- the maximum number of users have lists.
local user, kept_s, most, now = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ids = {}
for i = 8, #ARGV, 4 do ids[#ids + 1] = ARGV[i] end
local new, unseen = {}, {}
if not admit(KEYS[6], user, {KEYS[1], KEYS[2]}, most, now) then
  for n = 1, #ids do new[n] = -1 end
  return new
end
local current = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local previous = redis.call('SMISMEMBER', KEYS[4], unpack(ids))
for n, id in ipairs(ids) do
  new[n] = 1 - math.max(current[n], previous[n])
  if new[n] == 1 then
    unseen[#unseen + 1] = id
    redis.call('XADD', KEYS[5], '*', 'e', ARGV[4 * n + 6])
  end
end
if #unseen == 0 then return new end
redis.call('SADD', KEYS[3], unpack(unseen))
redis.call('EXPIRE', KEYS[3], ARGV[3])
local engaged, shown = {}, {}
for i = 11, #ARGV, 4 do
  local n = tonumber(ARGV[i])
  if new[n] == 1 then
    local record = ARGV[4 * n + 5]
    local records = string.byte(record, 9) == 0 and shown or engaged
    records[#records + 1] = record
  end
end
if #engaged > 0 then extend(KEYS[1], engaged, tonumber(ARGV[1]), KEYS[6], user, kept_s, now) end
if #shown > 0 then extend(KEYS[2], shown, tonumber(ARGV[2]), KEYS[6], user, kept_s, now) end
return new
