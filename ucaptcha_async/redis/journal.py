"""One journal for many processes and machines, kept in Redis (extra `redis`).

The rules are those of every journal (`journal/ledger.py`), applied here to rows that were read from Redis. A batch of
changes is written by one script, if none of the rows and keys that it was decided on has changed meanwhile; else it
is decided again. Each attempt has a number, which Redis keeps with the owner's lease: whoever misses the answer learns
which attempt was written.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
import attrs
from anyio.lowlevel import checkpoint_if_cancelled

from ucaptcha_async.checks import Seconds, seconds
from ucaptcha_async.errors import ClientStateError, JournalError
from ucaptcha_async.journal import Claim, ClaimKind, Entry, State
from ucaptcha_async.journal.ledger import Abandoned, Begin, Book, Change, Released, Row, TakeUp, is_free
from ucaptcha_async.journal.records import HOLDS_KEY, OPEN, parsed
from ucaptcha_async.journal.reporting import Reporting
from ucaptcha_async.json_values import JSON, NumericId

from .batches import Batching, Order
from .scripts import ACCEPT, FAITHFUL, new_token, text
from .store import Client, RedisHook, RedisStateLost, RedisUnavailableError

_PAGE = 500
_TRIES = 30

# KEYS: the state, rows by id, ids by key, ids in order of writing, ids of open rows by account, leases of owners.
_SIZES = """
local function sizes()
  return redis.call('HLEN', KEYS[2]) .. ' ' .. redis.call('HLEN', KEYS[3]) .. ' ' .. redis.call('ZCARD', KEYS[4])
    .. ' ' .. redis.call('ZCARD', KEYS[5]) .. ' ' .. redis.call('HLEN', KEYS[6])
end
"""

_HEAD = (
    FAITHFUL
    + _SIZES
    + """
local lease, life, owner = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local generation, lost, count = mark(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))
if (redis.call('HGET', KEYS[1], 'sizes') or '0 0 0 0 0') ~= sizes() then  -- a key of this journal is gone alone
  lost = true
  redis.call('HSET', KEYS[1], 'lost', '1')
end
local written = string.match(redis.call('HGET', KEYS[6], owner) or '', ' (.+)') or ''
local function renew(leaving)
  if leaving then
    redis.call('HDEL', KEYS[6], owner)
  else
    redis.call('HSET', KEYS[6], owner, string.format('%.0f %s', now + lease, written))
  end
  redis.call('HSET', KEYS[1], 'count', count, 'sizes', sizes())
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end
end
"""
)

LOAD = (
    _HEAD
    + """
local wanted, alive, rows, holders = cjson.decode(ARGV[8]), {}, {}, {}
local owners = redis.call('HGETALL', KEYS[6])
for i = 1, #owners, 2 do
  local ends = tonumber(string.match(owners[i + 1], '%d+'))
  -- While Redis was down nobody could renew a lease.
  if ends > now or uptime < lease then alive[#alive + 1] = owners[i] end
  if ends < now - 86400000000 then redis.call('HDEL', KEYS[6], owners[i]) end
end
renew(ARGV[9] == '1')
for i, id in ipairs(wanted[1]) do rows[i] = redis.call('HGET', KEYS[2], id) or '' end
for i, name in ipairs(wanted[2]) do
  local id = redis.call('HGET', KEYS[3], name)
  holders[i] = {id or '', id and redis.call('HGET', KEYS[2], id) or ''}
end
return {generation, run, count, lost and '1' or '0', string.format('%.0f', now), written, alive, rows, holders}
"""
)

COMMIT = (
    _HEAD
    + """
local change = cjson.decode(ARGV[9])
for id, row in pairs(change.rows) do
  if (redis.call('HGET', KEYS[2], id) or '') ~= row then return {generation, run, count, 'conflict'} end
end
for name, id in pairs(change.keys) do
  if (redis.call('HGET', KEYS[3], name) or '') ~= id then return {generation, run, count, 'conflict'} end
end
if lost and change.begins then return {generation, run, count, 'lost'} end
for _, put in ipairs(change.put) do
  local id, row, open, shut = put[1], put[2], put[3], put[4]
  if redis.call('HSET', KEYS[2], id, row) == 1 then
    redis.call('ZADD', KEYS[4], redis.call('HINCRBY', KEYS[1], 'last', 1), id)
  end
  if open ~= '' then redis.call('ZADD', KEYS[5], 0, open) end
  if shut ~= '' then redis.call('ZREM', KEYS[5], shut) end
end
for _, drop in ipairs(change.drop) do
  redis.call('HDEL', KEYS[2], drop[1])
  redis.call('ZREM', KEYS[4], drop[1])
  redis.call('ZREM', KEYS[5], drop[2])
end
for _, free in ipairs(change.free) do
  if redis.call('HGET', KEYS[3], free[1]) == free[2] then redis.call('HDEL', KEYS[3], free[1]) end
end
for name, id in pairs(change.hold) do redis.call('HSET', KEYS[3], name, id) end
if ARGV[8] ~= '' then written = ARGV[8] end
count = count + 1
renew()
return {generation, run, count, 'written'}
"""
)

LIST = """
local found = redis.call('ZRANGEBYSCORE', KEYS[4], ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[2]))
local reply = {}
for i = 1, #found, 2 do reply[#reply + 1] = {found[i], redis.call('HGET', KEYS[2], found[i]) or '', found[i + 1]} end
return reply
"""

OPEN_ROWS = """
local reply = {}
for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[5], ARGV[1], ARGV[2], 'LIMIT', 0, tonumber(ARGV[3]))) do
  local id = string.match(member, ' (.+)')
  reply[#reply + 1] = {id, redis.call('HGET', KEYS[2], id) or '', member}
end
return reply
"""

ACCEPT_SCRIPT = ACCEPT + _SIZES + "redis.call('HSET', KEYS[1], 'sizes', sizes())"


class _Page(Book):
    """The rows that one batch is about, as they were read."""

    def __init__(self, owner: str, alive: Iterable[str]) -> None:
        super().__init__(owner)
        self.now = 0.0
        self.lost = False
        self.living = {owner, *alive}
        self.rows: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.touched: dict[str, Row] = {}
        self.dropped: dict[str, Row] = {}

    def load(self, submit_id: str, raw: str) -> None:
        """Take in a row, or that there is none."""
        self.rows[submit_id] = raw
        if raw and submit_id not in self.by_id:
            super().put(_row(submit_id, raw))

    def put(self, row: Row) -> None:
        """Keep the row, to be written."""
        super().put(row)
        self.touched[row.submit_id] = row

    def drop(self, row: Row) -> None:
        """Remove the row."""
        super().drop(row)
        self.touched.pop(row.submit_id, None)
        self.dropped[row.submit_id] = row

    def alive(self, owner: str) -> bool:
        """Whether the owner's lease has not ended."""
        return owner in self.living

    def change(self, *, begins: bool) -> str:
        """What is to be written, and on which condition."""
        put = [[i, _raw(r), *((_open(r), "") if r.state in OPEN else ("", _open(r)))] for i, r in self.touched.items()]
        gone = [r for r in (*self.touched.values(), *self.dropped.values()) if r.key is not None]
        hold = {_name(*pair): row.submit_id for pair, row in self.by_key.items() if row.submit_id in self.touched}
        free = [[_name(r.account, r.key), r.submit_id] for r in gone if self._gave_up(r)]
        change = {
            "rows": self.rows,
            "keys": self.keys,
            "put": put,
            "drop": [[i, _open(r)] for i, r in self.dropped.items() if self.rows.get(i)],
            "free": free,
            "hold": hold,
            "begins": begins,
        }
        return json.dumps(change)

    def _gave_up(self, row: Row) -> bool:
        """Whether a row holds its key no more."""
        return row.submit_id in self.dropped or row.state not in HOLDS_KEY


class RedisJournal(Batching[Change], Reporting):
    """A [`Journal`][ucaptcha_async.journal.Journal] in Redis, which all processes with the same `name` share.

    It is opened with `async with` before the clients that use it. A key is submitted once by all together. What a
    process is answerable for is its own as long as it renews its lease; what a dead process left is taken up by
    whoever asks first after that.

    What Redis has confirmed is as durable as its settings: `appendonly yes` with `appendfsync always` loses nothing;
    with `everysec` a crash of its machine loses up to a second, with snapshots alone up to minutes, and a replica that
    takes over may lack the last changes. Its `maxmemory-policy` must be `noeviction`. A loss that shows (a generation
    is gone, or changes that a living process has seen) stops all new submits with a `JournalError` until you call
    `accept_loss`.

    While Redis is away, `begin` fails after `patience`, so that nothing is submitted; reports are kept in memory and
    written when it is back.

    Args:
        redis: The URL of a Redis (`redis://`, `rediss://`, `unix://`), or a `coredis.Redis` or `coredis.RedisCluster`
            that is open while the journal is used.
        name: Whoever uses the same name shares the journal.
        store_solutions: Keep solutions, so that finished keys are answered with them. They are secrets.
        create: Whether to begin anew if Redis knows no journal of this name. With `False` that counts as a loss: for
            programs that are never the first.
        lease: Seconds (or a `timedelta`) after which a silent process counts as dead.
        linger: The shortest time between two batches, in seconds: what happens meanwhile goes in one. A process that
            does less does not wait; one that does more spends less on Redis.
        timeout: How long Redis may take to connect, or to answer, in seconds.
        patience: How long `begin`, and reports that are left at the end, wait for a Redis that is away, in seconds;
            `math.inf` for ever.
        expires: Seconds (or a `timedelta`) without any use after which Redis forgets the journal. Default: 30 days.
        on_event: Called with a `RedisAway`, `RedisBack` or `RedisStateLost`.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    _what: ClassVar[str] = "journal"

    def __init__(
        self,
        redis: str | Client,
        *,
        name: str = "default",
        store_solutions: bool = False,
        create: bool = True,
        lease: Seconds = 30.0,
        linger: Seconds = 0.15,
        timeout: Seconds = 1.0,
        patience: Seconds = 5.0,
        expires: Seconds = 30 * 86_400.0,
        on_event: RedisHook | None = None,
    ) -> None:
        Batching.__init__(self, redis, name, timeout, lease, linger, on_event)
        Reporting.__init__(self, store_solutions=store_solutions)
        self._patience = seconds("patience", patience, allow_inf=True)
        self._expires = seconds("expires", expires, minimum=3600.0)
        self._stamp.generation = "" if create else "?"
        register = self._link.client.register_script
        self._load, self._commit, self._list = register(LOAD), register(COMMIT), register(LIST)
        self._open_rows, self._accept = register(OPEN_ROWS), register(ACCEPT_SCRIPT)
        parts = ("", ":rows", ":keys", ":order", ":open", ":owners")
        self._keys = [self._link.key(part) for part in parts]
        self._lost = False
        # The open rows of this process as they were written, and what to add to our clock for Redis' time.
        self._own: dict[str, str] = {}
        self._offset: float | None = None
        # The attempts to write the batch at hand, and what they answer if they were written.
        self._attempts: dict[str, Sequence[Any]] = {}

    async def __aenter__(self) -> Self:
        """Open the connection to Redis, if a URL was given, and begin to renew the lease."""
        await Batching.__aenter__(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, let go of the rows, and close.

        Raises:
            JournalError: Reports could not be written.
        """
        await Batching.__aexit__(self, kind, error, trace)
        if lost := len(self._queue) + len(self._batch):
            self._queue.clear()
            self._batch = []
            raise self._failure(f"{lost} reports could not be written")

    async def open(self) -> None:
        """Get ready: for clients, inside the `async with` that opened the journal.

        Raises:
            ClientStateError: The journal is not open.
        """
        self._check_open()

    async def aclose(self) -> None:
        """Nothing: the journal ends with its own `async with`."""

    def _begin(self) -> None:
        super()._begin()
        self._offset = None  # the next event loop's clock may start anywhere
        self._own.clear()

    async def _write(self, change: Change) -> object:
        self._check_open()
        if isinstance(change, Begin | TakeUp):
            await checkpoint_if_cancelled()
        order = self._order(change)
        if not isinstance(change, Begin | TakeUp):
            if self.is_away:
                raise self._failure("Redis is away; the report is kept in memory")
            return await self._answer(order)
        try:
            with anyio.fail_after(self._patience if self._patience < math.inf else None):
                return await self._answer(order)
        except TimeoutError:
            raise self._failure("Redis does not answer") from None

    def _desert(self, order: Order[Change]) -> None:
        if isinstance(order.what, Begin | TakeUp):
            super()._desert(order)  # reports are written in any case

    def _orphaned(self, order: Order[Change]) -> None:
        answer = order.answer
        if isinstance(answer, Claim) and answer.kind is ClaimKind.NEW:
            self._order(Released(answer.submit_id), first=True)
        elif isinstance(answer, Entry) or (isinstance(answer, Claim) and answer.mine):
            self._order(Abandoned(answer.submit_id), first=True)

    def _postponed(self, error: RedisUnavailableError) -> None:
        for order in (*self._batch, *self._queue):
            if not isinstance(order.what, Begin | TakeUp) and not order.done.is_set():
                order.error = self._failure(f"{error.message}; the report is kept in memory")
                order.done.set()

    async def _send(self, orders: Sequence[Change], number: int) -> Sequence[Any]:
        if not orders:
            await self._read([], [])
            return []
        for attempt in range(_TRIES):
            answers = await self._attempt(orders, f"{self._token}.{number}")
            if answers is not None:
                self._attempts.clear()
                return answers
            await anyio.sleep(random.random() * 0.002 * attempt)
        raise RedisUnavailableError("Redis was too busy with the same keys")

    async def _attempt(self, orders: Sequence[Change], number: str) -> Sequence[Any] | None:
        """Decide on a batch, and write it; `None` if others were faster."""
        ids = list({change.submit_id for change in orders})
        names = list({change.holds for change in orders if change.holds is not None})
        page = None if self._attempts else self._guess(orders)
        if page is None:
            page, written = await self._read(ids, names)
            if written in self._attempts:
                return self._attempts[written]
        answers = [self._decide(change, page) for change in orders]
        attempt = f"{number}.{len(self._attempts)}"
        self._attempts[attempt] = answers
        begins = any(isinstance(change, Begin) for change in orders) and not page.lost
        return answers if await self._save(page, attempt, begins=begins) else None

    def _guess(self, orders: Sequence[Change]) -> _Page | None:
        """What Redis most likely has, to be written at once: our own rows as we know them, and keys that are free."""
        if self._offset is None or self._lost:
            return None
        page = _Page(self._token, ())
        page.now = anyio.current_time() + self._offset
        for change in orders:
            if isinstance(change, Begin) and change.submit_id not in self._own:
                page.load(change.submit_id, "")
            elif change.submit_id in self._own:
                page.load(change.submit_id, self._own[change.submit_id])
            elif change.submit_id not in page.rows:
                return None
            if change.holds is not None:
                page.keys[_name(*change.holds)] = ""
        return page

    def _decide(self, change: Change, page: _Page) -> object:
        if page.lost and isinstance(change, Begin):
            return self._failure("Redis has lost a part of it; see accept_loss()", retryable=False)
        try:
            return change.apply(page, page.now)
        except JournalError as error:
            return error

    async def _read(
        self, ids: Sequence[str], names: Sequence[tuple[str, str]], *, leaving: bool = False
    ) -> tuple[_Page, str]:
        """The rows of some ids and of the holders of some keys; and the latest attempt of ours that was written."""
        words = [_name(*pair) for pair in names]
        wanted = json.dumps([ids, words])
        reply = await self._link.call(self._load, self._keys, [*self._head(), wanted, int(leaving)])
        now, written, alive, rows, holders = self._hear(reply)
        page = _Page(self._token, map(text, alive))
        page.now, page.lost = float(now) / 1e6, self._lost
        self._offset = page.now - anyio.current_time()
        for submit_id, raw in zip(ids, rows, strict=True):
            page.load(submit_id, text(raw))
        for word, (submit_id, raw) in zip(words, holders, strict=True):
            page.keys[word] = text(submit_id)
            if submit_id:
                page.load(text(submit_id), text(raw))
        return page, text(written)

    async def _save(self, page: _Page, attempt: str, *, begins: bool) -> bool:
        if not page.touched and not page.dropped:
            return True
        change = page.change(begins=begins)
        # Should the answer be lost, nothing is known any more.
        for submit_id in page.rows:
            self._own.pop(submit_id, None)
        generation, run, count, outcome = await self._link.call(
            self._commit, self._keys, [*self._head(), attempt, change]
        )
        self._stamp.see(text(generation), text(run), int(count))
        if text(outcome) != "written":
            return False
        for row in (*page.touched.values(), *page.dropped.values()):
            if row.owner == self._token and row.state in OPEN and row.submit_id in page.touched:
                self._own[row.submit_id] = _raw(row)
            else:
                self._own.pop(row.submit_id, None)
        return True

    def _head(self) -> list[str | int | float]:
        stamp = self._stamp
        life = math.ceil(self._expires * 1000)
        return [stamp.generation, new_token(), stamp.run, stamp.count, self._lease * 1e6, life, self._token]

    def _hear(self, reply: Sequence[Any]) -> Sequence[Any]:
        generation, run, count, state, *rest = reply
        lost = text(state) == "1"
        changed = self._stamp.see(text(generation), text(run), int(count))
        if lost and not self._lost:
            self._link.tell(RedisStateLost, until=math.inf)
        elif changed and not self._lost:
            self._link.tell(RedisStateLost, until=anyio.current_time())
        self._lost = lost
        return rest

    def _farewell(self) -> float:
        return max(super()._farewell(), self._patience)

    async def _leave(self) -> None:
        await super()._leave()
        if not self.is_away:
            try:
                await self._read([], [], leaving=True)
            except RedisUnavailableError:
                return  # the lease ends by itself

    async def accept_loss(self) -> None:
        """Go on with what Redis has, for all processes: tasks and keys that it does not know are given up.

        Raises:
            JournalError: Redis does not answer.
        """
        self._check_open()
        await self._call(self._accept, [new_token(), math.ceil(self._expires * 1000)])
        self._visited_at = -math.inf
        self._wake()

    async def open_entries(self, account: str) -> list[Entry]:
        """What is open and not worked on by a living process, oldest first."""
        self._check_open()
        entries: list[Entry] = []
        after, last = f"[{account} ", f"({account}!"
        while after:
            found = await self._call(self._open_rows, [after, last, _PAGE])
            after = f"({text(found[-1][2])}" if found else ""
            try:
                page, _ = await self._read([text(line[0]) for line in found], [])
            except RedisUnavailableError as error:
                raise self._failure(error.message) from error
            rows = [row for row in page.by_id.values() if row.state in OPEN and is_free(page, row)]
            entries += [row.entry(State.UNCERTAIN if row.state is State.INTENT else None) for row in rows]
        return sorted(entries, key=lambda entry: entry.submit_id)

    async def solution_for(self, account: str, key: str) -> Mapping[str, JSON] | None:
        """The stored solution of a finished job."""
        self._check_open()
        try:
            page, _ = await self._read([], [(account, key)])
        except RedisUnavailableError as error:
            raise self._failure(error.message) from error
        holder = page.holder(account, key)
        return None if holder is None else parsed(holder.solution)

    async def entries(
        self, *, account: str | None = None, states: Collection[State] | None = None
    ) -> AsyncIterator[Entry]:
        """All rows, oldest first, without their solutions. Reads some hundred at a time."""
        self._check_open()
        async for row in self._rows():
            if account in (None, row.account) and (states is None or row.state in states):
                yield attrs.evolve(row.entry(), solution=None)

    async def prune(self, before: float) -> int:
        """Remove rows that have ended and were last changed before this wall time (Unix seconds)."""
        self._check_open()
        old = [row.submit_id async for row in self._rows() if row.state not in OPEN and row.updated_at < before]
        removed = 0
        for start in range(0, len(old), _PAGE):
            try:
                page, _ = await self._read(old[start : start + _PAGE], [])
                for row in list(page.by_id.values()):
                    page.drop(row)
                removed += len(page.dropped) if await self._save(page, "", begins=False) else 0
            except RedisUnavailableError as error:
                raise self._failure(error.message) from error
        return removed

    async def _rows(self) -> AsyncIterator[Row]:
        after = "-inf"
        while after:
            found = await self._call(self._list, [after, _PAGE])
            after = f"({float(found[-1][2]):.0f}" if found else ""
            for submit_id, raw, _ in found:
                if raw:
                    yield _row(text(submit_id), text(raw))

    async def _call(self, script: Any, arguments: Sequence[str | int | float]) -> Any:
        try:
            return await self._link.call(script, self._keys, arguments)
        except RedisUnavailableError as error:
            raise self._failure(error.message) from error

    def _check_open(self) -> None:
        if self._stack is None:
            raise ClientStateError("the journal is not open: use a RedisJournal inside `async with`")

    def _failure(self, reason: str, *, retryable: bool = True) -> JournalError:
        return JournalError(f"the journal {self._link.name!r} failed: {reason}", retryable=retryable)


def _name(account: str, key: str | None) -> str:
    return json.dumps([account, key])


def _open(row: Row) -> str:
    return f"{row.account} {row.submit_id}"


def _raw(row: Row) -> str:
    task_id = [row.task_id, 1] if isinstance(row.task_id, NumericId) else row.task_id
    start = [row.account, row.host, row.key, row.type, row.state, row.owner, task_id]
    end = [row.cost, row.error_code, row.solve_time, row.created_at, row.updated_at, row.solution, row.context]
    return json.dumps([*start, *end])


def _row(submit_id: str, raw: str) -> Row:
    account, host, key, kind, state, owner, task_id, *end = json.loads(raw)
    task_id = NumericId(task_id[0]) if isinstance(task_id, list) else task_id
    return Row(submit_id, account, host, key, kind, State(state), owner, task_id, *end)
