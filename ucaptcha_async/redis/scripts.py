"""What the scripts in Redis have in common: the time, which server this is, and whether it lost what it was told.

All keys of one object carry the same hash tag, so that in a cluster they live on one node. Times are whole microseconds
of Redis' own clock. `INFO` tells one start of a server from the next (it costs 8 microseconds, and is done without
where the user's rights do not allow it).
"""

from __future__ import annotations

import uuid

import attrs

PRELUDE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local run, uptime = '-', 1e15
local info = redis.pcall('INFO', 'server')
if type(info) == 'string' then
  run = string.match(info, 'run_id:(%w+)') or '-'
  uptime = (tonumber(string.match(info, 'uptime_in_seconds:(%d+)')) or 0) * 1000000
end
"""

FORGETFUL = (
    PRELUDE
    + """
-- The mark of what may be lost, if everybody then waits until what was done before no longer counts: `settle`.
-- Known is the generation that the caller has seen, fresh is one of its own making.
local function mark(known, fresh, settle)
  local state = redis.call('HMGET', KEYS[1], 'generation', 'run', 'settled', 'first')
  local generation, settled, first = state[1], tonumber(state[3] or 0), state[4] == '1'
  local lost = false
  if not generation then
    lost = known ~= ''
    generation, first = fresh, not lost
    -- An empty server that has just started may have been the one before.
    settled = lost and now + settle or math.max(0, now + settle - uptime)
  elseif state[2] ~= run then  -- restarted, or another has taken over: what was told last may be missing
    lost, generation, first, settled = true, fresh, false, now + settle
  elseif known ~= '' and known ~= generation and first then  -- somebody new was here before those who knew more
    lost, generation, first, settled = true, fresh, false, now + settle
  else
    return generation, settled
  end
  redis.call('HSET', KEYS[1], 'generation', generation, 'run', run, 'settled', string.format('%.0f', settled),
    'first', first and '1' or '0')
  return generation, settled
end
"""
)

FAITHFUL = (
    PRELUDE
    + """
-- The mark of what must not be lost. The caller says which generation it knows, on which run of the server it was
-- last answered, and how many changes there were then; a server that knows of fewer has lost some. Who knows '?' has
-- seen none, and expects one.
-- Generations begin with the time of their birth, so that one from before an accepted loss is known.
local function birth(generation) return tonumber(string.match(generation, '^%d+') or 0) end
local function mark(known, fresh, known_run, known_count)
  local state = redis.call('HMGET', KEYS[1], 'generation', 'run', 'count', 'lost', 'accepted')
  local generation, count, lost, accepted = state[1], tonumber(state[3] or 0), state[4] == '1', state[5] == '1'
  local changes = {}
  if known == '?' and generation then known = '' end
  if not generation then
    generation, lost = string.format('%.0f.%s', now, fresh), known ~= ''
    changes = {'generation', generation, 'lost', lost and '1' or '0', 'accepted', '0', 'run', run}
  else
    if state[2] ~= run then
      changes = {'run', run, 'end:' .. state[2], count}
    end
    local was = lost
    if known ~= '' and known ~= generation then
      lost = lost or not accepted or birth(known) > birth(generation)
    elseif known ~= '' then
      local upto = count
      if known_run ~= run then
        upto = known_run == state[2] and count or tonumber(redis.call('HGET', KEYS[1], 'end:' .. known_run) or 0)
      end
      lost = lost or known_count > upto
    end
    if lost ~= was then
      changes[#changes + 1] = 'lost'
      changes[#changes + 1] = '1'
    end
  end
  if #changes > 0 then redis.call('HSET', KEYS[1], unpack(changes)) end
  return generation, lost, count
end
"""
)

ACCEPT = (
    PRELUDE
    + """
-- What is there is accepted as the whole: a new generation, which those who knew more take over.
local state = redis.call('HGETALL', KEYS[1])
for i = 1, #state, 2 do
  if string.sub(state[i], 1, 4) == 'end:' then redis.call('HDEL', KEYS[1], state[i]) end
end
redis.call('HSET', KEYS[1], 'generation', string.format('%.0f.%s', now, ARGV[1]), 'run', run,
  'lost', '0', 'accepted', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
)

Reply = str | bytes | int | float | None


def text(value: Reply) -> str:
    """What a script said, whether or not the client of Redis decodes it."""
    return value.decode() if isinstance(value, bytes) else str(value)


def new_token() -> str:
    """A name that nobody else has."""
    return uuid.uuid4().hex[:20]


@attrs.define(eq=False)
class Stamp:
    """What one process has last seen of an object's mark.

    Attributes:
        generation: Which one; empty before the first answer.
        run: The start of the server that answered.
        count: How many changes it knew of.
    """

    generation: str = ""
    run: str = ""
    count: int = 0

    def see(self, generation: str, run: str = "", count: int = 0) -> bool:
        """Take in a mark; whether it is another generation than the one that was known."""
        changed = self.generation not in ("", "?", generation)
        self.generation, self.run, self.count = generation, run, count
        return changed
