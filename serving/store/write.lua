-- Writes some events of one user to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, then for the n-th event: id hash, record, stream
-- entry, and the number of the event with the n-th oldest record. The id hashes differ.
-- Returns 1 for each new event and 0 for each duplicate.
local ids = {}
for i = 4, #ARGV, 4 do ids[#ids + 1] = ARGV[i] end
local current = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local previous = redis.call('SMISMEMBER', KEYS[4], unpack(ids))
local new, unseen = {}, {}
for n, id in ipairs(ids) do
  new[n] = 1 - math.max(current[n], previous[n])
  if new[n] == 1 then
    unseen[#unseen + 1] = id
    redis.call('XADD', KEYS[5], '*', 'e', ARGV[4 * n + 2])
  end
end
if #unseen == 0 then return new end
redis.call('SADD', KEYS[3], unpack(unseen))
redis.call('EXPIRE', KEYS[3], ARGV[3])
local engaged, shown = {}, {}
for i = 7, #ARGV, 4 do
  local n = tonumber(ARGV[i])
  if new[n] == 1 then
    local record = ARGV[4 * n + 1]
    local records = string.byte(record, 9) == 0 and shown or engaged
    records[#records + 1] = record
  end
end
insert(KEYS[1], engaged, tonumber(ARGV[1]))
insert(KEYS[2], shown, tonumber(ARGV[2]))
return new
