"""One budget for many processes and machines, kept in Redis (extra `redis`).

Each decision is one script. Amounts are exact: whole USD and whole picodollars (1e-12 USD) apart, since the numbers of
a script hold 53 bits. What a dead process had reserved counts as spent once its lease has ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_UP, Context, Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import anyio
import attrs

from ucaptcha_async.budget import DEFAULT_ESTIMATE, BudgetStatistics, Money, amount, estimates, priced_as
from ucaptcha_async.checks import Seconds, seconds, wrong
from ucaptcha_async.errors import BudgetExceededError, ConfigurationError, UCaptchaError
from ucaptcha_async.pacing.wait_queue import WaitQueue

from .batches import Batching, Order
from .scripts import ACCEPT, FAITHFUL, new_token, text
from .store import Client, RedisHook, RedisStateLost, RedisStateLostError, RedisUnavailableError

_ZERO = Decimal(0)
_PLACES = Decimal("1e-12")
_MOST = Decimal("1e12")
_ROUNDED_UP = Context(prec=60, rounding=ROUND_UP, traps=[])
_POLL = 0.25

AMOUNTS = """
-- Exact amounts: {USD, picodollars}.
local UNIT = 1000000000000
local ZERO = {0, 0}
local function parse(amount)
  local whole, rest = string.match(amount, '^(%d+)%.(%d+)$')
  return {tonumber(whole), tonumber(rest)}
end
local function show(amount) return string.format('%.0f.%012.0f', amount[1], amount[2]) end
local function above(a, b) return a[1] > b[1] or (a[1] == b[1] and a[2] > b[2]) end
local function larger(a, b) return above(a, b) and a or b end
local function plus(a, b)
  local whole, rest = a[1] + b[1], a[2] + b[2]
  if rest >= UNIT then whole, rest = whole + 1, rest - UNIT end
  return {whole, rest}
end
local function minus(a, b)
  local whole, rest = a[1] - b[1], a[2] - b[2]
  if rest < 0 then whole, rest = whole - 1, rest + UNIT end
  return {whole, rest}
end
"""

SCRIPT = (
    FAITHFUL
    + AMOUNTS
    + """
local limit, hourly, default = ARGV[5], ARGV[6], ARGV[7]
local lease, life = tonumber(ARGV[8]), tonumber(ARGV[9])
local owner, number, orders = ARGV[10], tonumber(ARGV[11]), cjson.decode(ARGV[12])
local second = math.floor(now / 1000000)

local generation, lost, count = mark(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))
local seen = tonumber(string.match(redis.call('HGET', KEYS[4], owner) or '', ' (%-?%d+)') or -1)
if number < seen then return {generation, run, count, 'stale'} end

-- Another key of this object may be gone alone.
local function sizes()
  return redis.call('HLEN', KEYS[2]) .. ' ' .. redis.call('ZCARD', KEYS[3]) .. ' ' .. redis.call('HLEN', KEYS[4])
end
if (redis.call('HGET', KEYS[1], 'sizes') or '0 0 0') ~= sizes() then
  lost = true
  redis.call('HSET', KEYS[1], 'lost', '1')
end

local amounts, changed = {}, {}
local function get(field)
  if not amounts[field] then
    local value = redis.call('HGET', KEYS[1], field)
    amounts[field] = value and parse(value) or ZERO
  end
  return amounts[field]
end
local function set(field, value)
  amounts[field], changed[field] = value, true
end

-- The sliding hour, in seconds.
local function within_hour(at, operation, value)
  if at <= second - 3601 then return end
  local found = redis.call('ZRANGEBYSCORE', KEYS[3], at, at)[1]
  local before = ZERO
  if found then
    before = parse(string.match(found, ' (.+)'))
    redis.call('ZREM', KEYS[3], found)
  end
  redis.call('ZADD', KEYS[3], at, string.format('%d %s', at, show(operation(before, value))))
  set('in_hour', operation(get('in_hour'), value))
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', second - 3601)) do
  set('in_hour', minus(get('in_hour'), parse(string.match(old, ' (.+)'))))
  redis.call('ZREM', KEYS[3], old)
end

local function spend(kind, value)
  set('spent', plus(get('spent'), value))
  set('by:' .. kind, plus(get('by:' .. kind), value))
  within_hour(second, plus, value)
end
local open = tonumber(redis.call('HGET', KEYS[1], 'open') or 0)
local function find(id)
  local found = redis.call('HGET', KEYS[2], id)
  return found and cjson.decode(found)
end
local function keep(id, record)
  redis.call('HSET', KEYS[2], id, cjson.encode(record))
end
-- End a reservation that is open (o), or correct one that was kept (k).
local function finish(record)
  local value = parse(record[4])
  if record[1] == 'o' then
    open = open - 1
    set('reserved', minus(get('reserved'), value))
  else
    set('spent', minus(get('spent'), value))
    set('by:' .. record[3], minus(get('by:' .. record[3]), value))
    within_hour(record[5], minus, value)
  end
end
local function reserve(id, kind, value)
  open = open + 1
  set('reserved', plus(get('reserved'), value))
  keep(id, {'o', owner, kind, show(value), second})
end

-- If processes have different limits the strictest holds for all, as long as its process lives.
local function stricter(a, b)
  if a == '-' or b == '-' then return a == '-' and b or a end
  return above(parse(a), parse(b)) and b or a
end
local bounds = redis.call('HMGET', KEYS[1], 'limit', 'hourly')
bounds = {bounds[1] or '-', bounds[2] or '-'}

-- Who has died: its reservations count as spent. What was kept a day ago is not corrected any more.
if now > tonumber(redis.call('HGET', KEYS[1], 'sweep') or 0) then
  local owners, dead = redis.call('HGETALL', KEYS[4]), {}
  bounds = {'-', '-'}
  for i = 1, #owners, 2 do
    local ends, total, hour = string.match(owners[i + 1], '^(%d+) %-?%d+ (%S+) (%S+)')
    if owners[i] == owner then
      -- What it says now counts.
    elseif tonumber(ends) <= now then
      dead[owners[i]] = true
      redis.call('HDEL', KEYS[4], owners[i])
    else
      bounds = {stricter(bounds[1], total), stricter(bounds[2], hour)}
    end
  end
  if next(dead) then
    local records = redis.call('HGETALL', KEYS[2])
    for i = 1, #records, 2 do
      local record = cjson.decode(records[i + 1])
      if record[1] == 'o' and dead[record[2]] then
        finish(record)
        spend(record[3], parse(record[4]))
        keep(records[i], {'k', record[2], record[3], record[4], second})
      elseif record[1] == 'k' and record[5] < second - 86400 then
        redis.call('HDEL', KEYS[2], records[i])
      end
    end
  end
  redis.call('HSET', KEYS[1], 'sweep', string.format('%.0f', now + lease / 4))
end
redis.call('HSET', KEYS[4], owner, string.format('%.0f %d %s %s', now + lease, number, limit, hourly))
bounds = {stricter(bounds[1], limit), stricter(bounds[2], hourly)}

local function room(id, kind, given)
  local highest = get('high:' .. kind)
  local estimate = larger(given ~= '' and parse(given) or ZERO, highest)
  if given == '' and not above(highest, ZERO) then estimate = larger(parse(default), get('highest')) end
  for name, bound in pairs({max_spend = bounds[1], max_spend_per_hour = bounds[2]}) do
    local spent = get(name == 'max_spend' and 'spent' or 'in_hour')
    if bound ~= '-' and above(plus(plus(spent, get('reserved')), estimate), parse(bound)) then
      local ever = name ~= 'max_spend' or not above(plus(spent, estimate), parse(bound))
      return {'no', name, bound, show(spent), show(get('reserved')), show(estimate), ever and '1' or '0'}
    end
  end
  reserve(id, kind, estimate)
  return {'ok', show(estimate)}
end

local answers, kinds = {}, {}
for i, order in ipairs(orders) do
  local what, id, kind, value = order[1], order[2], order[3], order[4]
  local record, answer = find(id), {'done'}
  if what == 'reserve' then
    if record then
      answer = {'ok', record[4]}
    elseif lost then
      answer = {'lost'}
    else
      answer = room(id, kind, value)
    end
  elseif what == 'again' then
    if not record then reserve(id, kind, parse(value)) end
  elseif record and what == 'release' then
    finish(record)
    redis.call('HDEL', KEYS[2], id)
  elseif record and what == 'keep' then
    if record[1] == 'o' then
      finish(record)
      spend(kind, parse(record[4]))
      keep(id, {'k', owner, kind, record[4], second})
    end
  elseif what == 'settle' and record then
    finish(record)
    spend(kind, value ~= '' and parse(value) or parse(record[4]))
    redis.call('HDEL', KEYS[2], id)
  elseif what == 'spend' and number ~= seen then
    if record then
      finish(record)
      redis.call('HDEL', KEYS[2], id)
    end
    spend(kind, parse(value))
  end
  if (what == 'settle' or what == 'spend') and value ~= '' then
    set('high:' .. kind, larger(parse(value), get('high:' .. kind)))
    set('highest', larger(parse(value), get('highest')))
  end
  kinds[kind] = true
  answers[i] = answer
end

local state = {'open', open, 'sizes', sizes(), 'limit', bounds[1], 'hourly', bounds[2]}
if #orders > 0 then
  count = count + 1
  state[#state + 1] = 'count'
  state[#state + 1] = count
end
for field in pairs(changed) do
  state[#state + 1] = field
  state[#state + 1] = show(amounts[field])
end
redis.call('HSET', KEYS[1], unpack(state))
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end
local by = {}
for kind in pairs(kinds) do by[#by + 1] = {kind, show(get('by:' .. kind)), show(get('high:' .. kind))} end
return {generation, run, count, lost and '1' or '0', show(get('spent')), show(get('reserved')), show(get('in_hour')),
  open, answers, by}
"""
)

ACCEPT_SCRIPT = (
    ACCEPT
    + AMOUNTS
    + """
local open, reserved, in_hour = 0, ZERO, ZERO
for _, line in ipairs(redis.call('HVALS', KEYS[2])) do
  local record = cjson.decode(line)
  if record[1] == 'o' then open, reserved = open + 1, plus(reserved, parse(record[4])) end
end
for _, line in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  in_hour = plus(in_hour, parse(string.match(line, ' (.+)')))
end
redis.call('HSET', KEYS[1], 'open', open, 'reserved', show(reserved), 'in_hour', show(in_hour))
redis.call('HSET', KEYS[1], 'sizes',
  redis.call('HLEN', KEYS[2]) .. ' ' .. redis.call('ZCARD', KEYS[3]) .. ' ' .. redis.call('HLEN', KEYS[4]))
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'spent', ARGV[3]) end
"""
)


@attrs.define(eq=False)
class RedisReservation:
    """Room in a `RedisBudget` for one submit; ended by `settle`, `release` or `keep`.

    Attributes:
        type: The task's type.
        id: Its name in Redis.
        estimate: What is reserved, USD.
    """

    type: str
    id: str
    estimate: Decimal = _ZERO
    fate: str = attrs.field(default="open", repr=False)


class RedisBudget(Batching[list[str]]):
    """A bound on what all processes that use the same Redis and `name` may spend together.

    It decides as a [`Budget`][ucaptcha_async.Budget] does, one after the other for all processes, and is opened with
    `async with` before the clients that use it. What is said by `settle`, `keep` and `release` is sent in small
    batches, and again until Redis has it. The reservations of a process that dies count as spent after its lease; if
    another process takes its tasks up, `spend` with the same `submit_id` puts the real cost in their place.

    Money has no local share: while Redis is away nothing new is reserved. If Redis has lost a part of what it was
    told, nothing is reserved by anybody until you say with `accept_loss` what has been spent.

    Args:
        redis: The URL of a Redis (`redis://`, `rediss://`, `unix://`), or a `coredis.Redis` or `coredis.RedisCluster`
            that is open while the object is used.
        max_spend: USD for the lifetime of `name`. `None`: no limit. If processes disagree the strictest limit that a
            living one gave holds for all.
        max_spend_per_hour: USD within any 60 minutes of Redis' clock. `None`: no limit.
        name: Whoever uses the same name shares the budget.
        estimate: USD to reserve for a task; one amount for all, or amounts by kind or type, as for `Budget`.
        create: Whether to begin with nothing spent if Redis knows no budget of this name. With `False` that counts as
            a loss: for programs that are never the first.
        lease: Seconds (or a `timedelta`) after which the reservations of a silent process count as spent.
        linger: The shortest time between two batches, in seconds: what happens meanwhile goes in one. A process that
            does less does not wait; one that does more spends less on Redis.
        timeout: How long Redis may take to connect, or to answer, in seconds.
        when_away: What `reserve` does while Redis is away: `"wait"` until it is back, or `"refuse"` with a
            `RedisUnavailableError`.
        expires: Seconds (or a `timedelta`) without any use after which Redis forgets the budget. Default: 30 days.
        on_event: Called with a `RedisAway`, `RedisBack` or `RedisStateLost`.

    Raises:
        ConfigurationError: A setting is wrong. Amounts are below 1e12 USD, with at most 12 decimal places.
    """

    _what: ClassVar[str] = "budget"

    def __init__(
        self,
        redis: str | Client,
        max_spend: Money | None = None,
        max_spend_per_hour: Money | None = None,
        *,
        name: str = "default",
        estimate: Money | Mapping[str, Money] | None = None,
        create: bool = True,
        lease: Seconds = 60.0,
        linger: Seconds = 0.15,
        timeout: Seconds = 1.0,
        when_away: Literal["wait", "refuse"] = "wait",
        expires: Seconds = 30 * 86_400.0,
        on_event: RedisHook | None = None,
    ) -> None:
        super().__init__(redis, name, timeout, lease, linger, on_event)
        self.max_spend = None if max_spend is None else _amount("max_spend", max_spend)
        self.max_spend_per_hour = (
            None if max_spend_per_hour is None else _amount("max_spend_per_hour", max_spend_per_hour)
        )
        self._estimates, self._estimate = estimates(estimate, _amount)
        if when_away not in ("wait", "refuse"):
            raise wrong("when_away", when_away, '"wait" or "refuse"', ConfigurationError)
        self._refuses = when_away == "refuse"
        self._expires = seconds("expires", expires, minimum=3600.0)
        self._stamp.generation = "" if create else "?"
        self._script = self._link.client.register_script(SCRIPT)
        self._accept = self._link.client.register_script(ACCEPT_SCRIPT)
        self._keys = [self._link.key(part) for part in ("", ":reservations", ":hour", ":owners")]
        self._open: dict[str, RedisReservation] = {}
        self._line: WaitQueue[None] = WaitQueue(lambda _: self._call_next())
        self._lost = False
        self._refusals = 0
        self._spent = self._reserved = self._in_hour = _ZERO
        self._reservations = 0
        self._by_type: dict[str, Decimal] = {}
        self._highest: dict[str, Decimal] = {}

    def statistics(self) -> BudgetStatistics:
        """What Redis said with the latest visit, of all processes; refusals are those of this one.

        Amounts by type are known for the types that this process has used, as of their latest use.
        """
        return BudgetStatistics(
            spent=self._spent,
            reserved=self._reserved,
            spent_last_hour=self._in_hour,
            reservations=self._reservations,
            refusals=self._refusals,
            spent_by_type=MappingProxyType(dict(self._by_type)),
            highest_by_type=MappingProxyType(dict(self._highest)),
        )

    async def reserve(self, task_type: str, *, submit_id: str | None = None) -> RedisReservation:
        """Make room for one submit.

        Args:
            task_type: The task's type.
            submit_id: Names the reservation, so that whoever takes the task up can settle it with `spend`.

        Raises:
            BudgetExceededError: There is no room. `retryable` tells whether there would be if the submits in flight
                turned out free; `limit`, `spent`, `reserved` and `estimate` are attributes.
            RedisUnavailableError: Redis is away, and `when_away` is `"refuse"`.
            RedisStateLostError: Redis has lost a part of what was spent.
            ClientStateError: The object is not open.
        """
        self._check_open()
        if self._refuses and self.is_away:
            raise RedisUnavailableError("Redis did not answer a moment ago")
        reservation = RedisReservation(task_type, submit_id or new_token())
        given = self._estimates.get(priced_as(task_type), self._estimate)
        order = self._order(["reserve", reservation.id, task_type, "" if given is None else _wire(given)])
        answer, *details = await self._answer(order)
        if answer == "lost":
            raise RedisStateLostError("Redis has lost a part of what was spent; see accept_loss()")
        if answer == "no":
            raise self._no_room(*details)
        reservation.estimate = Decimal(details[0])
        self._open[reservation.id] = reservation
        self._call_next()
        return reservation

    async def settle(self, reservation: RedisReservation, cost: Decimal | None) -> bool:
        """Replace the reservation with the real cost. Also right after `keep`. Does not wait for Redis.

        Args:
            reservation: What `reserve` gave.
            cost: USD; `None`, or not an amount that can be: the service did not say, and the estimate counts.

        Returns:
            `False` if the reservation had ended before; then nothing changes.
        """
        return self._end(reservation, "settle", "" if cost is None or not _is_sane(cost) else _wire(cost))

    async def release(self, reservation: RedisReservation) -> bool:
        """Give the room back: refused, never sent, or failed and refunded. Does not wait for Redis.

        Returns:
            `False` if the reservation had ended before; then nothing changes.
        """
        return self._end(reservation, "release")

    async def keep(self, reservation: RedisReservation) -> bool:
        """Count the estimate as spent: the submit's fate is unknown. Does not wait for Redis.

        Returns:
            `False` if the reservation had ended before; then nothing changes.
        """
        return reservation.fate == "open" and self._end(reservation, "keep")

    async def spend(self, task_type: str, cost: Decimal, *, submit_id: str | None = None) -> None:
        """Count a cost that was not reserved here: of a task that another process paid for. Does not wait for Redis.

        Args:
            task_type: The task's type.
            cost: USD.
            submit_id: The name under which it was reserved, if it was: the cost takes the reservation's place.
        """
        if _is_sane(cost):
            self._order(["spend", submit_id or new_token(), task_type, _wire(cost)])

    async def room(self) -> bool:
        """Wait until there may be room: others were solved, or failed and gave theirs back.

        Returns:
            `False` at once if nothing is reserved, so that no room will come of itself.
        """
        if not self._reservations:
            return False
        self._wake()
        await self._line.wait()
        return True

    async def accept_loss(self, *, spent: Money | None = None) -> None:
        """Go on with what Redis has, for all processes.

        Args:
            spent: What was spent before, USD. Default: what Redis knows.

        Raises:
            RedisUnavailableError: Redis does not answer.
        """
        self._check_open()
        life = math.ceil(self._expires * 1000)
        amount = "" if spent is None else _wire(_amount("spent", spent))
        await self._link.call(self._accept, self._keys, [new_token(), life, amount])
        self._visited_at = -math.inf
        self._wake()

    def _end(self, reservation: RedisReservation, what: str, value: str = "") -> bool:
        if reservation.fate not in ("open", "keep"):
            return False
        reservation.fate = what
        self._open.pop(reservation.id, None)
        self._order([what, reservation.id, reservation.type, value])
        return True

    def _no_room(self, name: str, limit: str, spent: str, reserved: str, estimate: str, ever: str) -> UCaptchaError:
        self._refusals += 1
        most, gone, held, wanted = (_read(each) for each in (limit, spent, reserved, estimate))
        return BudgetExceededError(
            f"{name} of USD {most:f} has no room: spent {gone:f}, reserved {held:f}, this task {wanted:f}",
            retryable=ever == "1",
            limit=most,
            spent=gone,
            reserved=held,
            estimate=wanted,
        )

    def _call_next(self) -> None:
        """Let the first of those who wait for room try; all, if no more will come."""
        if self._reservations:
            self._line.call(None)
        else:
            self._line.call_all(None)

    def _rest(self) -> float:
        return _POLL if self._line else super()._rest()

    async def _send(self, orders: Sequence[list[str]], number: int) -> Sequence[Any]:
        stamp = self._stamp
        limits = ["-" if each is None else _wire(each) for each in (self.max_spend, self.max_spend_per_hour)]
        arguments: list[str | int | float] = [stamp.generation, new_token(), stamp.run, stamp.count, *limits]
        arguments += [_wire(DEFAULT_ESTIMATE), self._lease * 1e6, math.ceil(self._expires * 1000)]
        arguments += [self._token, number, json.dumps(orders)]
        generation, run, count, lost, *rest = await self._link.call(self._script, self._keys, arguments)
        if not rest:
            raise RedisUnavailableError("Redis has heard of later orders")
        self._hear(stamp.see(text(generation), text(run), int(count)), text(lost) == "1")
        spent, reserved, in_hour, self._reservations, answers, kinds = rest
        self._spent, self._reserved, self._in_hour = (_read(each) for each in (spent, reserved, in_hour))
        for kind, by, highest in kinds:
            self._by_type[text(kind)], self._highest[text(kind)] = _read(by), _read(highest)
        self._call_next()
        return [[text(each) for each in answer] for answer in answers]

    def _hear(self, changed: bool, lost: bool) -> None:
        if changed:
            # What is open here counts again, whatever was lost.
            for each in self._open.values():
                self._order(["again", each.id, each.type, _wire(each.estimate)])
        if (lost and not self._lost) or (changed and not lost and not self._lost):
            self._link.tell(RedisStateLost, until=math.inf if lost else anyio.current_time())
        self._lost = lost

    def _postponed(self, error: RedisUnavailableError) -> None:
        if not self._refuses:
            return
        waiting = [order for order in (*self._batch, *self._queue) if order.what[0] == "reserve"]
        for order in waiting:
            self._desert(order)
            order.error = RedisUnavailableError(error.message)
            order.done.set()

    def _orphaned(self, order: Order[list[str]]) -> None:
        what, reservation, kind, _ = order.what
        if what == "reserve" and order.answer[0] == "ok":
            self._order(["release", reservation, kind, ""], first=True)


def _amount(field: str, value: Money) -> Decimal:
    number = amount(field, value)
    if not _is_sane(number) or number != number.quantize(_PLACES, context=_ROUNDED_UP):
        raise wrong(field, value, "an amount of USD below 1e12, with at most 12 decimal places", ConfigurationError)
    return number


def _is_sane(number: Decimal) -> bool:
    return number.is_finite() and 0 <= number < _MOST


def _wire(number: Decimal) -> str:
    """Exactly twelve decimal places; what is smaller is rounded up."""
    return format(number.quantize(_PLACES, context=_ROUNDED_UP), "f")


def _read(amount: str | bytes) -> Decimal:
    return _ROUNDED_UP.add(_ROUNDED_UP.normalize(Decimal(text(amount))), 0)
