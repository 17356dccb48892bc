-- Writes some events of one user to their two lists and the stream, atomically and each event once.
-- KEYS: engagements, shown, ids seen in this period, ids seen in the previous period, stream.
-- ARGV: cap of engagements, cap of shown, seconds to keep the ids, then for each event: id hash, record, stream entry.
-- The events are sorted by record, oldest first, and their id hashes differ.
-- Returns 1 for each new event and 0 for each duplicate.
local ids = {}
for i = 4, #ARGV, 3 do ids[#ids + 1] = ARGV[i] end
local current = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local previous = redis.call('SMISMEMBER', KEYS[4], unpack(ids))
local new, unseen, engaged, shown = {}, {}, {}, {}
for n, id in ipairs(ids) do
  new[n] = 1 - math.max(current[n], previous[n])
  if new[n] == 1 then
    unseen[#unseen + 1] = id
    local record = ARGV[3 * n + 2]
    local records = string.byte(record, 9) == 0 and shown or engaged
    records[#records + 1] = record
    redis.call('XADD', KEYS[5], '*', 'e', ARGV[3 * n + 3])
  end
end
if #unseen > 0 then
  redis.call('SADD', KEYS[3], unpack(unseen))
  redis.call('EXPIRE', KEYS[3], ARGV[3])
  if #engaged > 0 then insert(KEYS[1], engaged, tonumber(ARGV[1])) end
  if #shown > 0 then insert(KEYS[2], shown, tonumber(ARGV[2])) end
end
return new
