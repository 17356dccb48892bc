-- Sets fields of a written item, keeps its others, and announces the change; all or nothing.
-- KEYS: the item, ids of written items, changes.
-- ARGV: item id, time, maximum bytes and attributes of an item, maximum changes, then name and value of each field.
-- Returns {}; or {bytes, attributes} that the item would have, and writes nothing, if that is too large. An item that is
-- too large already may get smaller.
local old_bytes, old_attributes = measure(KEYS[1])
local bytes, attributes, content = old_bytes, old_attributes, false
for i = 6, #ARGV, 2 do
  local name, value = ARGV[i], ARGV[i + 1]
  if name ~= 'at' and name ~= 'available' then
    content = true
    bytes = bytes + #value - redis.call('HSTRLEN', KEYS[1], name)
    if redis.call('HEXISTS', KEYS[1], name) == 0 then
      bytes = bytes + #name
      if string.sub(name, 1, 2) == 'a:' then attributes = attributes + 1 end
    end
  end
end
if content and old_bytes < 0 then return {old_bytes, old_attributes} end
if bytes > math.max(old_bytes, tonumber(ARGV[3])) or attributes > math.max(old_attributes, tonumber(ARGV[4])) then
  return {bytes, attributes}
end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'i', ARGV[1], 'w', 'put')
return {}
