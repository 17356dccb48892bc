-- A record is float64 at (8 bytes, little-endian), kind (1), hash of the event id (8), item id: see
-- serving/store/users.py. Newer means greater by (at, kind, item id, hash). Bytes are compared as numbers, because `<`
-- on strings depends on the locale of the server.
local function newer(a, b)
  local at_a, at_b = struct.unpack('<d', a), struct.unpack('<d', b)
  if at_a ~= at_b then return at_a > at_b end
  local kind_a, kind_b = string.byte(a, 9), string.byte(b, 9)
  if kind_a ~= kind_b then return kind_a > kind_b end
  -- The first different byte of the item ids is found by bisection, so that a long shared prefix takes few steps.
  local low, high = 18, math.min(#a, #b) + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if string.sub(a, low, middle) == string.sub(b, low, middle) then low = middle + 1 else high = middle end
  end
  if low <= math.min(#a, #b) then return string.byte(a, low) > string.byte(b, low) end
  if #a ~= #b then return #a > #b end
  for i = 17, 10, -1 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return false
end

-- Inserts records, given oldest first, into a list, newest first, and keeps the first `cap` records of the list. Reads
-- the list at most once, and makes at most one comparison per record of either. Records that the list contains are
-- skipped. Returns the number of records inserted.
local function insert(list, records, cap)
  if #records == 0 then return 0 end
  local head, first = redis.call('LINDEX', list, 0), #records + 1
  while first > 1 and (not head or newer(records[first - 1], head)) do first = first - 1 end
  -- The records from `first` on are newer than all of the list. The others are inserted before them, newest first.
  local front, inserted, length = #records - first + 1, 0, 0
  local last = first > 1 and redis.call('LINDEX', list, cap - 1)
  if first > 1 and not (last and newer(last, records[first - 1])) then
    local existing, place = redis.call('LRANGE', list, 0, cap - 1), 1
    for i = first - 1, 1, -1 do
      local record = records[i]
      while place <= #existing and newer(existing[place], record) do place = place + 1 end
      if front + inserted + place > cap then break end
      if place > #existing then
        length = redis.call('RPUSH', list, record)
        inserted = inserted + 1
      elseif existing[place] ~= record then
        length = redis.call('LINSERT', list, 'BEFORE', existing[place], record)
        inserted = inserted + 1
      end
    end
  end
  if front > 0 then length = redis.call('LPUSH', list, unpack(records, first)) end
  if length > cap then redis.call('LTRIM', list, 0, cap - 1) end
  return front + inserted
end

-- Seconds for which a list is kept after it has expired, so that a late event, within this time, is still inserted into
-- a complete list. Readers skip expired records.
local LATE_S = 86400

-- Whether a user may have lists: always if they have some, otherwise if fewer than `most` users have lists. `users` is a
-- sorted set of user hashes by the time at which their lists are deleted; a few that have passed are removed from it.
local function admit(users, user, lists, most, now)
  if redis.call('ZSCORE', users, user) or redis.call('EXISTS', unpack(lists)) > 0 then return true end
  local gone = redis.call('ZRANGE', users, '-inf', now, 'BYSCORE', 'LIMIT', 0, 10)
  if #gone > 0 then redis.call('ZREM', users, unpack(gone)) end
  return redis.call('ZCARD', users) < most
end

-- Adds records to one list of a user, see `insert`. The list is then kept until `kept_s` + LATE_S after its newest
-- record, and the user is counted until then. now: Unix seconds by the clock of the service, which may differ from that
-- of Redis.
local function extend(list, records, cap, users, user, kept_s, now)
  local inserted = insert(list, records, cap)
  local newest = redis.call('LINDEX', list, 0)
  if newest then
    local left = math.ceil(math.max(struct.unpack('<d', newest) + kept_s - now, 0) + LATE_S)
    redis.call('EXPIRE', list, left)
    redis.call('ZADD', users, 'GT', now + left, user)
  end
  return inserted
end

-- Time up to which the events of a user are refused, false without an erasure. erasures: hash of times of erasures.
-- of_user: hash of the user ID in tombstones.
local function erased_until(erasures, of_user)
  local secret = redis.call('HGET', erasures, '')  -- false while no user was erased
  return secret and tonumber(redis.call('HGET', erasures, redis.sha1hex(secret .. of_user)) or nil)
end

-- Maximum number of merges of a user that are remembered.
local MARKS = 10

-- The marks of the merges of a user; almost none has any.
local function marks_of(key)
  return redis.call('EXISTS', key) == 1 and redis.call('LRANGE', key, 0, -1) or {}
end

-- The mark of the merge that moved an event of a user at a time to another user; nil if none did. A mark is the time of
-- the merge (float64, little-endian) and the ID of the other user.
local function moved_by(marks, at)
  local found, first
  for _, mark in ipairs(marks) do
    local when = struct.unpack('<d', mark)
    if when > at and not (first and when >= first) then found, first = mark, when end
  end
  return found
end
