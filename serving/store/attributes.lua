-- Writes attributes of one user, and adds them to the stream of writes, atomically.
-- KEYS: attributes, engagements, shown, users, stream, marks of merges.
-- ARGV: user hash, seconds to keep the lists, maximum number of users, now, maximum number of attributes, stream entry
-- (empty: the attributes are those of the log; they get no entry, none that exists is changed, and those of a user who
-- was merged into another one are not added), then names and values.
-- Returns the number of attributes afterwards; -1, and writes nothing, if there would be too many, and -2 if the user is
-- new and the maximum number of users have lists.
if ARGV[6] == '' and redis.call('EXISTS', KEYS[6]) == 1 then return 0 end
local kept_s, now, most = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not admit(KEYS[4], ARGV[1], {KEYS[1], KEYS[2], KEYS[3]}, tonumber(ARGV[3]), now) then return -2 end
local count = redis.call('HLEN', KEYS[1])
local new = {}
for i = 7, #ARGV, 2 do
  local exists = redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1
  if not exists then count = count + 1 end
  if ARGV[6] ~= '' or not exists then
    new[#new + 1] = ARGV[i]
    new[#new + 1] = ARGV[i + 1]
  end
end
if count > most then return -1 end
if #new > 0 then redis.call('HSET', KEYS[1], unpack(new)) end
if ARGV[6] ~= '' then redis.call('XADD', KEYS[5], '*', 'a', ARGV[6]) end
local left = math.ceil(kept_s + LATE_S)
redis.call('EXPIRE', KEYS[1], left)
redis.call('ZADD', KEYS[4], 'GT', now + left, ARGV[1])
return count
