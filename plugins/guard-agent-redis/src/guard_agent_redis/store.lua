-- Every change of the store but the plain XADD, each atomic. The data model is described in
-- store.py. Called as
--
--   EVALSHA sha 1 <base>meta <operation> <most dead letters> <most bytes of them> <argument> ...
--
-- with all keys made from the one that is given: they share its hash tag, so they lie in one slot.
--
-- Servers refuse a script that begins to write with a command that may need memory while they have
-- none left, but let it go on once it has written. So what makes room comes first: a full server
-- can still be drained.

local META = KEYS[1]
local BASE = string.sub(META, 1, -5)
local OPERATION = ARGV[1]
local MAX_DEAD, MAX_DEAD_BYTES = tonumber(ARGV[2]), tonumber(ARGV[3])

local VERSION = '1'
local ROW = 15 -- bytes of one record in the head of an entry: see codec.py
local LETTER = 18 -- bytes of the head of a dead letter, which begins with a row
local JUNK = 'not an entry of this store, or of a newer version'
local HORIZON = 30 * 24 * 3600 * 1000 -- ms; see `due`
local ZERO = '0-0'
local SHARE = 8 -- LEASE_SHARE of guard_agent
local STEP = 1000 -- most arguments of one command: Lua's stack has room for about 8,000
local WORTH = 64 * 1024 -- payload bytes of a batch from which on others are leased with it
local GULP = 256 * 1024 -- bytes of entries that are read at once to look for something

local call = redis.call

local function stream(priority) return BASE .. 'records:' .. priority end
local function states(destination) return BASE .. 'state:' .. destination end
local function dead(destination) return BASE .. 'dead:' .. destination end

-- The server's clock, which stands still for the script.
local asked
local function milliseconds()
  if not asked then
    local now = call('TIME')
    asked = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
  end
  return asked
end

-- A write that is done whether or not there is memory left.
local function insist(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    call('HDEL', META, '') -- changes nothing, but is a write that needs no memory: see above
    return call(...)
  end
  return reply
end

-- `before` .. words .. `after`, in steps that fit the stack.
local function call_many(before, words, after, with)
  for first = 1, #words, STEP do
    local command = {unpack(before)}
    for i = first, math.min(first + STEP - 1, #words) do command[#command + 1] = words[i] end
    for _, word in ipairs(after or {}) do command[#command + 1] = word end
    (with or call)(unpack(command))
  end
end

local function get_many(key, fields)
  local found = {}
  for first = 1, #fields, STEP do
    local last = math.min(first + STEP - 1, #fields)
    local values = call('HMGET', key, unpack(fields, first, last))
    for i = 1, #values do found[first + i - 1] = values[i] end
  end
  return found
end

-- --- ids of stream entries: two decimal numbers of up to 64 bits, more than a Lua number holds ---

local function smaller(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end

local function before(a, b)
  local a_time, a_number = string.match(a, '^(%d+)-(%d+)$')
  local b_time, b_number = string.match(b, '^(%d+)-(%d+)$')
  if a_time ~= b_time then return smaller(a_time, b_time) end
  return smaller(a_number, b_number)
end

-- An id before `id` with no more than the entries of one millisecond between them.
local function some_time_before(id)
  local time = string.match(id, '^(%d+)')
  if time == '0' or #time > 15 then return ZERO end
  return string.format('%.0f', tonumber(time) - 1) .. '-18446744073709551615'
end

-- --- the books: one hash, read at the start and written back at the end --------------------------

local meta, changed = {}, {}

local function load_meta()
  local flat = call('HGETALL', META)
  for i = 1, #flat, 2 do meta[flat[i]] = flat[i + 1] end
end

local function number(field) return tonumber(meta[field] or 0) end

local function put(field, value)
  meta[field] = value
  changed[field] = true
end

local function add(field, amount)
  if amount ~= 0 then put(field, number(field) + amount) end
end

local function save(with)
  local flat = {}
  for field in pairs(changed) do
    flat[#flat + 1] = field
    local value = meta[field]
    -- Lua's own way to write a number loses digits of a large one.
    flat[#flat + 1] = type(value) == 'number' and string.format('%.0f', value) or value
  end
  for first = 1, #flat, STEP do
    (with or call)('HSET', META, unpack(flat, first, math.min(first + STEP - 1, #flat)))
  end
end

-- Per destination and priority: up to which id everything was looked at ('cursor': nothing ready,
-- 'seen': taken at least in part, 'low': nothing pending).
local function mark(name, destination, priority)
  return meta[name .. ':' .. priority .. ':' .. destination] or ZERO
end

local function set_mark(name, destination, priority, id)
  local field = name .. ':' .. priority .. ':' .. destination
  if meta[field] ~= id then put(field, id) end
end

local function destinations()
  local names = {}
  for field in pairs(meta) do
    local name = string.match(field, '^destination:(.*)$')
    if name then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

load_meta()
if OPERATION ~= 'open' and not meta.epoch then
  return redis.error_reply('RESET the store is gone from the server')
end
local NAMES = destinations()

-- For the operations of one destination; another process may have built the store without it.
local function is_unknown(destination) return not meta['destination:' .. destination] end

local UNKNOWN = redis.error_reply('RESET the destination is not known to the store')

-- --- entries -------------------------------------------------------------------------------------

-- Where the records of an entry lie; false when its parts do not fit together.
local function measure(entry)
  entry.sizes, entry.ends = {}, {[0] = 0}
  local position, size = 0, 0
  for i = 1, entry.n do
    local payload, id = struct.unpack('<I4I2', entry.h, (i - 1) * ROW + 1)
    if payload == 0 then return false end
    position, size = position + payload + id, size + payload
    entry.sizes[i], entry.ends[i] = payload, position
  end
  return position == #entry.b and size == entry.s
end

-- How many entries to read so that about `bytes` come, when they are like these; at most `most`.
local function how_many(items, bytes, most)
  local size = 0
  for _, item in ipairs(items) do
    for _, word in ipairs(item[2]) do size = size + #word end
  end
  return math.max(math.min(math.ceil(bytes * #items / math.max(size, 1)), most), 1)
end

-- The entry of a stream as a table; nil when it is not one of ours.
local function parse(priority, item)
  local fields = {}
  for i = 1, #item[2] - 1, 2 do fields[item[2][i]] = item[2][i + 1] end
  local n, s = tonumber(fields.n), tonumber(fields.s)
  local h, b = fields.h, fields.b
  if fields.v ~= VERSION or not n or not s or not h or not b then return nil end
  if n < 1 or n > 65535 or n % 1 ~= 0 or #h ~= n * ROW then return nil end
  local entry = {priority = priority, id = item[1], n = n, s = s, h = h, b = b}
  return measure(entry) and entry or nil
end

-- Count what was added with a plain XADD. Whoever walks a stream does it, in order and before
-- anything of it can be settled.
local function absorb(priority, id, entry)
  local field = 'counted:' .. priority
  if before(meta[field] or ZERO, id) then
    put(field, id)
    if entry then
      add('appended:n', entry.n)
      add('appended:b', entry.s)
    end
  end
end

local function absorb_all()
  -- Single records come with a plain XADD; but with new books everything is counted anew.
  local count, more = number('appended:n') > 0 and 64 or 1, true
  while more do
    local found = call('XREAD', 'COUNT', count, 'STREAMS', stream(3), stream(2), stream(1),
      stream(0), meta['counted:3'] or ZERO, meta['counted:2'] or ZERO, meta['counted:1'] or ZERO,
      meta['counted:0'] or ZERO)
    more = false
    local next_count = 64
    for _, part in ipairs(found or {}) do
      local priority = tonumber(string.sub(part[1], -1))
      for _, item in ipairs(part[2]) do absorb(priority, item[1], parse(priority, item)) end
      more = more or #part[2] == count
      next_count = math.min(next_count, how_many(part[2], GULP, 64))
    end
    count = next_count
  end
end

local function held()
  return number('appended:n') - number('freed:n'), number('appended:b') - number('freed:b')
end

-- --- what a destination still wants of an entry --------------------------------------------------
--
-- slots[position] = {lease = '' or the lease that holds it, till = ms}; nil when it is settled.
-- Packed as a flat array of runs: first, last, lease, till, first, last, ...

local READY = {lease = '', till = 0}

local function whole(n)
  local slots = {}
  for position = 1, n do slots[position] = READY end
  return {slots = slots, top = n}
end

local function decode(raw)
  local runs, slots, top = cmsgpack.unpack(raw), {}, 0
  for i = 1, #runs, 4 do
    local run = {lease = runs[i + 2], till = runs[i + 3]}
    for position = runs[i], runs[i + 1] do slots[position] = run end
    top = runs[i + 1]
  end
  return {slots = slots, top = top}
end

-- The packed runs, and when the first of the leases among them ends (nil: there is none).
local function encode(state)
  local runs, till, last = {}, nil, nil
  for position = 1, state.top do
    local slot = state.slots[position]
    if slot and last and slot.lease == last.lease and slot.till == last.till then
      runs[#runs - 2] = position
    elseif slot then
      local size = #runs
      runs[size + 1], runs[size + 2], runs[size + 3], runs[size + 4] =
        position, position, slot.lease, slot.till
      if slot.lease ~= '' and (not till or slot.till < till) then till = slot.till end
    end
    last = slot
  end
  return runs, till
end

-- What is written at the end, gathered so that one command serves many entries.
local pending = {sets = {}, drops = {}, acks = {}, claims = {}, deletes = {}}

local function gather(where, one, two, value)
  where[one] = where[one] or {}
  where[one][two] = where[one][two] or {}
  table.insert(where[one][two], value)
end

-- The entry leaves the store.
local function delete(priority, id)
  pending.deletes[priority] = pending.deletes[priority] or {}
  table.insert(pending.deletes[priority], id)
  for _, name in ipairs(NAMES) do
    gather(pending.acks, name, priority, id)
    gather(pending.drops, name, 1, priority .. ':' .. id)
  end
end

-- Note how `destination` stands to an entry that stays. With `claim` the group's list of pending
-- entries learns when the first lease on it ends.
local function note(destination, priority, id, state, claim)
  local runs, till = encode(state)
  local field = priority .. ':' .. id
  if #runs == 0 and not before(mark('seen', destination, priority), id) then
    gather(pending.drops, destination, 1, field)
  else
    -- Empty for an entry not reached yet: without it the entry would count as untouched.
    gather(pending.sets, destination, 1, field)
    gather(pending.sets, destination, 1, cmsgpack.pack(runs))
  end
  if not till then
    gather(pending.acks, destination, priority, id)
  elseif claim then
    pending.claims[destination] = pending.claims[destination] or {}
    gather(pending.claims[destination], priority, till, id)
  end
end

-- A group sorts out by idle time, which knows no future. An entry whose lease ends at `till` is
-- given the time of last delivery at which it becomes HORIZON old exactly then.
local function due(till) return string.format('%.0f', till - HORIZON) end

local function flush(consumer)
  for name, parts in pairs(pending.acks) do
    for priority, ids in pairs(parts) do call_many({'XACK', stream(priority), name}, ids) end
  end
  for priority, ids in pairs(pending.deletes) do call_many({'XDEL', stream(priority)}, ids) end
  for name, parts in pairs(pending.claims) do
    for priority, times in pairs(parts) do
      for till, ids in pairs(times) do
        -- What XREADGROUP does, but with a time of our own and for the entries we choose; a
        -- server tells its replicas of an XREADGROUP in these very words.
        call_many({'XCLAIM', stream(priority), name, consumer, 0}, ids,
          {'TIME', due(till), 'FORCE', 'JUSTID', 'LASTID', ids[#ids]})
      end
    end
  end
  for name, parts in pairs(pending.drops) do call_many({'HDEL', states(name)}, parts[1]) end
  for name, parts in pairs(pending.sets) do call_many({'HSET', states(name)}, parts[1], {}, insist) end
  pending = {sets = {}, drops = {}, acks = {}, claims = {}, deletes = {}}
end

local function letter_size(letter) return (struct.unpack('<I4', letter)) end

-- Add dead letters; the oldest make room.
local function keep_letters(destination, letters)
  if #letters == 0 then return end
  local key, n, b = dead(destination), 'dead:n:' .. destination, 'dead:b:' .. destination
  call_many({'RPUSH', key}, letters)
  add(n, #letters)
  for _, letter in ipairs(letters) do add(b, letter_size(letter)) end
  while number(n) > MAX_DEAD or number(b) > MAX_DEAD_BYTES do
    local oldest = call('LPOP', key)
    if not oldest then
      put(n, 0)
      put(b, 0)
      return
    end
    add(n, -1)
    add(b, -letter_size(oldest))
  end
end

-- Something in a stream that is no entry of ours: a dead letter with what can be said about it.
local function bury_junk(priority, item)
  local text = {}
  for _, word in ipairs(item[2]) do text[#text + 1] = string.sub(word, 1, 256) end
  local junk = string.gsub(string.sub(table.concat(text, ' '), 1, 1024), '[^\32-\126]', '?')
  local payload = cjson.encode({junk = junk})
  call('XDEL', stream(priority), item[1])
  for _, name in ipairs(NAMES) do
    call('XACK', stream(priority), name, item[1])
    keep_letters(name, {
      struct.pack('<I4I2BdBI2', #payload, #item[1], 0, milliseconds() / 1000, priority, #JUNK)
        .. item[1] .. JUNK .. payload
    })
  end
  add('junk', 1)
end

-- --- operations ----------------------------------------------------------------------------------

local operations = {}

-- Forget a destination nobody asks for any more, with the records only it still wanted.
local function drop(gone)
  local rest = {}
  for _, name in ipairs(NAMES) do
    if name ~= gone then rest[#rest + 1] = name end
  end
  absorb_all()
  for priority = 0, 3 do
    local from, count = '-', 1
    while true do
      local items = call('XRANGE', stream(priority), from, '+', 'COUNT', count)
      if #items == 0 then break end
      from, count = '(' .. items[#items][1], how_many(items, GULP, 64)
      for _, item in ipairs(items) do
        local entry, field = parse(priority, item), priority .. ':' .. item[1]
        local wanted, left = {}, false
        for _, name in ipairs(NAMES) do
          local raw = call('HGET', states(name), field)
          local fresh = before(mark('seen', name, priority), item[1])
          local state = entry and (raw and decode(raw) or fresh and whole(entry.n))
          wanted[name] = state and state.slots or {}
        end
        for position = 1, entry and entry.n or 0 do
          local kept = false
          for _, name in ipairs(rest) do kept = kept or wanted[name][position] end
          left = left or kept
          if wanted[gone][position] and not kept then
            add('freed:n', 1)
            add('freed:b', entry.sizes[position])
          end
        end
        if entry and not left then delete(priority, item[1]) end
      end
    end
    call('XGROUP', 'DESTROY', stream(priority), gone)
  end
  call('DEL', states(gone), dead(gone))
  local fields = {}
  for field in pairs(meta) do
    if string.sub(field, -#gone - 1) == ':' .. gone then fields[#fields + 1] = field end
  end
  for _, field in ipairs(fields) do
    -- Another name may end like this one.
    local kind = string.sub(field, 1, -#gone - 2)
    if kind == 'destination' or kind == 'leased' or kind == 'elsewhere' or string.match(kind, '^done:[nb]$')
      or string.match(kind, '^dead:[nb]$') or string.match(kind, '^%a+:%d$') then
      meta[field], changed[field] = nil, nil
      call('HDEL', META, field)
    end
  end
  NAMES = rest
end

-- stale consumers (ms), stale destinations (ms), destination ...
-- → epoch, whether the store was built anew
function operations.open(stale_consumers, stale_destinations, ...)
  local now, mine, anew = milliseconds(), {...}, not meta.epoch
  local groups = {}
  for priority = 0, 3 do
    groups[priority] = {}
    if call('EXISTS', stream(priority)) == 1 then
      for _, flat in ipairs(call('XINFO', 'GROUPS', stream(priority))) do
        groups[priority][flat[2]] = true
      end
    end
  end
  local known, new = {}, {}
  for _, name in ipairs(NAMES) do
    known[name] = true
    for priority = 0, 3 do
      -- A stream went, with its groups: what the books say about it is no longer true.
      if not groups[priority][name] then anew = true end
    end
  end
  for _, name in ipairs(mine) do
    if not known[name] then
      known[name] = true
      new[#new + 1] = name
    end
  end

  if anew then
    -- What is in the streams is ready for everybody; the dead letters stay.
    local old = meta
    meta, changed = {}, {}
    call('DEL', META)
    put('epoch', math.max(now, tonumber(old.epoch or 0) + 1))
    for name in pairs(known) do
      put('destination:' .. name, old['destination:' .. name] or now)
      call('DEL', states(name))
      for _, letter in ipairs(call('LRANGE', dead(name), 0, -1)) do
        add('dead:n:' .. name, 1)
        add('dead:b:' .. name, letter_size(letter))
      end
    end
  elseif #new > 0 then
    -- A destination that came later gets what comes from now on.
    absorb_all()
    for _, name in ipairs(new) do
      put('done:n:' .. name, number('appended:n'))
      put('done:b:' .. name, number('appended:b'))
      for priority = 0, 3 do
        local last = meta['counted:' .. priority] or ZERO
        set_mark('cursor', name, priority, last)
        set_mark('seen', name, priority, last)
        set_mark('low', name, priority, last)
      end
    end
  end
  for _, name in ipairs(mine) do put('destination:' .. name, now) end

  for name in pairs(known) do
    for priority = 0, 3 do
      if anew and groups[priority][name] then
        call('XGROUP', 'DESTROY', stream(priority), name)
        groups[priority][name] = nil
      end
      if not groups[priority][name] then
        call('XGROUP', 'CREATE', stream(priority), name, mark('seen', name, priority), 'MKSTREAM')
      else
        for _, flat in ipairs(call('XINFO', 'CONSUMERS', stream(priority), name)) do
          local found = {}
          for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
          if found.pending == 0 and found.idle > tonumber(stale_consumers) then
            call('XGROUP', 'DELCONSUMER', stream(priority), name, found.name)
          end
        end
      end
    end
  end

  NAMES = destinations()
  for _, name in ipairs(destinations()) do
    if now - number('destination:' .. name) > tonumber(stale_destinations) then drop(name) end
  end
  flush()
  return {meta.epoch, anew and 1 or 0}
end

-- Say that a consumer is there. When nobody has said so for long the server was away, and the
-- others get the time to say so again, before they are taken for dead.
local function renew(consumer, presence)
  local now = milliseconds()
  if now - number('heard') > presence * 2 / 3 then
    for field in pairs(meta) do
      if string.match(field, '^alive:') then put(field, now + presence) end
    end
  end
  put('heard', now)
  put('alive:' .. consumer, now + presence)
end

local function forget_consumer(consumer)
  local field = 'alive:' .. consumer
  meta[field], changed[field] = nil, nil
  call('HDEL', META, field)
end

-- consumer, for how long this holds (ms)
function operations.present(consumer, presence)
  call('HDEL', META, '') -- for a server without memory: see above
  renew(consumer, tonumber(presence))
  return 1
end

-- consumer → how many destinations it left. What it still holds stays, until the lease is over.
function operations.leave(consumer)
  local left = 0
  forget_consumer(consumer)
  for _, name in ipairs(NAMES) do
    for priority = 0, 3 do
      local ok, held = pcall(call, 'XPENDING', stream(priority), name, '-', '+', 1, consumer)
      if ok and #held == 0 then
        left = left + call('XGROUP', 'DELCONSUMER', stream(priority), name, consumer)
      end
    end
  end
  return left
end

-- token, evict, most records, most bytes, priority of each record, {priority, n, s, h, b} ...
-- → stored, records held, bytes held, [{priority, id} ...], [{destination, evicted} ...]
function operations.append(token, evict, max_n, max_b, order, ...)
  evict, max_n, max_b = evict == '1', tonumber(max_n), tonumber(max_b)
  local words, chunks, size = {...}, {}, 0
  for i = 1, #words, 5 do
    local chunk = {
      priority = tonumber(words[i]), n = tonumber(words[i + 1]), s = tonumber(words[i + 2]),
      h = words[i + 3], b = words[i + 4],
    }
    chunks[#chunks + 1] = chunk
    size = size + chunk.s
  end

  local added = {}
  local function insert(chunk)
    local id = call('XADD', stream(chunk.priority), '*',
      'v', VERSION, 'n', chunk.n, 's', chunk.s, 'h', chunk.h, 'b', chunk.b, 't', token)
    absorb(chunk.priority, id, chunk)
    added[#added + 1] = chunk.priority
    added[#added + 1] = id
  end

  absorb_all()
  local held_n, held_b = held()
  if held_n + #order <= max_n and held_b + size <= max_b then
    for _, chunk in ipairs(chunks) do insert(chunk) end
    held_n, held_b = held()
    return {#order, held_n, held_b, added, {}}
  end

  -- Record by record, in the order in which they came.
  local fresh = {[0] = {}, [1] = {}, [2] = {}, [3] = {}} -- the newcomers that are in, by priority
  local queue = {[0] = {}, [1] = {}, [2] = {}, [3] = {}} -- the newcomers to come, by priority
  for _, chunk in ipairs(chunks) do
    measure(chunk)
    for position = 1, chunk.n do
      table.insert(queue[chunk.priority], {chunk = chunk, position = position,
        size = chunk.sizes[position]})
    end
    chunk.kept = {}
  end

  -- What can be evicted, by priority, the oldest first: read as far as it is needed.
  local sources = {}
  for priority = 0, 3 do
    sources[priority] =
      {first = 1, last = 0, victims = {}, n = 0, b = 0, from = '-', count = 1, dry = false}
  end

  local function offer(source, victim)
    source.last = source.last + 1
    source.victims[source.last] = victim
    source.n, source.b = source.n + 1, source.b + victim.size
  end

  local function offer_entry(source, entry, views)
    for position = 1, entry.n do
      local wanted, leased = false, false
      for _, name in ipairs(NAMES) do
        local slot = views[name] and views[name].slots[position]
        wanted = wanted or slot
        leased = leased or (slot and slot.lease ~= '')
      end
      if wanted and not leased then
        offer(source, {entry = entry, views = views, position = position,
          size = entry.sizes[position]})
      end
    end
  end

  local function read_on(priority)
    local source = sources[priority]
    local count = source.count
    local items = call('XRANGE', stream(priority), source.from, '+', 'COUNT', count)
    local fields = {}
    for i, item in ipairs(items) do fields[i] = priority .. ':' .. item[1] end
    local raw = {}
    if #items > 0 then
      for _, name in ipairs(NAMES) do raw[name] = get_many(states(name), fields) end
      source.from = '(' .. items[#items][1]
      source.count = how_many(items, GULP, 8)
    end
    for i, item in ipairs(items) do
      local entry = parse(priority, item)
      if entry then
        local views = {}
        for _, name in ipairs(NAMES) do
          if raw[name][i] then
            views[name] = decode(raw[name][i])
          elseif before(mark('seen', name, priority), item[1]) then
            views[name] = whole(entry.n)
          end
        end
        offer_entry(source, entry, views)
      end
    end
    if #items < count then
      source.dry = true
      for _, newcomer in ipairs(fresh[priority]) do offer(source, newcomer) end
    end
  end

  local evicted, dirty = {}, {}
  local function count_evicted(name) evicted[name] = (evicted[name] or 0) + 1 end

  local function give_up(victim)
    held_n, held_b = held_n - 1, held_b - victim.size
    if victim.chunk then
      victim.chunk.kept[victim.position] = nil
      for _, name in ipairs(NAMES) do count_evicted(name) end
      return
    end
    for name, view in pairs(victim.views) do
      if view.slots[victim.position] then
        view.slots[victim.position] = nil
        count_evicted(name)
        add('done:n:' .. name, 1)
        add('done:b:' .. name, victim.size)
      end
    end
    add('freed:n', 1)
    add('freed:b', victim.size)
    if not victim.entry.dirty then
      victim.entry.dirty = true
      dirty[#dirty + 1] = victim
    end
  end

  -- Evict for a newcomer; when that cannot make enough room, evict nothing.
  local function make_room(priority, bytes)
    if bytes > max_b then return false end
    local need_n, need_b = held_n + 1 - max_n, held_b + bytes - max_b
    local found_n, found_b, enough = 0, 0, false
    for lower = 0, priority do
      local source = sources[lower]
      while not source.dry and (found_n + source.n < need_n or found_b + source.b < need_b) do
        read_on(lower)
      end
      found_n, found_b = found_n + source.n, found_b + source.b
      if found_n >= need_n and found_b >= need_b then
        enough = true
        break
      end
    end
    if not enough then return false end
    for lower = 0, priority do
      local source = sources[lower]
      while source.n > 0 and (need_n > 0 or need_b > 0) do
        local victim = source.victims[source.first]
        source.victims[source.first] = nil
        source.first = source.first + 1
        source.n, source.b = source.n - 1, source.b - victim.size
        need_n, need_b = need_n - 1, need_b - victim.size
        give_up(victim)
      end
    end
    return true
  end

  local stored, turn = 0, {[0] = 0, [1] = 0, [2] = 0, [3] = 0}
  for i = 1, #order do
    local priority = string.byte(order, i) - 48
    turn[priority] = turn[priority] + 1
    local newcomer = queue[priority][turn[priority]]
    local fits = held_n + 1 <= max_n and held_b + newcomer.size <= max_b
    if fits or (evict and make_room(priority, newcomer.size)) then
      held_n, held_b = held_n + 1, held_b + newcomer.size
      newcomer.chunk.kept[newcomer.position] = true
      if sources[priority].dry then
        offer(sources[priority], newcomer)
      else
        table.insert(fresh[priority], newcomer)
      end
    elseif evict then
      for _, name in ipairs(NAMES) do count_evicted(name) end
    else
      break
    end
    stored = i
  end

  for _, victim in ipairs(dirty) do
    local entry, left = victim.entry, false
    for _, view in pairs(victim.views) do left = left or next(view.slots) ~= nil end
    if left then
      for name, view in pairs(victim.views) do
        note(name, entry.priority, entry.id, view, false)
      end
    else
      delete(entry.priority, entry.id)
    end
  end
  flush()
  for _, chunk in ipairs(chunks) do
    local rows, bodies, bytes = {}, {}, 0
    for position = 1, chunk.n do
      if chunk.kept[position] then
        rows[#rows + 1] = string.sub(chunk.h, (position - 1) * ROW + 1, position * ROW)
        bodies[#bodies + 1] = string.sub(chunk.b, chunk.ends[position - 1] + 1, chunk.ends[position])
        bytes = bytes + chunk.sizes[position]
      end
    end
    if #rows > 0 then
      insert({priority = chunk.priority, n = #rows, s = bytes,
        h = table.concat(rows), b = table.concat(bodies)})
    end
  end
  local given_up = {}
  for name, count in pairs(evicted) do
    given_up[#given_up + 1] = name
    given_up[#given_up + 1] = count
  end
  held_n, held_b = held()
  return {stored, held_n, held_b, added, given_up}
end

-- priority, id → 1 when the entry could be taken back: nobody has seen it yet.
local function retract(priority, id)
  for _, name in ipairs(NAMES) do
    if not before(mark('seen', name, priority), id) then return 0 end
    if call('HEXISTS', states(name), priority .. ':' .. id) == 1 then return 0 end
  end
  local items = call('XRANGE', stream(priority), id, id)
  local entry = items[1] and parse(priority, items[1])
  if not entry then return 0 end
  call('XDEL', stream(priority), id)
  if not before(meta['counted:' .. priority] or ZERO, id) then
    add('appended:n', -entry.n)
    add('appended:b', -entry.s)
  end
  return 1
end

operations.retract = retract

-- destination, consumer, presence (ms), lease, most records, most bytes, ttl (ms), batches
-- → {priority, id, position of the first record, rows, bodies} ... one for each run of records
--
-- The bounds are those of a batch; several are taken when they are large and one priority waits.
function operations.lease(destination, consumer, presence, lease, max_n, max_b, ttl, batches)
  if is_unknown(destination) then return UNKNOWN end
  max_n, max_b, batches = tonumber(max_n), tonumber(max_b), tonumber(batches)
  local found = call('XREAD', 'COUNT', 1, 'STREAMS', stream(3), stream(2), stream(1), stream(0),
    mark('cursor', destination, 3), mark('cursor', destination, 2),
    mark('cursor', destination, 1), mark('cursor', destination, 0))
  if not found then return {} end
  if #found > 1 then batches = 1 end
  local now = milliseconds()
  local mine = {lease = lease, till = now + math.min(tonumber(ttl), HORIZON)}
  local runs, total, taken, bytes, full = {}, 0, 0, 0, false
  -- What of it a priority may take, so that something is left for those below that wait.
  local most_n, most_b = max_n, max_b

  -- Take what is ready of an entry; returns whether something is left in it for later.
  local function take(entry, state)
    local first, left, touched = nil, false, false
    local function close(last)
      if not first then return end
      runs[#runs + 1] = entry.priority
      runs[#runs + 1] = entry.id
      runs[#runs + 1] = first
      runs[#runs + 1] = string.sub(entry.h, (first - 1) * ROW + 1, last * ROW)
      runs[#runs + 1] = string.sub(entry.b, entry.ends[first - 1] + 1, entry.ends[last])
      first = nil
    end
    for position = 1, entry.n do
      local slot = state.slots[position]
      local ready = slot and slot.lease == '' and slot.till <= now
      if ready and not full then
        local size = entry.sizes[position]
        full = taken >= most_n or (taken > 0 and bytes + size > most_b)
        if full and batches > 1 and bytes >= WORTH then
          batches, taken, bytes, full = batches - 1, 0, 0, false
        end
        if not full then
          total, taken, bytes, touched = total + 1, taken + 1, bytes + size, true
          state.slots[position] = mine
          first = first or position
          slot = mine
        end
      end
      if slot ~= mine then close(position - 1) end
      left = left or (slot and slot.lease == '')
    end
    close(entry.n)
    if touched then
      if before(mark('seen', destination, entry.priority), entry.id) then
        set_mark('seen', destination, entry.priority, entry.id)
      end
      note(destination, entry.priority, entry.id, state, true)
    end
    return left
  end

  local first = {}
  local share_n, share_b, lower = math.floor(max_n / SHARE), math.floor(max_b / SHARE), 0
  for _, part in ipairs(found) do
    first[tonumber(string.sub(part[1], -1))] = part[2]
    if share_n > 0 then lower = lower + 1 end
  end
  for priority = 3, 0, -1 do
    local items, count, clear = first[priority] or {}, 1, true
    if #items > 0 and lower > 0 then lower = lower - 1 end
    most_n, most_b, full = max_n - lower * share_n, max_b - lower * share_b, false
    while #items > 0 and not full do
      local fields = {}
      for i, item in ipairs(items) do fields[i] = priority .. ':' .. item[1] end
      local raw = get_many(states(destination), fields)
      for i, item in ipairs(items) do
        if full then break end
        local entry, left = parse(priority, item), false
        absorb(priority, item[1], entry)
        if not entry then
          bury_junk(priority, item)
        elseif raw[i] then
          left = take(entry, decode(raw[i]))
        elseif before(mark('seen', destination, priority), item[1]) then
          left = take(entry, whole(entry.n))
        end
        clear = clear and not left
        if clear then set_mark('cursor', destination, priority, item[1]) end
      end
      if full or #items < count then break end
      local wanted = math.min(batches * max_b - bytes, 8 * GULP)
      count = how_many(items, wanted, math.min(batches * max_n, 64))
      items = call('XRANGE', stream(priority), '(' .. items[#items][1], '+', 'COUNT', count)
    end
    if full and (lower == 0 or taken >= max_n) then break end
  end
  flush(consumer)
  add('leased:' .. destination, total)
  if total > 0 then renew(consumer, tonumber(presence)) end
  return runs
end

-- mode, destination, lease, delay (ms), entries, {priority:id, {position, size} ...} ...,
-- and to bury: in which place each letter comes, letter ...
-- → how many records were concerned
function operations.settle(mode, destination, lease, delay, amount, ...)
  if is_unknown(destination) then return UNKNOWN end
  local words, count = {...}, 0
  amount = tonumber(amount)
  local keys, raw = {}, {}
  for i = 1, amount do keys[i] = words[2 * i - 1] end
  for _, name in ipairs(NAMES) do
    if name == destination or mode ~= 'release' then raw[name] = get_many(states(name), keys) end
  end
  local free = READY
  if tonumber(delay) > 0 then free = {lease = '', till = milliseconds() + tonumber(delay)} end
  local ranks = mode == 'bury' and words[2 * amount + 1]
  local letter, letters = 0, {}

  for i = 1, amount do
    local priority, id = string.match(keys[i], '^(%d):(%d+%-%d+)$')
    local positions = words[2 * i]
    local n -- of an entry that some destination has not touched; asked for when it matters
    local function view(name)
      if raw[name][i] then return decode(raw[name][i]) end
      if not before(mark('seen', name, priority), id) then return nil end
      if n == nil then
        local items = call('XRANGE', stream(priority), id, id)
        local entry = items[1] and parse(priority, items[1])
        n = entry and entry.n or false
        if entry then absorb_all() end
      end
      return n and whole(n)
    end
    local state = view(destination)
    local others, wanted_elsewhere = {}, false
    if state and mode ~= 'release' then
      for _, name in ipairs(NAMES) do
        local other = name ~= destination and view(name)
        if other and next(other.slots) then
          others[#others + 1] = other.slots
          wanted_elsewhere = true
        end
      end
    end

    local concerned = 0
    for at = 1, #positions, 6 do
      local position, size = struct.unpack('<I2I4', positions, at)
      letter = letter + 1
      local slot = state and state.slots[position]
      if slot and (mode == 'ack' or slot.lease == lease) then
        concerned = concerned + 1
        if slot.lease ~= '' then add('leased:' .. destination, -1) end
        if mode == 'release' then
          state.slots[position] = free
        else
          state.slots[position] = nil
          add('done:n:' .. destination, 1)
          add('done:b:' .. destination, size)
          local kept = false
          for _, slots in ipairs(others) do kept = kept or slots[position] end
          if not kept then
            add('freed:n', 1)
            add('freed:b', size)
          end
          if ranks then
            local rank = struct.unpack('<I2', ranks, 2 * letter - 1)
            letters[#letters + 1] = {rank = rank, text = words[2 * amount + 1 + letter]}
          end
        end
      end
    end
    if concerned > 0 then
      count = count + concerned
      if next(state.slots) == nil and not wanted_elsewhere then
        delete(priority, id)
      else
        note(destination, priority, id, state, false)
      end
      if mode == 'release' then
        local back = some_time_before(id)
        if before(back, mark('cursor', destination, priority)) then
          set_mark('cursor', destination, priority, back)
        end
      end
    end
  end
  flush()
  table.sort(letters, function(a, b) return a.rank < b.rank end)
  for i = 1, #letters do letters[i] = letters[i].text end
  keep_letters(destination, letters)
  return count
end

-- Make ready what is held by a lease for which `is_over` is true, of some entries that a group has
-- as pending; returns how many records.
local function release_over(name, priority, ids, is_over)
  local fields, released = {}, 0
  for i, id in ipairs(ids) do fields[i] = priority .. ':' .. id end
  local raw = get_many(states(name), fields)
  for i, id in ipairs(ids) do
    local state = raw[i] and decode(raw[i]) or {slots = {}, top = 0}
    local over = 0
    for position = 1, state.top do
      local slot = state.slots[position]
      if slot and slot.lease ~= '' and is_over(slot) then
        state.slots[position] = READY
        over = over + 1
      end
    end
    note(name, priority, id, state, true)
    if over > 0 then
      released = released + over
      add('leased:' .. name, -over)
      local back = some_time_before(id)
      if before(back, mark('cursor', name, priority)) then
        set_mark('cursor', name, priority, back)
      end
    end
  end
  return released
end

-- The same for all entries that are pending.
local function release_held(name, is_over)
  local released = 0
  for priority = 0, 3 do
    local first = '-'
    while number('leased:' .. name) > 0 do
      local items, ids = call('XPENDING', stream(priority), name, first, '+', 100), {}
      for i, item in ipairs(items) do ids[i] = item[1] end
      if #ids == 0 then break end
      first = '(' .. ids[#ids]
      released = released + release_over(name, priority, ids, is_over)
    end
  end
  return released
end

-- Consumers that were there, and have not said so for as long as that holds.
local function find_dead(now)
  local dead_ones, found = {}, false
  for field, till in pairs(meta) do
    local consumer = string.match(field, '^alive:(.*)$')
    if consumer and tonumber(till) <= now then dead_ones[consumer], found = true, true end
  end
  return found and dead_ones
end

-- consumer, presence (ms) → how many records are ready again: their lease is over, or its owner dead
function operations.expire(consumer, presence)
  call('HDEL', META, '') -- for a server without memory: see above
  renew(consumer, tonumber(presence))
  local released, dead_ones = 0, find_dead(milliseconds())
  local function is_dead(slot) return dead_ones[string.match(slot.lease, '^(.*)%.%d+$') or ''] end
  for _, name in ipairs(NAMES) do
    local now = number('leased:' .. name) > 0 and milliseconds()
    local function is_late(slot) return slot.till <= now end
    for priority = 0, now and 3 or -1 do
      local from = ZERO
      repeat
        local reply = call('XAUTOCLAIM', stream(priority), name, consumer, HORIZON, from,
          'COUNT', 100, 'JUSTID')
        from = reply[1]
        local ids = {}
        for _, id in ipairs(reply[2]) do
          if id then ids[#ids + 1] = id end
        end
        released = released + release_over(name, priority, ids, is_late)
      until from == ZERO
    end
  end
  flush(consumer)
  if not dead_ones then return released end

  for _, name in ipairs(NAMES) do released = released + release_held(name, is_dead) end
  flush(consumer)
  for gone in pairs(dead_ones) do
    forget_consumer(gone)
    for _, name in ipairs(NAMES) do
      for priority = 0, 3 do
        local left = call('XPENDING', stream(priority), name, '-', '+', 1, gone)
        if #left == 0 then call('XGROUP', 'DELCONSUMER', stream(priority), name, gone) end
      end
    end
  end
  return released
end

-- consumer, for how long there is doubt (ms), token or lease ...
-- → how many entries, and records of a lease, nobody knew of
--
-- Somebody was never told whether he has added what bears a token, or has got a lease. What he has
-- added is taken back, for he has kept it, and the lease is given back.
function operations.forget(consumer, age, ...)
  call('HDEL', META, '') -- for a server without memory: see above
  local doubtful, count = {}, 0
  for _, word in ipairs({...}) do doubtful[word] = true end
  local from = string.format('%.0f', math.max(milliseconds() - tonumber(age), 0))
  for priority = 0, 3 do
    local first, count = from, 1
    repeat
      local items = call('XRANGE', stream(priority), first, '+', 'COUNT', count)
      count = how_many(items, GULP, 64)
      for _, item in ipairs(items) do
        for i = 1, #item[2] - 1, 2 do
          if item[2][i] == 't' and doubtful[item[2][i + 1]] then
            count = count + retract(priority, item[1])
          end
        end
        first = '(' .. item[1]
      end
    until #items == 0
  end
  local function is_doubtful(slot) return doubtful[slot.lease] end
  for _, name in ipairs(NAMES) do count = count + release_held(name, is_doubtful) end
  flush(consumer)
  return count
end

-- The time at which the oldest pending record of a destination was accepted, as text, or false.
local function oldest(destination)
  local marks, best = {}, false
  for priority = 0, 3 do marks[priority] = mark('low', destination, priority) end
  local open = {3, 2, 1, 0}
  local count = 1
  while #open > 0 do
    local command = {'XREAD', 'COUNT', count, 'STREAMS'}
    for _, priority in ipairs(open) do command[#command + 1] = stream(priority) end
    for _, priority in ipairs(open) do command[#command + 1] = marks[priority] end
    open, count = {}, 64
    for _, part in ipairs(call(unpack(command)) or {}) do
      local priority = tonumber(string.sub(part[1], -1))
      local fields, found = {}, false
      for i, item in ipairs(part[2]) do fields[i] = priority .. ':' .. item[1] end
      local raw = get_many(states(destination), fields)
      for i, item in ipairs(part[2]) do
        local entry = parse(priority, item)
        local state = entry and (raw[i] and decode(raw[i])
          or before(mark('seen', destination, priority), item[1]) and whole(entry.n))
        for position = 1, state and state.top or 0 do
          if state.slots[position] then
            local accepted = struct.unpack('<d', entry.h, (position - 1) * ROW + 8)
            if not best or accepted < best then best = accepted end
            found = true
            break
          end
        end
        if found then break end
        marks[priority] = item[1]
      end
      if not found then
        open[#open + 1] = priority
        count = math.min(count, how_many(part[2], GULP, 64))
      end
    end
  end
  for priority = 0, 3 do set_mark('low', destination, priority, marks[priority]) end
  return best and string.format('%.17g', best)
end

-- destination ... → records held, bytes held, junk found,
-- {ready, leased, buried, bytes, oldest} for each
function operations.stats(...)
  for _, name in ipairs({...}) do
    if is_unknown(name) then return UNKNOWN end
  end
  absorb_all()
  local reply = {held()}
  reply[#reply + 1] = number('junk')
  for _, name in ipairs({...}) do
    local wanted = number('appended:n') - number('done:n:' .. name)
    local leased = number('leased:' .. name)
    reply[#reply + 1] = wanted - leased
    reply[#reply + 1] = leased
    reply[#reply + 1] = number('dead:n:' .. name)
    reply[#reply + 1] = number('appended:b') - number('done:b:' .. name)
    reply[#reply + 1] = wanted > 0 and oldest(name) or ''
  end
  -- A look must not fail because the server has no memory left; it is only repeated then.
  save(redis.pcall)
  changed = {}
  return reply
end

-- destination, most records, after which id to begin in the streams 3, 2, 1 and 0
-- → records that ever came for the destination, how many of them wait, whether that was all, where
-- to go on in each stream, {priority, rows, bodies} of what waits for it in each entry
function operations.peek(destination, limit, ...)
  if is_unknown(destination) then return UNKNOWN end
  absorb_all()
  limit = tonumber(limit)
  local from, found, taken, all = {...}, {}, 0, 1
  for place = 1, 4 do
    local priority, count = 4 - place, 1
    if limit == 0 then from[place] = meta['counted:' .. priority] or ZERO end
    while limit > 0 do
      if taken >= limit then
        all = 0
        break
      end
      local items = call('XRANGE', stream(priority), '(' .. from[place], '+', 'COUNT', count)
      if #items == 0 then break end
      count = how_many(items, GULP, 16)
      local fields = {}
      for i, item in ipairs(items) do fields[i] = priority .. ':' .. item[1] end
      local raw = get_many(states(destination), fields)
      for i, item in ipairs(items) do
        if taken >= limit then break end
        from[place] = item[1]
        local entry = parse(priority, item)
        local state = entry and (raw[i] and decode(raw[i])
          or before(mark('seen', destination, priority), item[1]) and whole(entry.n))
        local rows, bodies = {}, {}
        for position = 1, state and state.top or 0 do
          if state.slots[position] then
            rows[#rows + 1] = string.sub(entry.h, (position - 1) * ROW + 1, position * ROW)
            bodies[#bodies + 1] =
              string.sub(entry.b, entry.ends[position - 1] + 1, entry.ends[position])
          end
        end
        taken = taken + #rows
        if #rows > 0 then
          found[#found + 1] = priority
          found[#found + 1] = table.concat(rows)
          found[#found + 1] = table.concat(bodies)
        end
      end
    end
  end
  -- A look must not fail because the server has no memory left; see stats.
  save(redis.pcall)
  changed = {}
  local appended = number('appended:n')
  local came, wanted = appended - number('elsewhere:' .. destination),
    appended - number('done:n:' .. destination)
  return {came, wanted, all, from, found}
end

-- destination → letters
function operations.letters(destination)
  return call('LRANGE', dead(destination), 0, -1)
end

-- destination, most letters, most records, most bytes → how many are ready again, records held,
-- bytes held
function operations.replay(destination, limit, max_n, max_b)
  if is_unknown(destination) then return UNKNOWN end
  limit, max_n, max_b = tonumber(limit), tonumber(max_n), tonumber(max_b)
  absorb_all()
  local key, n, b = dead(destination), 'dead:n:' .. destination, 'dead:b:' .. destination
  local letters, replayed, junk, at = call('LRANGE', key, 0, -1), 0, {}, 1
  while at <= #letters and replayed < limit do
    local letter = letters[at]
    local size, length, priority, why, first = 0, 0, 0, 0, LETTER + 1
    if #letter > LETTER then
      local head = {struct.unpack('<I4I2BdBI2', letter)}
      size, length, priority, why = head[1], head[2], head[5], head[6]
    end
    local reason = string.sub(letter, first + length, first + length + why - 1)
    if reason == JUNK or #letter ~= LETTER + length + why + size or size == 0 then
      junk[#junk + 1] = letter
    else
      local held_n, held_b = held()
      if held_n + 1 > max_n or held_b + size > max_b then break end
      local h = string.sub(letter, 1, ROW)
      local body = string.sub(letter, first, first + length - 1)
        .. string.sub(letter, first + length + why)
      local id = call('XADD', stream(priority), '*',
        'v', VERSION, 'n', 1, 's', size, 'h', h, 'b', body)
      absorb(priority, id, {n = 1, s = size})
      for _, other in ipairs(NAMES) do
        if other ~= destination then -- it has the record, or has given it up
          note(other, priority, id, {slots = {}, top = 0}, false)
          add('done:n:' .. other, 1)
          add('done:b:' .. other, size)
          add('elsewhere:' .. other, 1)
        end
      end
      replayed = replayed + 1
      add(n, -1)
      add(b, -size)
    end
    at = at + 1
  end
  if replayed > 0 and #junk == 0 then
    for _ = 1, replayed do call('LPOP', key) end
  elseif replayed > 0 then -- junk stays in its place, before what is left
    for rest = at, #letters do junk[#junk + 1] = letters[rest] end
    call('DEL', key)
    call_many({'RPUSH', key}, junk)
  end
  flush()
  return {replayed, held()}
end

local reply = operations[OPERATION](unpack(ARGV, 4))
save()
return reply
