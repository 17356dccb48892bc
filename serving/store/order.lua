-- A record is float64 at (8 bytes, little-endian), kind (1), hash of the event id (8), item id: see
-- serving/store/users.py. Newer means greater by (at, kind, item id, hash). Bytes are compared one by one, because `<`
-- on strings depends on the locale of the server.
local function newer(a, b)
  local at_a, at_b = struct.unpack('<d', a), struct.unpack('<d', b)
  if at_a ~= at_b then return at_a > at_b end
  local kind_a, kind_b = string.byte(a, 9), string.byte(b, 9)
  if kind_a ~= kind_b then return kind_a > kind_b end
  for i = 18, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  if #a ~= #b then return #a > #b end
  for i = 17, 10, -1 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return false
end
