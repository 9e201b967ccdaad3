"""One process of a world: a client, and the users who call it."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import httpcore2
import httpx2

from ucaptcha_async import (
    AccountError,
    AsyncClient,
    Budget,
    ClientStatistics,
    Job,
    Prefetch,
    PrefetchStatistics,
    RateLimiter,
    SolveTimeoutError,
    Task,
    UCaptchaError,
)
from ucaptcha_async.events import Event
from ucaptcha_async.journal import Claim, MemoryJournal

from .calls import Call, Heard, current, task_for
from .diary import Diary
from .plan import Life, Work
from .streams import Backend, connector

if TYPE_CHECKING:
    from .world import World

KEY = "ucap_0123456789abcdef0123456789abcdef"
CONTEXT = ssl.create_default_context()  # nobody uses it; making one for each world costs more than the world


LIFETIME = 120.0
"""Seconds that a token from a stock is good for; a third of it must be left."""


@attrs.frozen
class Stock:
    """What came of a stock of tokens."""

    work: Work
    statistics: PrefetchStatistics
    unused: tuple[str | None, ...]


@attrs.define(eq=False)
class Process:
    """One life of a program.

    Attributes:
        world: The world.
        number: Its number among all processes.
        end: How it ends, if not by running out of work.
        dead: Whether it was killed.
        calls: What its users asked for.
        spent: What the client said it had spent, at its end.
        abandoned: What the client said was abandoned, at its end.
        budget: Its budget.
        statistics: The client's, at an orderly end.
        unwritten: What it counts for solutions that it is about to write down.
        stocks: What came of its stocks of tokens.
    """

    world: World
    number: int
    end: Life
    journal: MemoryJournal | None
    dead: bool = False
    died_at: float | None = None
    calls: list[Call] = attrs.field(factory=list)
    spent: Decimal = Decimal(0)
    abandoned: tuple[str, ...] = ()
    budget: Budget | None = None
    statistics: ClientStatistics | None = None
    unwritten: list[Decimal] = attrs.field(factory=list)
    stocks: list[Stock] = attrs.field(factory=list)
    on_crash: Callable[[], None] = lambda: None
    _client: AsyncClient = attrs.field(init=False)
    _users_own: Any = None
    _limiter: RateLimiter = attrs.field(init=False)
    _scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    _writes: int = 0  # of the step at which it dies

    def __attrs_post_init__(self) -> None:
        plan = self.world.plan
        if plan.budget is not None:
            self.budget = Budget(max_spend=plan.budget)
        self._limiter = self.world.limiter or RateLimiter(plan.limit, plan.window)
        self._client = AsyncClient(
            KEY,
            base_url="http://127.0.0.1:8080",
            timeout=100_000,
            http_client=self._pooled() if plan.injected else None,
            transport=plan.library,
            ssl_context=CONTEXT,
            max_connections=plan.connections,
            request_timeout=plan.request_timeout,
            rate_limit=self._limiter,
            max_in_flight=plan.in_flight,
            polling=plan.polling,
            on_uncertain=plan.on_uncertain,
            cancel_grace=plan.cancel_grace,
            journal=None if self.journal is None else Diary(self.journal, self),
            budget=self.budget,
            breaker_reset=plan.breaker_reset,
            on_event=self._hear,
        )
        _put_in(self._client, self, Random(f"{plan.seed}:{self.number}"))

    def _pooled(self) -> Any:
        """A client of the user's own, with a stock pool of connections."""
        backend = Backend(self.world.network, self, httpcore2)
        transport = httpx2.AsyncHTTPTransport(verify=CONTEXT, trust_env=False)
        transport._pool = httpcore2.AsyncConnectionPool(
            max_connections=self.world.plan.connections,
            keepalive_expiry=None,
            network_backend=backend,  # type: ignore[arg-type]
        )
        self._users_own = httpx2.AsyncClient(transport=transport, timeout=None, trust_env=False)
        return self._users_own

    # What the world asks

    def step(self, name: str) -> str | None:
        """Something happens in the call that runs now. Its user may give up at just this moment."""
        call = current.get()
        if call is None or self.dead:
            return None
        call.steps += 1
        if call.steps == call.work.cancel_step and not call.patient:
            self.world.fired[f"cancelled_as_it_{name}"] += 1
            call.cancel()
        return call.work.name

    def call(self) -> Call | None:
        """The call that runs now."""
        return current.get()

    def journal_is_gone(self) -> bool:
        """Whether the journal's file has vanished."""
        return self.world.journal_is_gone()

    def paused_until(self) -> float | None:
        """When the limiter's pause ends."""
        return self._limiter.statistics().paused_until

    def reset_breaker(self) -> None:
        """Someone has paid the bill."""
        self._client.reset_breaker()

    def writes(self, name: str, *, done: bool) -> None:
        """A step of the journal: the process may die of it."""
        self.step("writes")
        self.world.fired["journal_vanished"] += name.endswith("_in_vain")
        self._writes += name == self.end.crash_step and not done
        if name == self.end.crash_step and self._writes == self.end.crash_count and done == self.end.crash_after:
            self.world.fired[f"crashed_{'after' if done else 'before'}_{name}"] += 1
            self.crash()

    def began(self, claim: Claim) -> None:
        """The journal has given a row to the call that runs now."""
        call = current.get()
        self.world.fired[f"claim_{claim.kind}{'' if claim.mine else '_of_another'}"] += 1
        if call is not None and claim.mine:
            self.world.rows[claim.submit_id] = call.work.name

    def _hear(self, event: Event) -> None:
        if not self.dead:
            work = self.step(type(event).__name__.lower())
            self.world.hear(Heard(event.at, self.number, work, event))

    # Its life

    async def live(self, works: list[tuple[Work, int]], *, recover: bool) -> None:
        """Do the work, until it is done or the process ends."""
        try:
            with self._scope:
                async with self._client:
                    await self._busy(works, recover=recover)
                    await self._afterwards()
                    self._last_words()
                await self._close_users_own()
        except Exception:
            if not self.dead:
                raise
        if self.statistics is None and not self.dead:
            self.world.complain("life", f"process {self.number} ended without its last words")

    async def _busy(self, works: list[tuple[Work, int]], *, recover: bool) -> None:
        with anyio.CancelScope() as stop:
            async with anyio.create_task_group() as users:
                users.start_soon(self._fate, stop)
                async with anyio.create_task_group() as busy:
                    if recover:
                        busy.start_soon(self._recover)
                    for work, calls in works:
                        for number in range(calls):
                            busy.start_soon(self._user, work, float(number))
                    for work, _ in works:
                        if work.how == "prefetch":
                            busy.start_soon(self._stock, work)
                    batch = [work for work, _ in works if work.how == "many"]
                    if batch:
                        busy.start_soon(self._many, batch)
                users.cancel_scope.cancel()

    async def _afterwards(self) -> None:
        """In good weather, whatever it has been through, the client does new work."""
        if self.end == Life():
            await self.world.calm.wait()
            fresh = self.world.fresh_work(self.number)
            async with anyio.create_task_group() as users:
                for work in fresh:
                    users.start_soon(self._user, work, 0.0)

    async def _fate(self, stop: anyio.CancelScope) -> None:
        if self.end.stop_at is not None:
            await anyio.sleep(self.end.stop_at)
            self.world.fired["stopped"] += 1
            for call in self.calls:
                if call.ended is None and call.cancelled_at is None:
                    call.cancelled_at = anyio.current_time()
            stop.cancel()
        elif self.end.crash_at is not None:
            await anyio.sleep(self.end.crash_at)
            self.world.fired["crashed_at_any_time"] += 1
            self.crash()

    def crash(self) -> None:
        """Die at once. Nothing that its tasks still do has any effect."""
        self._remember()
        self.dead, self.died_at = True, anyio.current_time()
        for call in self.calls:
            if call.ended is None:
                call.ending, call.ended = "crashed", anyio.current_time()
        self.world.network.cut(self)
        if self.journal is not None:
            self.journal.crash()
        self.world.trace("crash", self.number)
        self._scope.cancel()
        self.on_crash()

    def _remember(self) -> None:
        self.spent = sum(self._client.spent.values(), Decimal(0))
        self.abandoned = self._client.abandoned

    def _last_words(self) -> None:
        if not self.dead:
            self._remember()
            self.statistics = self._client.statistics()

    # Its users

    async def _user(self, work: Work, later: float) -> None:
        if work.how in ("many", "prefetch"):
            return
        await anyio.sleep_until(max(anyio.current_time(), self.world.began_at + work.at) + later)
        for turn in range(work.retries + 1):
            call = self._call(work)
            call.patient = 0 < work.retries == turn
            await self._one_call(call, self._solve if work.how == "solve" else self._submit)
            if call.ending != "cancelled" or self.dead:
                return
            self.world.fired["asked_again"] += turn < work.retries

    async def _one_call(self, call: Call, way: Callable[[Call], Awaitable[None]]) -> None:
        work = call.work
        with anyio.CancelScope() as call.scope:
            if work.cancel_after is not None and not call.patient:
                call.scope.deadline = call.started + work.cancel_after
            try:
                await self._ended(call, way(call))
            except anyio.get_cancelled_exc_class():
                self._cancelled(call)
                raise

    def _call(self, work: Work) -> Call:
        call = Call(work, self.number, anyio.current_time())
        current.set(call)
        if not self.dead:
            self.calls.append(call)
        return call

    async def _ended(self, call: Call, way: Awaitable[None]) -> None:
        try:
            await way
        except UCaptchaError as error:
            if not self.dead:
                call.told(error)
        except Exception as error:
            if not self.dead:
                self.world.complain("foreign", f"{call.work.name}: {error!r} came out of the client", error)
        self._note(call)

    def _cancelled(self, call: Call) -> None:
        if not self.dead:
            call.ending = "cancelled"
            if call.cancelled_at is None:
                call.cancelled_at = call.started + (call.work.cancel_after or 0.0)
        self._note(call)

    def _note(self, call: Call) -> None:
        if not self.dead:
            call.ended = anyio.current_time()
            how = f"{call.ending}_{type(call.error).__name__}" if call.error is not None else call.ending
            phase = f"_{call.error.phase}" if isinstance(call.error, SolveTimeoutError) else ""
            self.world.fired[f"ended_{how}{phase}"] += 1
            self.world.trace("ends", self.number, call.work.name, how)

    async def _solve(self, call: Call) -> None:
        work = call.work
        key = work.name if work.keyed else None
        solution = await self._client.solve(self._task(work), timeout=work.timeout, attempts=work.attempts, key=key)
        if not self.dead:
            call.told(solution)

    async def _submit(self, call: Call) -> None:
        work = call.work
        job = await self._client.submit(self._task(work), timeout=work.timeout, key=work.name if work.keyed else None)
        if not self.dead and job.task_id is not None:
            call.ids.add(str(job.task_id))
        await self._wait(call, job)

    async def _wait(self, call: Call, job: Job[Any]) -> None:
        deadline = call.started + call.work.timeout
        while True:
            try:
                solution = await job.wait(min(call.work.patience, max(0.0, deadline - anyio.current_time())))
            except SolveTimeoutError:
                if anyio.current_time() >= deadline - 1e-6:
                    raise
                self.world.fired["waited_again"] += 1
            else:
                if not self.dead:
                    call.told(solution)
                return

    def _task(self, work: Work) -> Task[Any]:
        return task_for(work, typed=self.world.plan.typed)

    async def _stock(self, work: Work) -> None:
        """Keep tokens ready, and let users take them."""
        await anyio.sleep_until(max(anyio.current_time(), self.world.began_at + work.at))
        current.set(Call(work, self.number, anyio.current_time()))  # in which the first are begun
        stock = self._client.prefetch(
            self._task(work), ready=work.ready, lifetime=LIFETIME, timeout=work.timeout, attempts=work.attempts
        )
        try:
            async with stock as tokens, anyio.create_task_group() as users:
                for _ in range(work.calls):
                    users.start_soon(self._taker, work, tokens)
                    await anyio.sleep(work.patience)
        finally:
            if not self.dead:
                unused = tuple(solution.task_id for solution in stock.unused)
                self.stocks.append(Stock(work, stock.statistics(), unused))

    async def _taker(self, work: Work, tokens: Prefetch[Any]) -> None:
        async def take(call: Call) -> None:
            solution = await tokens.get()
            if not self.dead:
                call.told(solution)

        await self._one_call(self._call(work), take)

    async def _many(self, works: list[Work]) -> None:
        calls: list[Call] = []

        def tasks() -> Iterator[Task[Any]]:
            for work in works:
                # In the context of whoever reads the input, which the solve inherits.
                calls.append(self._call(work))
                yield self._task(work)

        def key(task: Task[Any]) -> str | None:
            return calls[-1].work.name if calls[-1].work.keyed else None

        leave = self.world.plan.leave_after
        first = works[0]
        try:
            async with self._client.solve_many(
                tasks(), key=key, timeout=first.timeout, attempts=first.attempts
            ) as outcomes:
                if leave == 0:
                    await anyio.sleep(first.patience)
                else:
                    await self._read(outcomes, calls, leave)
        except UCaptchaError as error:
            self.world.fired["stream_stopped"] += not self.dead
            self.world.trace("stops", self.number, type(error).__name__)
        finally:
            self._leave(calls)

    async def _read(self, outcomes: Any, calls: list[Call], leave: int | None) -> None:
        async for outcome in outcomes:
            call = calls[outcome.index]
            if not self.dead:
                call.told(outcome.error if outcome.error is not None else outcome.solution)
                call.ids |= {str(attempt.task_id) for attempt in outcome.attempts if attempt.task_id is not None}
            self._note(call)
            if leave is not None and sum(c.ended is not None for c in calls) >= leave:
                self.world.fired["stream_left"] += not self.dead
                return

    def _leave(self, calls: list[Call]) -> None:
        for call in calls:
            if call.ended is None and not self.dead:
                call.ending = "dropped"
                call.cancelled_at = call.cancelled_at or anyio.current_time()
                self._note(call)

    async def _recover(self) -> None:
        try:
            async with self._client.recover(timeout=100_000) as outcomes:
                async for outcome in outcomes:
                    if not self.dead:
                        error = type(outcome.error).__name__ if outcome.error is not None else "solved"
                        self.world.fired[f"recovered_{error}"] += 1
                        self.world.trace("recovers", self.number, outcome.task_id, error)
        except AccountError:
            # A poll was refused, and no further entry is taken up: the next process will.
            self.world.fired["recovery_stopped"] += not self.dead

    # After the calm

    async def take_up(self, ids: list[str]) -> None:
        """Wait for tasks that earlier calls have left, by their ids or through the journal."""
        async with self._client:
            async with anyio.create_task_group() as users:
                if self.journal is not None:
                    users.start_soon(self._recover)
                for task_id in ids:
                    users.start_soon(self._take_up, task_id)
            self._last_words()
        await self._close_users_own()

    async def _close_users_own(self) -> None:
        if self._users_own is not None:
            await self._users_own.aclose()

    async def _take_up(self, task_id: str) -> None:
        name, error = "solved", None
        try:
            await self._client.job(task_id).wait(self.world.plan.bound)
        except UCaptchaError as caught:
            name, error = type(caught).__name__, caught
        self.world.fired[f"taken_up_{name}"] += 1
        self.world.taken_up[task_id] = error


def _put_in(client: Any, process: Process, rng: Random) -> None:
    """Put a client into the simulated world: its connections and its dice."""
    client._session.rng = rng
    if not process.world.plan.injected:
        client._open_sender = _opening(client._open_sender, connector(process.world.network, process))


def _opening(opens: Callable[..., Any], connect: Callable[[], Awaitable[Any]]) -> Callable[..., Any]:
    """Make what opens a client's connections open those of this world."""

    def open_sender(**details: Any) -> Any:
        sender = opens(**details)
        getattr(sender, "pool", sender).connect = connect
        return sender

    return open_sender
