-- Moves what one user has before a time to another user, atomically and idempotently: see serving/store/merging.py.
-- KEYS: of `from` its engagements, shown, attributes, marks, users and writes of attributes; and of `into` its
-- engagements, shown, attributes, users, writes of attributes, times of erasures and merges. The steps `take` and
-- `clear` have the first six only, and `join` the last seven.
-- ARGV: step, cap of engagements, cap of shown, time, maximum number of attributes, seconds to keep a mark; of `from`
-- user hash, ID as JSON, seconds to keep the lists; of `into` the same, ID, hash of the ID in tombstones, maximum number
-- of users; entry of the merge; and for `join` the numbers of engagements and impressions taken, these, and names and
-- values of attributes.
-- Returns for `take` the records of both lists, the attributes, and 1 if the merge goes on, else 0; for `all` and `join` the number of events moved, or
-- -2 if the user is new and the maximum number of users have lists, having written nothing.
local step, caps, at = ARGV[1], {tonumber(ARGV[2]), tonumber(ARGV[3])}, tonumber(ARGV[4])
local from = {hash = ARGV[7], json = ARGV[8], kept_s = tonumber(ARGV[9])}
local into = {hash = ARGV[10], json = ARGV[11], kept_s = tonumber(ARGV[12]), id = ARGV[13]}
local first = 1
if step ~= 'join' then
  from.lists, from.attributes, from.marks, from.users, from.writes = {KEYS[1], KEYS[2]}, KEYS[3], KEYS[4], KEYS[5], KEYS[6]
  first = 7
end
if step == 'all' or step == 'join' then
  into.lists, into.attributes, into.users = {KEYS[first], KEYS[first + 1]}, KEYS[first + 2], KEYS[first + 3]
  into.writes, into.erased, into.merges = KEYS[first + 4], KEYS[first + 5], KEYS[first + 6]
end

-- The unexpired records of a list strictly before the time, newest first; the number of its records from the time on;
-- and of all. Expired as in `features.retention.unexpired`.
local function held(list, cap, kept_s)
  local records, kept, newer, after = redis.call('LRANGE', list, 0, cap - 1), {}, 0, at
  for _, record in ipairs(records) do
    local when = struct.unpack('<d', record)
    if when >= at then
      newer = newer + 1
    elseif after - when > kept_s then
      break
    else
      kept[#kept + 1] = record
      after = when
    end
  end
  return kept, newer, #records
end

-- Keeps the first `count` records of a list.
local function cut(list, count)
  if count == 0 then redis.call('UNLINK', list) else redis.call('LTRIM', list, 0, count - 1) end
end

-- Adds a write of attributes to the stream of writes.
local function log_attributes(user, names, values)
  local fields = {}
  for i, name in ipairs(names) do fields[i] = cjson.encode(name) .. ':' .. values[i] end
  local fields_json = '{' .. table.concat(fields, ',') .. '}'
  local entry = '{"user_id":' .. user.json .. ',"at":' .. ARGV[4] .. ',"attributes":' .. fields_json .. '}'
  redis.call('XADD', user.writes, '*', 'a', entry)
end

-- What `from` has: records of both lists, newest first, and names and values of attributes that are not cleared.
local function take()
  local known, all = {}, redis.call('HGETALL', from.attributes)
  for i = 1, #all, 2 do
    if all[i + 1] ~= 'null' then
      known[#known + 1], known[#known + 2] = all[i], all[i + 1]
    end
  end
  return {(held(from.lists[1], caps[1], from.kept_s)), (held(from.lists[2], caps[2], from.kept_s)), known}
end

-- Inserts records into a list of `into`: those after `erased` whose event ID the list lacks. Records of the list that
-- have expired are deleted, so that older events of `from` do not bring them back. Returns the number after `erased`.
local function join_list(list, cap, records, erased)
  local kept, newer, length = held(list, cap, into.kept_s)
  if length > newer + #kept then cut(list, newer + #kept) end
  local known, missing, count = {}, {}, 0
  for _, record in ipairs(redis.call('LRANGE', list, 0, cap - 1)) do known[string.sub(record, 10, 17)] = true end
  for i = #records, 1, -1 do
    if not (erased and struct.unpack('<d', records[i]) <= erased) then
      count = count + 1
      if not known[string.sub(records[i], 10, 17)] then missing[#missing + 1] = records[i] end
    end
  end
  if #missing > 0 then extend(list, missing, cap, into.users, into.hash, into.kept_s, at) end
  return count
end

-- Adds the attributes that `into` lacks, unless it would have too many.
local function join_attributes(taken)
  local names, values, fields = {}, {}, {}
  for i = 1, #taken, 2 do
    if redis.call('HEXISTS', into.attributes, taken[i]) == 0 then
      names[#names + 1], values[#values + 1] = taken[i], taken[i + 1]
      fields[#fields + 1], fields[#fields + 2] = taken[i], taken[i + 1]
    end
  end
  if #names == 0 or redis.call('HLEN', into.attributes) + #names > tonumber(ARGV[5]) then return end
  redis.call('HSET', into.attributes, unpack(fields))
  log_attributes(into, names, values)
end

-- Adds what was taken to `into`. Nothing older than the erasure of `into` comes back; an
-- attribute has no time, so that none is known to be newer.
local function join(engaged, shown, attributes)
  local erased = erased_until(into.erased, ARGV[14])
  local moved = join_list(into.lists[1], caps[1], engaged, erased) + join_list(into.lists[2], caps[2], shown, erased)
  if not erased then join_attributes(attributes) end
  local left = math.ceil(into.kept_s + LATE_S)
  if redis.call('EXPIRE', into.attributes, left) == 1 then redis.call('ZADD', into.users, 'GT', at + left, into.hash) end
  return moved
end

-- Notes where events of `from` before the time belong that arrive later.
local function mark()
  redis.call('LPUSH', from.marks, struct.pack('<d', at) .. into.id)
  redis.call('LTRIM', from.marks, 0, MARKS - 1)
  redis.call('EXPIRE', from.marks, ARGV[6])
end

-- Whether the last merge of `from` was into the same user.
local function is_last()
  local newest = redis.call('LINDEX', from.marks, 0)
  return newest and string.sub(newest, 9) == into.id
end

-- Deletes what `from` has. Events from the time on stay.
local function clear()
  local left = 0
  for i = 1, 2 do
    local _, newer = held(from.lists[i], caps[i], from.kept_s)
    cut(from.lists[i], newer)
    left = left + newer
  end
  local names, nulls = redis.call('HKEYS', from.attributes), {}
  for i = 1, #names do nulls[i] = 'null' end
  if #names > 0 then
    log_attributes(from, names, nulls)
    redis.call('UNLINK', from.attributes)
  end
  if left == 0 then redis.call('ZREM', from.users, from.hash) end
end

-- Whether `into` may have lists. In the place of `from`, it adds none to their number.
local function admitted()
  local most = tonumber(ARGV[15])
  if step == 'all' and redis.call('ZSCORE', from.users, from.hash) then most = most + 1 end
  return admit(into.users, into.hash, {into.lists[1], into.lists[2], into.attributes}, most, at)
end

local taken
if step == 'all' or step == 'take' then
  taken = take()
elseif step == 'join' then
  local engaged, shown = tonumber(ARGV[17]), tonumber(ARGV[18])
  taken = {{}, {}, {}}
  for i = 19, #ARGV do
    local part = taken[i < 19 + engaged and 1 or i < 19 + engaged + shown and 2 or 3]
    part[#part + 1] = ARGV[i]
  end
end
local any, moved = taken and #taken[1] + #taken[2] + #taken[3] > 0, 0
-- A repeated merge that finds nothing changes nothing.
local merges = any or step == 'join' or (taken and not is_last())
if any and step ~= 'take' then
  if not admitted() then return -2 end
  moved = join(taken[1], taken[2], taken[3])
end
if merges and step ~= 'take' then redis.call('XADD', into.merges, '*', 'm', ARGV[16]) end
if merges and step ~= 'join' then mark() end
if step == 'all' or step == 'clear' then clear() end
if step ~= 'take' then return moved end
taken[4] = merges and 1 or 0
return taken
