-- Writes some events of one user to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream, times of erasures.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, hash of the user ID, then for the n-th event: id hash,
-- record, stream entry, and the number of the event with the n-th oldest record. The id hashes differ.
-- Returns 1 for each new event, 0 for each duplicate and -1 for each event from before the erasure of the user.
local ids = {}
for i = 5, #ARGV, 4 do ids[#ids + 1] = ARGV[i] end
local current = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local previous = redis.call('SMISMEMBER', KEYS[4], unpack(ids))
local secret = redis.call('HGET', KEYS[6], '')  -- false while no user was erased
local erased = secret and tonumber(redis.call('HGET', KEYS[6], redis.sha1hex(secret .. ARGV[4])) or nil)
local new, unseen = {}, {}
for n, id in ipairs(ids) do
  new[n] = 1 - math.max(current[n], previous[n])
  if erased and struct.unpack('<d', ARGV[4 * n + 2]) <= erased then new[n] = -1 end
  if new[n] == 1 then
    unseen[#unseen + 1] = id
    redis.call('XADD', KEYS[5], '*', 'e', ARGV[4 * n + 3])
  end
end
if #unseen == 0 then return new end
redis.call('SADD', KEYS[3], unpack(unseen))
redis.call('EXPIRE', KEYS[3], ARGV[3])
local engaged, shown = {}, {}
for i = 8, #ARGV, 4 do
  local n = tonumber(ARGV[i])
  if new[n] == 1 then
    local record = ARGV[4 * n + 2]
    local records = string.byte(record, 9) == 0 and shown or engaged
    records[#records + 1] = record
  end
end
insert(KEYS[1], engaged, tonumber(ARGV[1]))
insert(KEYS[2], shown, tonumber(ARGV[2]))
return new
