-- Writes some events of one user to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream, users, times of erasures,
-- attributes, marks of merges.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, user hash, seconds to keep the lists, maximum number
-- of users, now, hash of the user ID in tombstones, time from which the events are the user's, then for the n-th event:
-- id hash, record, stream entry, and the number of the event with the n-th oldest record. The id hashes differ.
-- Returns for each event 1 if it is new, 0 if it is a duplicate, -1 if it is from before the erasure of the user, -2 if
-- it was refused because the user is new and the maximum number of users have lists, and the mark of a merge if it
-- belongs to another user since that merge: it is not written here.
local user, kept_s, most, now = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ids = {}
for i = 10, #ARGV, 4 do ids[#ids + 1] = ARGV[i] end
local admitted = admit(KEYS[6], user, {KEYS[1], KEYS[2]}, most, now)
local current = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local previous = redis.call('SMISMEMBER', KEYS[4], unpack(ids))
local erased = erased_until(KEYS[7], ARGV[8])
local marks, since = marks_of(KEYS[9]), tonumber(ARGV[9])
local new, unseen = {}, {}
for n, id in ipairs(ids) do
  local seen, at = math.max(current[n], previous[n]), struct.unpack('<d', ARGV[4 * n + 7])
  new[n] = admitted and 1 - seen or -2
  if seen == 0 then new[n] = moved_by(marks, math.max(at, since)) or new[n] end
  if erased and at <= erased then new[n] = -1 end
  if new[n] == 1 then
    unseen[#unseen + 1] = id
    redis.call('XADD', KEYS[5], '*', 'e', ARGV[4 * n + 8])
  end
end
if #unseen == 0 then return new end
redis.call('EXPIRE', KEYS[8], math.ceil(kept_s + LATE_S), 'GT')
redis.call('SADD', KEYS[3], unpack(unseen))
redis.call('EXPIRE', KEYS[3], ARGV[3])
local engaged, shown = {}, {}
for i = 13, #ARGV, 4 do
  local n = tonumber(ARGV[i])
  if new[n] == 1 then
    local record = ARGV[4 * n + 7]
    local records = string.byte(record, 9) == 0 and shown or engaged
    records[#records + 1] = record
  end
end
if #engaged > 0 then extend(KEYS[1], engaged, tonumber(ARGV[1]), KEYS[6], user, kept_s, now) end
if #shown > 0 then extend(KEYS[2], shown, tonumber(ARGV[2]), KEYS[6], user, kept_s, now) end
return new
