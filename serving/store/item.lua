-- Bytes and attributes of a written item. `at` and `available` do not count, so that an item of any size can be
-- withdrawn. The bytes of an item with more than 1000 fields, which this version does not write, are not added up: -1.
local function measure(item)
  local fields = redis.call('HLEN', item)
  if fields > 1000 then return -1, fields end
  local bytes, attributes = 0, 0
  for _, name in ipairs(redis.call('HKEYS', item)) do
    if name ~= 'at' and name ~= 'available' then
      bytes = bytes + #name + redis.call('HSTRLEN', item, name)
      if string.sub(name, 1, 2) == 'a:' then attributes = attributes + 1 end
    end
  end
  return bytes, attributes
end
