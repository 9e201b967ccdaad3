"""One bound on what is in flight for many processes and machines, kept in Redis (extra `redis`).

Every process holds some of the places, and gives them to those who wait in it without asking Redis. Redis shares the
places out by need: whoever wants no more than an equal share gets what it wants, the others share the rest equally,
and what does not divide goes round. A process tells Redis how many places are in use and how many wait there: after a
change, in small batches, and at least every 5 seconds, or three times in the length of a short lease.

Each visit says all there is to say, so that one whose answer was lost does no harm, and carries a number, so that one
that was delayed changes nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import ClassVar, Literal

import anyio
import attrs

from ucaptcha_async.checks import Seconds, seconds, whole, wrong
from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.pacing import InFlightStatistics

from .scripts import FORGETFUL, new_token, text
from .store import Client, RedisHook, RedisStateLost, RedisUnavailableError, Shared

_GAP = 0.02
"""The shortest time between two visits, in seconds: what changes meanwhile goes in one."""
_POLL = 0.15
"""How often a process asks for places, or gives some back, where there are too few; longer in a very large fleet."""
_BEAT = 5.0
"""The longest time between two visits, in seconds: what a living process holds is known again soon after a loss."""
_SPARE = 1.0
"""How often a process that holds more than it uses tells Redis what it uses."""

SCRIPT = (
    FORGETFUL
    + """
local limit, settle, lease = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local me, number, used, waiting = 'p:' .. ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local generation, settled = mark(ARGV[1], ARGV[2], settle)

local mine = {id = me, wanted = math.min(used + waiting, limit), number = -1}
local all, taken, demand, given_limit = {mine}, 0, used + waiting, limit
local state = redis.call('HGETALL', KEYS[1])
for i = 1, #state, 2 do
  if string.sub(state[i], 1, 2) == 'p:' then
    local given, wanted, ends, seen, theirs = string.match(state[i + 1], '(%d+) (%d+) (%d+) (%d+) (%d+)')
    if state[i] == me then
      mine.number = tonumber(seen)
    elseif tonumber(ends) <= now then
      redis.call('HDEL', KEYS[1], state[i])
    else
      all[#all + 1] = {id = state[i], wanted = tonumber(wanted)}
      taken, demand = taken + tonumber(given), demand + tonumber(wanted)
      limit = math.min(limit, tonumber(theirs))  -- the strictest of the living holds for all
    end
  end
end
for _, each in ipairs(all) do each.wanted = math.min(each.wanted, limit) end
if number < mine.number then return {generation, -1, 0, 0, #all} end

-- The level up to which everybody gets what it wants.
table.sort(all, function(a, b) return a.wanted < b.wanted end)
local left, level = limit, math.huge
for i, each in ipairs(all) do
  local share = math.floor(left / (#all - i + 1))
  if each.wanted > share then
    level = share
    left = left - share * (#all - i + 1)
    break
  end
  left = left - each.wanted
end
local fair = math.min(mine.wanted, level)
if mine.wanted > level then
  -- What does not divide goes round, a second for each.
  local hungry, place = 0, 0
  for _, each in ipairs(all) do
    if each.wanted > level then
      hungry = hungry + 1
      if each.id < me then place = place + 1 end
    end
  end
  if (place + math.floor(now / 1000000)) % hungry < left then fair = fair + 1 end
end

local allowed = math.max(0, math.min(fair, limit - taken))
if demand < limit then  -- and some in reserve, so that not every start needs a visit
  allowed = allowed + math.max(0, math.floor((limit - math.max(demand, taken + allowed)) / (2 * #all)))
end
if settled > now then allowed = used end
if ARGV[10] == '1' then allowed = 0 end
local given = math.max(used, allowed)
if given == 0 and waiting == 0 and ARGV[10] == '1' then
  redis.call('HDEL', KEYS[1], me)
else
  redis.call('HSET', KEYS[1], me, string.format('%d %d %.0f %d %d', given, used + waiting, now + lease, number,
    given_limit))
end
redis.call('PEXPIRE', KEYS[1], math.ceil(2 * (lease + settle) / 1000))
return {generation, allowed, demand > limit and 1 or 0, math.max(0, math.ceil(settled - now)), #all}
"""
)


@attrs.define(eq=False)
class _Waiter:
    called: anyio.Event = attrs.field(factory=anyio.Event)
    error: RedisUnavailableError | None = None


class RedisInFlight(Shared):
    """At most `limit` tasks at the service, for all processes that use the same Redis and `name` together.

    It is opened with `async with` before the clients that use it. Within a process places go first come, first served;
    between processes they are shared equally by need.

    A process that dies loses its places when its lease ends; a living one renews it. Until then they count, because
    its tasks are still at the service. While Redis is away a process goes on with the places that it holds, for half a
    lease by its own clock. So choose a lease of twice your longest solve: then no more than `limit` tasks are at the
    service, whoever dies and whatever is cut off.

    If Redis has lost its memory, or another server has taken over, no process gets more places than it uses for 14
    seconds (10, and four times `timeout`; half a lease if that is shorter): by then all living processes have said what
    they hold. What is lost is the places of processes that died shortly before.

    Args:
        redis: The URL of a Redis (`redis://`, `rediss://`, `unix://`), or a `coredis.Redis` or `coredis.RedisCluster`
            that is open while the object is used.
        limit: The most tasks in flight, for all together. If processes disagree the strictest limit that a living one
            gave holds for all.
        name: Whoever uses the same name shares the bound.
        lease: Seconds (or a `timedelta`) after which the places of a silent process are free. All should use the same.
        timeout: How long Redis may take to connect, or to answer, in seconds.
        when_away: What happens to those who need a new place while Redis is away. `"wait"`: they wait until it is back.
            `"refuse"`: they get a `RedisUnavailableError`. `"local"`: they take one of `local_limit` further places
            that this process has for itself.
        local_limit: For `"local"`. `limit` and the local places of all processes together should be what you allow.
        on_event: Called with a `RedisAway`, `RedisBack` or `RedisStateLost`.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    _what: ClassVar[str] = "in-flight"

    def __init__(
        self,
        redis: str | Client,
        *,
        limit: int,
        name: str = "default",
        lease: Seconds = 60.0,
        timeout: Seconds = 1.0,
        when_away: Literal["wait", "refuse", "local"] = "wait",
        local_limit: int | None = None,
        on_event: RedisHook | None = None,
    ) -> None:
        super().__init__(redis, name, timeout, on_event)
        self._limit = whole("limit", limit)
        self._lease = seconds("lease", lease, minimum=1.0)
        if when_away not in ("wait", "refuse", "local"):
            raise wrong("when_away", when_away, '"wait", "refuse" or "local"', ConfigurationError)
        if (when_away == "local") != (local_limit is not None):
            raise wrong("local_limit", local_limit, 'given with when_away="local", and only then', ConfigurationError)
        self._refuses = when_away == "refuse"
        self._local_limit = 0 if local_limit is None else whole("local_limit", local_limit)
        self._script = self._link.client.register_script(SCRIPT)
        self._line: OrderedDict[_Waiter, None] = OrderedDict()
        self._in_use = 0  # of the common places
        self._in_local_use = 0
        self._begin()

    def _begin(self) -> None:
        self._allowed = 0  # how many of the common places may be in use before one more is taken
        self._holds_until = -math.inf
        self._told: tuple[int, int] | None = None
        self._visited_at = -math.inf
        self._contended = False
        self._processes = 1
        self._number = 0

    @property
    def limit(self) -> int:
        """The most tasks in flight, for all processes together."""
        return self._limit

    def statistics(self) -> InFlightStatistics:
        """Say how many places this process uses, and how many wait in it."""
        return InFlightStatistics(
            limit=self._limit, in_flight=self._in_use + self._in_local_use, waiting=len(self._line)
        )

    async def acquire(self) -> None:
        """Wait for a place. A checkpoint only if this process holds none that is free.

        Raises:
            RedisUnavailableError: Redis is away, and `when_away` is `"refuse"`.
            ClientStateError: The object is not open.
        """
        self._check_open()
        if not self._line and self._take():
            return
        if self._refuses and self.is_away:
            raise RedisUnavailableError("Redis did not answer a moment ago")
        waiter = _Waiter()
        self._line[waiter] = None
        self._wake()
        try:
            await waiter.called.wait()
        except BaseException:
            if not waiter.called.is_set():
                del self._line[waiter]
                self._wake()
            elif waiter.error is None:
                self.release()
            raise
        if waiter.error is not None:
            raise waiter.error

    def release(self) -> None:
        """Give a place back: to the first who waits here, or with the next visit to all. Never fails."""
        # Places are alike: local ones go first, so that Redis never counts fewer than there are.
        if self._in_local_use:
            self._in_local_use -= 1
        elif self._in_use:
            self._in_use -= 1
        else:
            raise RuntimeError("released more often than acquired")
        self._admit()
        self._wake()

    def _take(self) -> bool:
        if self._in_use < self._allowed and anyio.current_time() < self._holds_until:
            self._in_use += 1
        elif self.is_away and self._in_local_use < self._local_limit:
            self._in_local_use += 1
        else:
            return False
        return True

    def _admit(self) -> None:
        while self._line and self._take():
            waiter, _ = self._line.popitem(last=False)
            waiter.called.set()

    def _due(self) -> float:
        if self.is_away:
            return self._visited_at + self._link.retry_in
        poll = max(_POLL, self._processes * _POLL / 50)
        if self._line:
            return self._visited_at + (poll if self._contended else _GAP)
        if self._told != (self._in_use, 0):
            return self._visited_at + (poll if self._contended else 3 * poll)
        return self._visited_at + min(self._lease / 3, _BEAT, _SPARE if self._allowed > self._in_use else math.inf)

    async def _visit(self) -> None:
        said = self._in_use, len(self._line)
        # Until the answer is here, no more than what is said may be in use: the others may get the rest.
        self._allowed = min(self._allowed, said[0])
        self._visited_at = anyio.current_time()
        try:
            generation, allowed, contended, settling, self._processes = await self._ask(said)
        except RedisUnavailableError as error:
            self._told = None
            self._give_up(error)
            return
        self._told = said
        self._contended = bool(contended)
        if self._stamp.see(text(generation)):
            self._link.tell(RedisStateLost, until=anyio.current_time() + settling / 1e6)
        if allowed >= 0:
            self._allowed = int(allowed)
            self._holds_until = self._visited_at + 0.5 * self._lease  # what is begun then ends within the lease
            self._admit()

    async def _ask(self, said: tuple[int, int], *, leaving: bool = False) -> list[int]:
        self._number += 1
        settle, lease = min(self._lease / 2, 2 * _BEAT + 4 * self._link.timeout) * 1e6, self._lease * 1e6
        arguments: list[str | int | float] = [self._stamp.generation, new_token(), self._limit, settle, lease]
        arguments += [self._token, self._number, *said, int(leaving)]
        reply: list[int] = await self._link.call(self._script, [self._link.key()], arguments)
        return reply

    def _give_up(self, error: RedisUnavailableError) -> None:
        self._admit()
        while self._refuses and self._line:
            waiter, _ = self._line.popitem(last=False)
            waiter.error = RedisUnavailableError(error.message)
            waiter.called.set()

    async def _leave(self) -> None:
        try:
            await self._ask((self._in_use, 0), leaving=True)
        except RedisUnavailableError:
            return  # the lease ends by itself
