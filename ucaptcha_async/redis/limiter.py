"""One rate limit for many processes and machines, kept in Redis (extra `redis`).

Every process takes its turns from one schedule in Redis, a few at a time and only for requests that wait, and waits for
them by its own clock. Redis' clock is the measure: no two machines need to agree on the time.

**The promise.** In every window, wherever it starts, at most `limit` requests leave all processes together. A turn that
is used late would crowd into a later window, so a turn is void `LATE` of a window after its time, and the schedule
counts in windows that are longer by as much. That, and bursts of a hundredth, leave 98 % of the limit to be used.

**When Redis forgets.** After a restart, when another server takes over, or when the schedule is gone that a process
knew, nobody gets a turn for a whole window: what left before no longer counts then.

**What breaks it.** The clock of Redis is set forward.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from collections import deque
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import attrs
from anyio.lowlevel import checkpoint_if_cancelled

from ucaptcha_async.checks import Seconds, wrong
from ucaptcha_async.errors import ClientStateError, ConfigurationError
from ucaptcha_async.pacing import RateLimiter
from ucaptcha_async.pacing.gcra import GCRA, Departures, not_before
from ucaptcha_async.pacing.quota import Quota, ServerClock

from .scripts import FORGETFUL, Stamp, new_token, text
from .store import Client, Link, RedisHook, RedisStateLost, RedisUnavailableError

# Parts of the window:
LATE = 0.006
"""How late a turn may be used."""
AHEAD = 0.04
"""How far ahead the first of some turns is given at the most: it is used even if Redis forgets it meanwhile."""
BATCH = 0.01
"""How long the turns last that are given at once."""
LEAD = 0.04
"""How much later than at once a process may want its turns."""
SETTLE = 1.1
"""How long everybody waits after a loss: a window, and as long as turns from before it may still be used."""

MEMORY = 3_600.0
"""Seconds without a visit after which Redis forgets the schedule. Long after it is of use, that it is there says that
nothing was lost."""

# Times are whole microseconds of Redis' clock, spans are microseconds. `next` is when the turn after the last one would
# be due without a burst; `turns` counts them; `paused` is the end of the latest pause.
SCRIPT = (
    FORGETFUL
    + """
local wanted, interval, credit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local lead, ahead = tonumber(ARGV[4]), tonumber(ARGV[5])
local horizon, pause = tonumber(ARGV[6]), tonumber(ARGV[7])
local settle, farthest, memory, usual = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15], tonumber(ARGV[16])
local state = redis.call('HMGET', KEYS[1], 'next', 'turns', 'paused', 'interval', 'credit', 'strict')
local following, turns, paused = tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0)

-- If processes have different limits the strictest holds for all, as long as it is remembered.
local slowest, least, strict = tonumber(state[4] or 0), tonumber(state[5] or math.huge), tonumber(state[6] or 0)
if now - strict > memory * 1000 then slowest, least = 0, math.huge end
if usual >= slowest or credit <= least then strict = now end
slowest, credit = math.max(slowest, usual), math.min(least, credit)
interval = math.max(interval, slowest)

-- Turns that were not used are given back, if nobody has taken one behind them.
if state[1] == ARGV[8] then
  following = following - tonumber(ARGV[9]) * tonumber(ARGV[10])
  turns = turns - tonumber(ARGV[9])
end
if following - now > 2 * horizon then -- the clock was set back
  following, paused = now + settle + credit, 0
end
local generation, settled = mark(ARGV[11], ARGV[12], settle)
if settled > now and settled - now <= 2 * horizon then
  paused = math.max(paused, settled)
  following = math.max(following, settled + credit)
end
if pause > 0 then
  paused = math.max(paused, now + pause)
  following = math.max(following, now + pause + credit)
end

local reply, first = {generation, now, paused, turns}, now + lead
local latest = first + farthest
for turn = 1, wanted do
  local at = math.max(first, following - credit)
  if at > latest then break end
  if turn == 1 then latest = at + ahead end  -- the same for everybody, however far ahead it begins
  reply[#reply + 1] = math.ceil(at)
  following = math.max(following, first) + interval
  turns = turns + 1
end
local text = string.format('%.17g', following)
redis.call('HSET', KEYS[1], 'next', text, 'turns', turns, 'paused', string.format('%.17g', paused),
  'interval', string.format('%.17g', slowest), 'credit', string.format('%.17g', credit), 'strict', strict)
redis.call('PEXPIRE', KEYS[1], memory)
table.insert(reply, 5, text)
table.insert(reply, 6, math.ceil(math.max(0, following - credit - now)))
return reply
"""
)


@attrs.frozen
class _Turn:
    """A turn: when it is due, when it is void (both on our clock), and its number among those of all processes."""

    at: float
    until: float
    number: int


@attrs.define(eq=False)
class _Numbered(Departures):
    """Our own departures with their numbers among those of all processes: how many had left of all."""

    _numbers: array[int] = attrs.field(factory=lambda: array("q"), init=False)

    def add(self, now: float, number: int = 0) -> None:
        """Note a departure of ours."""
        if len(self._times) >= 2 * self.keep:
            del self._numbers[: -self.keep]
        super().add(now)
        self._numbers.append(number)
        self.total = number

    def until(self, time: float) -> float:
        """How many of all had left at `time`, as far as our own tell."""
        if not self._numbers:
            return self.total
        return self._numbers[max(0, bisect_right(self._times, time) - 1)]

    def forget(self) -> None:
        """Forget when they left."""
        super().forget()
        del self._numbers[:]


@attrs.define(eq=False)
class SharedPace(GCRA):
    """Turns that were taken from the common schedule, and what the next visit to Redis has to tell. Pure state."""

    #: A turn may be used this much after its time, in seconds.
    tolerance: float = attrs.field(init=False)
    #: Whether Redis was found to have lost its memory with the latest visit.
    forgot: bool = attrs.field(default=False, init=False)
    #: When to visit Redis again if the latest visit brought no turn, in seconds from its answer.
    retry_in: float = attrs.field(default=0.0, init=False)
    _numbered: _Numbered = attrs.field(init=False)
    _turns: deque[_Turn] = attrs.field(factory=deque, init=False)
    _pause_until: float = attrs.field(default=-math.inf, init=False)
    _told_until: float = attrs.field(default=-math.inf, init=False)
    # What the latest visit left behind: the schedule's state, the spacing, and how many turns at its end are unused.
    _left_at: str = attrs.field(default="-", init=False)
    _spacing: float = attrs.field(default=0.0, init=False)
    _unused: int = attrs.field(default=0, init=False)
    _skipped: int = attrs.field(default=0, init=False)
    _clock: ServerClock = attrs.field(factory=ServerClock, init=False)
    _lead: float = attrs.field(default=0.0, init=False)
    _stamp: Stamp = attrs.field(factory=Stamp, init=False)
    _heard_at: float = attrs.field(default=-math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.departures = self._numbered = _Numbered(self.limit)
        self.burst = max(1, self.limit // 100)
        self.tolerance = self.window * LATE
        # Two thousandths more for what the clocks may drift, and for the way from here to the socket.
        self.interval = self.window * (1.002 + LATE) / (self.limit - self.burst + 1)
        self._credit = (self.burst - 1) * self.interval
        self.patience = self.window / 1_000

    def ready_at(self, now: float) -> float:
        """When the next turn is due; infinitely late if there is none."""
        while self._turns and now > self._turns[0].until:
            self._turns.popleft()
        return not_before(now, self._turns[0].at) if self._turns else math.inf

    def depart(self, now: float) -> None:
        """Use the first turn. The caller has asked `ready_at` at the same `now`."""
        turn = self._turns.popleft()
        self._unused = len(self._turns)
        self._numbered.add(now, turn.number)

    def pause(self, until: float) -> None:
        """Our turns are void, and the next visit tells the others to wait as well."""
        self._turns.clear()
        self._pause_until = max(self._pause_until, until)

    def ask(self, wanted: int, spacing: float, now: float) -> list[str | int]:
        """The script's arguments for a visit that wants some turns, `spacing` seconds apart."""
        if now - self._heard_at > 0.9 * MEMORY:  # Redis may have forgotten what we know, and lost nothing
            self._stamp = Stamp()
        self._told_until = self._pause_until
        pause = max(0.0, self._pause_until - now)
        spans = [spacing, self._credit, self._lead, BATCH * self.window, self.horizon, pause]
        turns: list[str | int] = [wanted, *(repr(span * 1e6) for span in spans)]
        unused: list[str | int] = [self._left_at, self._unused, repr(self._spacing * 1e6)]
        settle, farthest, usual = (
            repr(span * 1e6) for span in (SETTLE * self.window, AHEAD * self.window, self.interval)
        )
        mark: list[str | int] = [self._stamp.generation, new_token(), settle]
        return [*turns, *unused, *mark, farthest, math.ceil(MEMORY * 1e3), usual]

    def take(self, reply: list[Any], spacing: float, sent_at: float, received_at: float) -> float:
        """Take in the script's answer.

        Returns:
            When the latest pause of any process ends or ended, on our clock.
        """
        generation, now, paused, number, left_at, wait, *due = reply
        self._heard_at = received_at
        self.forgot = self._stamp.see(text(generation))
        if self.forgot:
            self._turns.clear()
        if number + self._skipped < self.departures.total:  # Redis has lost its memory and counts anew
            self._skipped = self.departures.total - number
        self._clock.hear(now / 1e6, sent_at, received_at, grain=1e-5)
        for count, at in enumerate(due, start=1):
            local = self._clock.local(at / 1e6)
            until = local + self.tolerance - self._clock.doubt
            self._turns.append(_Turn(local, until, number + self._skipped + count))
        # Where the way from Redis takes longer than a turn is good for, ask for later turns.
        in_time = any(turn.until > received_at for turn in self._turns)
        if due:
            self._lead = self._lead / 2 if in_time else min(1.5 * (received_at - sent_at), LEAD * self.window)
        # Where the next turn is too far ahead to be given, ask shortly before it may be.
        early = random.uniform(0.4, 0.9) * AHEAD * self.window
        self.retry_in = 0.0 if due else max(0.001, wait / 1e6 - early)
        self._left_at = text(left_at)
        self._spacing, self._unused = spacing, len(due)
        if self._pause_until > self._told_until:  # it began during the visit: these turns are void, too
            self._turns.clear()
        else:
            self._pause_until = -math.inf
        return received_at + float(paused - now) / 1e6

    @property
    def doubt(self) -> float:
        """How well Redis' clock is known, in seconds: turns are good for `tolerance` less this."""
        return self._clock.doubt


class RedisRateLimiter(RateLimiter):
    """At most `limit` requests in every window, for all processes that use the same Redis and `name` together.

    It is used like a `RateLimiter`, and opened with `async with` before the clients that use it.

    Within a process waiters go in the order of their arrival. A cancelled waiter's turn goes to the next in its
    process, or back to the schedule if no other process has taken one behind it. A refusal (HTTP 429) pauses all
    processes: the others hear of it when they take their next turns. What others who do not use this limiter take from
    the service's limit is accommodated as by a `RateLimiter`.

    If Redis was restarted, another server has taken over, or the schedule is gone, no request leaves for a window.

    Args:
        redis: The URL of a Redis (`redis://`, `rediss://`, `unix://`), or a `coredis.Redis` or `coredis.RedisCluster`
            that is open while the limiter is used.
        name: Whoever uses the same name shares the limit.
        limit: Requests per window, for all together. If processes disagree the strictest limit holds for all, until
            nobody has used it for an hour.
        window: Seconds (or a `timedelta`). Redis must be near enough to answer within a two-hundredth of it at times.
        timeout: How long Redis may take to connect, or to answer, in seconds. A cancelled waiter that has just asked
            still waits for the answer.
        fallback: Paces the requests of this process while Redis is away. `limit` and the limits of the fallbacks of
            all processes together must stay within the service's limit.
        when_away: What happens to requests without a fallback while Redis is away: `"refuse"` with a
            `RedisUnavailableError`, or `"wait"` until it is back.
        on_event: Called with a `RedisAway`, `RedisBack` or `RedisStateLost`.

    Raises:
        ConfigurationError: A setting is wrong.

    Source: docs/api/overview.
    """

    def __init__(
        self,
        redis: str | Client,
        *,
        name: str = "default",
        limit: int = 10_000,
        window: Seconds = 10.0,
        timeout: Seconds = 1.0,
        fallback: RateLimiter | None = None,
        when_away: Literal["refuse", "wait"] = "refuse",
        on_event: RedisHook | None = None,
    ) -> None:
        super().__init__(limit, window)
        self._shared = self._pace = SharedPace(self.limit, self.window)
        self._quota = Quota(self._pace)
        if when_away not in ("refuse", "wait"):
            raise wrong("when_away", when_away, '"refuse" or "wait"', ConfigurationError)
        self._link = Link.to("limit", redis, name, timeout, on_event)
        self._fallback = fallback
        self._waits = when_away == "wait" and fallback is None
        self._script = self._link.client.register_script(SCRIPT)
        self._open = not self._link.owned
        self._away_until = -math.inf
        self._strange = 0

    async def __aenter__(self) -> Self:
        """Open the connection to Redis, if the limiter was given a URL."""
        if self._link.owned:
            await self._link.client.__aenter__()
            self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what was opened."""
        self._open = not self._link.owned
        if self._link.owned:
            # Without the error, which the task group in it would wrap.
            await self._link.client.__aexit__(None, None, None)

    async def acquire(self) -> None:
        """Wait until one request may leave.

        Raises:
            RedisUnavailableError: Redis does not answer, and there is no fallback. Raised at once for a second after
                a failure.
            ClientStateError: The limiter was given a URL and is not open.
        """
        try:
            await super().acquire()
        except RedisUnavailableError:
            if self._fallback is None:
                raise
            await self._fallback.acquire()
            self._fallback.lost()
            self._departed += 1
            self._in_transit += 1

    def _due(self, now: float) -> float:
        return self._pace.ready_at(now)

    async def _sleep(self, now: float, due: float) -> None:
        if due < math.inf:
            await super()._sleep(now, due)
        elif (spacing := self._quota.spacing(now)) < math.inf:
            await self._visit(max(spacing, self._pace.interval), now)
        else:
            await super()._sleep(now, self._quota.ends_at)

    async def _visit(self, spacing: float, now: float) -> None:
        """Take turns for those who wait."""
        if not self._open:
            raise ClientStateError("a RedisRateLimiter with a URL is used inside `async with` only")
        if now < self._away_until <= now + 1 and not self._waits:
            raise RedisUnavailableError("Redis did not answer a moment ago")
        arguments = self._shared.ask(len(self._line) + 1, spacing, now)
        sent_at = self._clock.now()
        try:
            reply = await self._link.call(self._script, [self._link.key()], arguments)
        except RedisUnavailableError:
            self._away_until = self._clock.now() + 1
            if not self._waits:
                raise
            await anyio.sleep(self._link.retry_in)
            return
        received_at = self._clock.now()
        paused_until = self._shared.take(reply, spacing, sent_at, received_at)
        if self._shared.forgot:
            self._link.tell(RedisStateLost, until=paused_until)
        if paused_until > received_at:
            self._paused_until = max(self._paused_until, paused_until)
        self._check_clock()
        if self._shared.retry_in:
            await anyio.sleep(min(self._shared.retry_in, self._pace.horizon / 20))
        else:
            await checkpoint_if_cancelled()

    def _check_clock(self) -> None:
        """If no answer came fast enough to know Redis' clock as well as the promise needs, say so, after some tries."""
        allowed = self._shared.tolerance
        self._strange = self._strange + 1 if self._shared.doubt >= allowed else 0
        if self._strange >= 20:
            self._strange = 0
            trip = f"takes {self._shared.doubt:.3g} s to answer at best"
            raise RedisUnavailableError(f"Redis {trip}; a window of {self.window:.3g} s allows {allowed:.3g} s")
