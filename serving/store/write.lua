-- Writes some events of one user to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream, users, times of erasures,
-- attributes.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, user hash, seconds to keep the lists, maximum number
-- of users, now, hash of the user ID in tombstones, then for the n-th event: id hash, record, stream entry, and the
-- number of the event with the n-th oldest record. The id hashes differ.
-- Returns for each event 1 if it is new, 0 if it is a duplicate, -1 if it is from before the erasure of the user, and -2
-- if it was refused because the user is new and the maximum number of users have lists.
local user, kept_s, most, now = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ids = {}
for i = 9, #ARGV, 4 do ids[#ids + 1] = ARGV[i] end
local admitted = admit(KEYS[6], user, {KEYS[1], KEYS[2]}, most, now)
local current = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local previous = redis.call('SMISMEMBER', KEYS[4], unpack(ids))
local secret = redis.call('HGET', KEYS[7], '')  -- false while no user was erased
local erased = secret and tonumber(redis.call('HGET', KEYS[7], redis.sha1hex(secret .. ARGV[8])) or nil)
local new, unseen = {}, {}
for n, id in ipairs(ids) do
  new[n] = admitted and 1 - math.max(current[n], previous[n]) or -2
  if erased and struct.unpack('<d', ARGV[4 * n + 6]) <= erased then new[n] = -1 end
  if new[n] == 1 then
    unseen[#unseen + 1] = id
    redis.call('XADD', KEYS[5], '*', 'e', ARGV[4 * n + 7])
  end
end
if #unseen == 0 then return new end
redis.call('EXPIRE', KEYS[8], math.ceil(kept_s + LATE_S), 'GT')
redis.call('SADD', KEYS[3], unpack(unseen))
redis.call('EXPIRE', KEYS[3], ARGV[3])
local engaged, shown = {}, {}
for i = 12, #ARGV, 4 do
  local n = tonumber(ARGV[i])
  if new[n] == 1 then
    local record = ARGV[4 * n + 6]
    local records = string.byte(record, 9) == 0 and shown or engaged
    records[#records + 1] = record
  end
end
if #engaged > 0 then extend(KEYS[1], engaged, tonumber(ARGV[1]), KEYS[6], user, kept_s, now) end
if #shown > 0 then extend(KEYS[2], shown, tonumber(ARGV[2]), KEYS[6], user, kept_s, now) end
return new
