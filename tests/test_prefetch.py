"""Tokens that are ready before they are needed: alone with a scripted solve, with a client, and over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

import anyio
import attrs
import pytest

from tests.helpers import KEY, TURNSTILE, V2, at_rest, opened
from ucaptcha_async import (
    AsyncClient,
    AuthenticationError,
    Budget,
    BudgetExceededError,
    ClickCoordinates,
    ClientStateError,
    ConfigurationError,
    ImageToText,
    InvalidTaskError,
    MTCaptcha,
    NoProviderError,
    Polling,
    Prefetch,
    SolveTimeoutError,
    SubmitUncertainError,
    Task,
    TokenSolution,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.events import Event, Failed, TokenDelayed, TokenExpired, TokenReady, TokenTaken, Uncertain
from ucaptcha_async.solving.prefetch import LONGEST_PAUSE, PrefetchSettings
from ucaptcha_async.testing import (
    Delay,
    Drop,
    Error,
    FaultRates,
    Html,
    LocalService,
    LogNormal,
    RateLimit,
    assert_nothing_lost,
    running_service,
)

virtual = pytest.mark.virtual_time
COST = Decimal("0.002")


@attrs.define(eq=False)
class Solver:
    """Solves in a scripted time, and notes when each solve began; the n-th token is called `token-n`."""

    time: Callable[[], float] = lambda: 10.0
    made: Callable[[int, float], float] = lambda number, took: 0.0
    errors: list[Exception | None] = attrs.field(factory=list)
    always: Exception | None = None
    began: list[float] = attrs.field(factory=list)
    solved: int = 0
    cancelled: int = 0

    async def __call__(self) -> tuple[TokenSolution, float]:
        number = len(self.began)
        self.began.append(anyio.current_time())
        took = self.time()
        try:
            await anyio.sleep(took)
        except BaseException:
            self.cancelled += 1
            raise
        error = self.errors.pop(0) if self.errors else self.always
        if error is not None:
            raise error
        self.solved += 1
        token = f"token-{number}"
        solution = TokenSolution.parse({"token": token}, task_id=token, cost=COST, lifetime=120)
        return solution, anyio.current_time() - self.made(number, took)


def stocked(solve: Callable[[], Awaitable[tuple[TokenSolution, float]]], **options: Any) -> Prefetch[TokenSolution]:
    """A prefetch alone, without a client."""
    on_event, task = options.pop("on_event", None), options.pop("task", V2)
    settings: dict[str, Any] = {
        "ready": 10,
        "lifetime": None,
        "min_remaining": None,
        "service_level": 0.95,
        "max_under_way": None,
        "idle_after": None,
        "timeout": 300.0,
    }
    checked = PrefetchSettings.check(task, **(settings | options))

    def emit(kind: type[Event], **details: Any) -> None:
        if on_event is not None:
            on_event(kind(at=anyio.current_time(), **details))

    return Prefetch(task.type, checked, solve=solve, solve_time=lambda: None, emit=emit)


def books_agree(tokens: Prefetch[TokenSolution], solver: Solver) -> None:
    """Each token that was solved was handed out, got too old, or is left."""
    now = tokens.statistics()
    assert solver.solved == now.handed_out + now.expired + now.ready
    assert (0, 0) == (now.under_way, now.waiting)
    assert now.ready == len(tokens.unused)


# --- the stock --------------------------------------------------------------------------------------------------------


@virtual
async def test_tokens_are_ready() -> None:
    """On entry `ready` are begun, once; then a token is there at once, the oldest first."""
    solver = Solver(time=iter([9.0, 7.0, 8.0, *[10.0] * 99]).__next__)
    async with stocked(solver, ready=3) as tokens:
        await anyio.sleep(20)
        assert (3, 0) == (tokens.statistics().ready, tokens.statistics().under_way)
        before = anyio.current_time()
        taken = [(await tokens.get()).token for _ in range(3)]
        assert before == anyio.current_time()
        now = tokens.statistics()

    assert ["token-1", "token-2", "token-0"] == taken
    assert (3, 3, 0.0, 0) == (now.handed_out, now.at_once, now.mean_wait, now.expired)
    books_agree(tokens, solver)


@virtual
async def test_an_empty_stock_is_waited_for() -> None:
    """The first `get` of all waits for what is under way."""
    solver = Solver()
    async with stocked(solver, ready=1) as tokens:
        await anyio.sleep(4)
        assert "token-0" == (await tokens.get()).token
        now = tokens.statistics()

    assert (1, 0, pytest.approx(6.0)) == (now.handed_out, now.at_once, now.mean_wait)


@virtual
async def test_first_come_first_served() -> None:
    """Waiting `get`s are served in the order in which they came, and each has a solve of its own."""
    rng, order = Random(1), []
    solver = Solver(time=lambda: rng.uniform(5, 15))
    async with stocked(solver, ready=1) as tokens, anyio.create_task_group() as users:

        async def user(number: int) -> None:
            await anyio.sleep(number / 10)
            await tokens.get()
            order.append(number)

        for number in range(30):
            users.start_soon(user, number)

    assert list(range(30)) == order
    books_agree(tokens, solver)


@virtual
async def test_a_cancelled_get_loses_no_token() -> None:
    """Cancelled while it waits, or at the very moment at which it is served: the token goes to the next, or back."""
    solver = Solver()
    async with stocked(solver, ready=1) as tokens, anyio.create_task_group() as users:
        taken: list[str] = []

        async def user(patience: float) -> None:
            with anyio.move_on_after(patience):
                taken.append((await tokens.get()).token)

        for patience in (5.0, 10.0, 10.0, 10.0, 50.0, 50.0):
            users.start_soon(user, patience)
    assert taken
    books_agree(tokens, solver)


@virtual
async def test_a_token_is_taken_back() -> None:
    """A `get` that was given a token and is cancelled before it runs again gives it to the next in line."""
    solver = Solver()
    got: list[str] = []
    first = anyio.CancelScope()

    async def impatient() -> None:
        with first:
            await tokens.get()

    async def patient() -> None:
        await anyio.sleep(0.1)
        got.append((await tokens.get()).token)

    async def solve() -> tuple[TokenSolution, float]:
        solution = await solver()
        first.cancel()  # in the very step that serves the first in line
        return solution

    async with stocked(solve, ready=1, max_under_way=1) as tokens, anyio.create_task_group() as users:
        users.start_soon(impatient)
        users.start_soon(patient)

    assert ["token-0"] == got
    books_agree(tokens, solver)


@virtual
async def test_random_cancellations_lose_nothing() -> None:
    """Two thousand impatient users: each token that was solved is accounted for."""
    rng = Random(7)
    solver = Solver(time=lambda: rng.lognormvariate(math.log(12), 0.5))
    solver.errors = [UnsolvableError("no") if rng.random() < 0.1 else None for _ in range(1_000)]
    async with stocked(solver, ready=5) as tokens, anyio.create_task_group() as users:
        taken: list[str] = []

        async def user() -> None:
            await anyio.sleep(rng.uniform(0, 1_000))
            with anyio.move_on_after(rng.choice([0.0, rng.uniform(0, 10), 100.0])):
                taken.append((await tokens.get()).token)

        for _ in range(2_000):
            users.start_soon(user)

    assert len(taken) == len(set(taken)) == tokens.statistics().handed_out > 1_000
    books_agree(tokens, solver)


@virtual
async def test_get_has_a_timeout() -> None:
    """After it, nobody waits any more; 0 takes only what is ready."""
    solver = Solver()
    async with stocked(solver, ready=1, max_under_way=1, timeout=7.0) as tokens:
        with pytest.raises(SolveTimeoutError, match="within 0 s") as caught:
            await tokens.get(timeout=0)
        assert (False, "queue") == (caught.value.charged, caught.value.phase)
        with pytest.raises(SolveTimeoutError, match="within 7 s"):
            await tokens.get()
        assert 0 == tokens.statistics().waiting
        await anyio.sleep(4)
        assert "token-0" == (await tokens.get(timeout=timedelta(0))).token


# --- age --------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_token_ages_from_when_it_was_made() -> None:
    """Which may be earlier than its arrival; too old ones are not handed out."""
    solver = Solver(made=lambda number, took: [4.0, 0.0, 8.0][number])
    events: list[Event] = []
    async with stocked(solver, ready=3, min_remaining=40, on_event=events.append) as tokens:
        await anyio.sleep(10 + 80 - 6)  # the third is older than 80 s
        assert 2 == tokens.statistics().ready
        assert "token-0" == (await tokens.get()).token
        await anyio.sleep(7)
        now = tokens.statistics()

    assert (2, 2 * COST) == (now.expired, now.wasted)
    remaining = [event.remaining for event in events if isinstance(event, TokenTaken)]
    assert [pytest.approx(42, abs=0.5)] == remaining
    assert ["token-2", "token-1"] == [event.task_id for event in events if isinstance(event, TokenExpired)]


@virtual
@pytest.mark.parametrize("min_remaining", [0, 40, 119])
async def test_what_is_handed_out_is_fresh(min_remaining: float) -> None:
    """At any pace of demand a token is good for `min_remaining` seconds at least."""
    rng, events = Random(3), []
    solver = Solver(time=lambda: rng.uniform(5, 20))
    async with stocked(solver, min_remaining=min_remaining, on_event=events.append) as tokens:
        for gap in (0.5, 0.5, 2, 5, 30, 50, 70, 100, 0.1, 0.1):
            await anyio.sleep(gap)
            await tokens.get()

    remaining = [event.remaining for event in events if isinstance(event, TokenTaken)]
    assert 10 == len(remaining)
    assert min(remaining) >= min_remaining
    books_agree(tokens, solver)


@virtual
async def test_a_token_that_comes_too_late_is_no_token() -> None:
    """One that is too old on arrival is not handed out, and the next is tried after a pause."""
    solver = Solver(made=lambda number, took: 100.0 if number < 2 else 0.0)
    async with stocked(solver, ready=1, max_under_way=1, min_remaining=30) as tokens:
        assert "token-2" == (await tokens.get()).token
        now = tokens.statistics()

    assert [0, 11, 23] == [pytest.approx(began) for began in relative(solver.began)[:3]]
    assert (2, 2 * COST) == (now.expired, now.wasted)


def relative(times: list[float]) -> list[float]:
    return [time - times[0] for time in times]


@virtual
async def test_what_gets_too_old_is_replaced() -> None:
    """While there is demand, without a call of `get` at that moment."""
    solver = Solver()
    async with stocked(solver, ready=2, min_remaining=60, idle_after=1_000) as tokens:
        for _ in range(40):
            await anyio.sleep(5)
            await tokens.get()
        before = solver.solved
        await anyio.sleep(75)
        now = tokens.statistics()

    assert now.expired > 0
    assert solver.solved > before


# --- demand -----------------------------------------------------------------------------------------------------------


@virtual
async def test_an_idle_program_burns_no_money() -> None:
    """Without a `get` nothing is renewed: neither after entry, nor after demand has ended, for days."""
    solver = Solver()
    async with stocked(solver, ready=4) as tokens:
        await anyio.sleep(3_600)
        assert 4 == len(solver.began)
        for _ in range(600):
            await tokens.get()
            await anyio.sleep(1)
        await anyio.sleep(120)
        bought = len(solver.began)
        await anyio.sleep(5 * 86_400)
        assert bought == len(solver.began)
        assert 0 == tokens.statistics().ready

        await tokens.get()  # starts it again
        assert bought < len(solver.began)
        books = tokens.statistics()

    assert books.handed_out == 601
    assert books.expired < 30


@virtual
async def test_idle_after() -> None:
    """So long after the last `get` renewing ends, whatever demand seems to be."""
    begun_later = {}
    for idle_after in (20, 1_000):
        solver = Solver()
        async with stocked(solver, ready=5, idle_after=idle_after) as tokens:
            for _ in range(200):
                await tokens.get()
                await anyio.sleep(15)
            last = anyio.current_time() - 15
            await anyio.sleep(2_000)
        begun_later[idle_after] = sum(began > last + 20 for began in solver.began)

    assert 0 == begun_later[20] < begun_later[1_000] < 20


async def poisson(tokens: Prefetch[TokenSolution], rng: Random, rate: float, duration: float) -> None:
    end = anyio.current_time() + duration
    async with anyio.create_task_group() as users:
        while True:
            await anyio.sleep(rng.expovariate(rate))
            if anyio.current_time() >= end:
                return
            users.start_soon(tokens.get)


@virtual
@pytest.mark.parametrize("rate", [0.2, 1.0])
async def test_the_service_level_is_reached(rate: float) -> None:
    """After ten minutes of steady demand the share that was asked for is served at once, at no great cost."""
    rng = Random(5)
    solver = Solver(time=lambda: rng.lognormvariate(math.log(12), 0.5))
    async with stocked(solver, ready=20) as tokens:
        await poisson(tokens, rng, rate, 600)
        before = tokens.statistics()
        await poisson(tokens, rng, rate, 3_600)
        now = tokens.statistics()

    handed_out = now.handed_out - before.handed_out
    assert now.at_once - before.at_once >= 0.95 * handed_out
    assert now.expired - before.expired <= 0.01 * handed_out
    assert now.lead_time == pytest.approx(12 * math.exp(0.125), rel=0.2)
    assert now.demand == pytest.approx(rate, rel=0.25)


@virtual
@pytest.mark.parametrize("phase", [120, 600])
async def test_a_step_of_demand_wastes_little(phase: float) -> None:
    """1 -> 0.1 -> 1 a second: at most 15 % of what is bought gets too old."""
    rng = Random(11)
    solver = Solver(time=lambda: rng.lognormvariate(math.log(12), 0.5))
    async with stocked(solver) as tokens:
        for rate in (1.0, 0.1, 1.0):
            await poisson(tokens, rng, rate, phase)
        now = tokens.statistics()

    assert now.expired <= 0.15 * solver.solved
    assert now.wasted == now.expired * COST


@virtual
async def test_ready_bounds_what_demand_may_ask_for() -> None:
    """A small stock stays small on average, and then fewer are served at once; what is under way is not bounded."""
    rng = Random(2)
    solver = Solver()
    held: list[int] = []
    async with stocked(solver, ready=2) as tokens, anyio.create_task_group() as watch:

        async def look() -> None:
            await anyio.sleep(100)
            while True:
                await anyio.sleep(1)
                held.append(tokens.statistics().ready)

        watch.start_soon(look)
        await poisson(tokens, rng, 2.0, 600)
        assert tokens.statistics().under_way > 10
        watch.cancel_scope.cancel()

    assert sum(held) / len(held) < 4


@virtual
async def test_max_under_way() -> None:
    """Never more at once, on entry as under demand."""
    running, most = 0, 0
    solver = Solver()

    async def counted() -> tuple[TokenSolution, float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await solver()
        finally:
            running -= 1

    async with stocked(counted, ready=10, max_under_way=3) as tokens:
        await anyio.sleep(45)
        assert 10 == tokens.statistics().ready
        async with anyio.create_task_group() as users:
            for _ in range(30):
                users.start_soon(tokens.get)

    assert 3 == most
    books_agree(tokens, solver)


# --- failures ---------------------------------------------------------------------------------------------------------


@virtual
async def test_unsolvable_tasks_are_tried_again_with_growing_pauses() -> None:
    """Those that fail side by side count as one; the pause doubles up to a minute, and ends with the first success."""
    solver = Solver(always=UnsolvableError("no"))
    events: list[Event] = []
    async with stocked(solver, ready=1, max_under_way=2, on_event=events.append) as tokens:
        with pytest.raises(SolveTimeoutError, match="within 250 s") as caught:
            await tokens.get(timeout=250)
        assert isinstance(caught.value.__cause__, UnsolvableError)
        pauses = [event.delay for event in events if isinstance(event, TokenDelayed)]
        attempts = len(solver.began)
        solver.always = None
        await tokens.get()
        await anyio.sleep(20)
        solver.errors = [UnsolvableError("no")]
        await tokens.get()
        await anyio.sleep(20)

    assert [1, 2, 4, 8, 16, 32, LONGEST_PAUSE] == sorted({*pauses})
    assert attempts <= 2 * 8
    assert 1 == [event.delay for event in events if isinstance(event, TokenDelayed)][-1]


@virtual
@pytest.mark.parametrize(
    "error",
    [
        UnsolvableError("no"),
        SolveTimeoutError("late", task_id="1"),
        NoProviderError("nobody"),
        SubmitUncertainError("?"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failure_does_not_reach_get(error: UCaptchaError) -> None:
    """What the next task may not meet is tried again."""
    solver = Solver(errors=[error])
    async with stocked(solver, ready=1, max_under_way=1) as tokens:
        assert "token-1" == (await tokens.get()).token

    assert [0, pytest.approx(11)] == relative(solver.began)[:2]


@virtual
async def test_one_failure_delays_no_other() -> None:
    """A tenth of the tasks fails, as in good weather: demand is served all the same."""
    rng = Random(4)
    solver = Solver(time=lambda: rng.lognormvariate(math.log(12), 0.5))
    solver.errors = [UnsolvableError("no") if rng.random() < 0.1 else None for _ in range(10_000)]
    async with stocked(solver, ready=20) as tokens:
        await poisson(tokens, rng, 1.0, 600)
        before = tokens.statistics()
        await poisson(tokens, rng, 1.0, 1_200)
        now = tokens.statistics()

    assert now.at_once - before.at_once >= 0.93 * (now.handed_out - before.handed_out)


@virtual
async def test_a_site_that_fails_is_not_stormed() -> None:
    """While all solves fail, only those in line have attempts, and one for the stock; then all goes on at once."""
    rng = Random(6)
    solver = Solver(always=UnsolvableError("no"))
    async with stocked(solver, ready=10) as tokens, anyio.create_task_group() as users:

        async def impatient() -> None:
            with pytest.raises(SolveTimeoutError):
                await tokens.get(timeout=1)

        end = anyio.current_time() + 600
        while anyio.current_time() < end:
            await anyio.sleep(rng.expovariate(1.0))
            users.start_soon(impatient)
        attempts = [began for began in solver.began if began > end - 500]
        solver.always = None
        await anyio.sleep(75)
        waiting = [anyio.current_time()]
        await tokens.get()
        waiting.append(anyio.current_time())

    assert len(attempts) < 60
    assert waiting[1] - waiting[0] < 12


@virtual
@pytest.mark.parametrize(
    "error",
    [AuthenticationError("no"), BudgetExceededError("spent"), InvalidTaskError("bad", field="website_key")],
    ids=lambda error: type(error).__name__,
)
async def test_what_every_solve_would_meet_comes_out_of_get(error: UCaptchaError) -> None:
    """Of all that wait, and of the next; from then on each `get` makes one attempt, to find out whether it is over."""
    solver = Solver(always=error)
    caught: list[UCaptchaError] = []

    async def user() -> None:
        with pytest.raises(type(error)) as info:
            await tokens.get()
        caught.append(info.value)

    async with stocked(solver, ready=2) as tokens:
        async with anyio.create_task_group() as users:
            for _ in range(5):
                users.start_soon(user)
        attempts = len(solver.began)
        await user()
        await anyio.sleep(10_000)
        assert attempts + 1 == len(solver.began)
        solver.always = None
        assert (await tokens.get()).token

    assert 6 == len(caught) == len({id(each) for each in caught})
    books_agree(tokens, solver)


@virtual
async def test_a_refusal_leaves_those_in_line_what_is_under_way() -> None:
    """Paid tasks still come; only those behind them are told."""
    solver = Solver(time=iter([10.0, 10.0, 1.0, 1.0, *[10.0] * 9]).__next__, errors=[AuthenticationError("no")] * 2)
    ends: list[str] = []

    async def user() -> None:
        try:
            ends.append((await tokens.get()).token)
        except AuthenticationError:
            ends.append("refused")

    async with stocked(solver, ready=2, max_under_way=4) as tokens, anyio.create_task_group() as users:
        for _ in range(4):
            users.start_soon(user)

    assert ["refused", "refused", "token-0", "token-1"] == ends[:2] + sorted(ends[2:])


@virtual
async def test_a_stranger_comes_out_of_get() -> None:
    """An error that is none of the library's is not lost, and does not tear the block down."""
    solver = Solver(errors=[KeyError("bug")])
    async with stocked(solver, ready=1, max_under_way=1) as tokens:
        with pytest.raises(KeyError, match="bug"):
            await tokens.get()
        assert (await tokens.get()).token


# --- the block --------------------------------------------------------------------------------------------------------


class BodyError(Exception):
    pass


@virtual
@pytest.mark.parametrize("error", [BodyError("mine"), ExceptionGroup("mine", [BodyError()]), SystemExit(3)])
async def test_an_error_of_the_body_leaves_as_itself(error: BaseException) -> None:
    """In no group, as the same object; what is under way is cancelled."""
    solver = Solver()
    with pytest.raises(type(error)) as caught:
        async with stocked(solver, ready=3) as tokens:
            await anyio.sleep(5)
            raise error

    assert error is caught.value
    assert 3 == solver.cancelled
    books_agree(tokens, solver)


@virtual
async def test_cancelling_the_block() -> None:
    """An outer scope ends the block and is not mistaken for an error; a deadline inside stays a TimeoutError."""
    solver = Solver()
    with anyio.move_on_after(5) as outer:
        async with stocked(solver, ready=3) as tokens:
            await anyio.sleep(100)
        raise AssertionError("unreachable")
    assert outer.cancelled_caught

    with pytest.raises(TimeoutError):
        async with stocked(solver, ready=3):
            with anyio.fail_after(5):
                await anyio.sleep(100)
    with pytest.raises(BodyError), anyio.CancelScope() as scope:
        async with stocked(solver, ready=3):
            scope.cancel()
            raise BodyError
    books_agree(tokens, solver)


@virtual
async def test_a_cancelled_block_begins_nothing() -> None:
    """What is under way ends with the block, also where its body shields itself from the cancellation for a while."""
    solver = Solver()
    with anyio.move_on_after(5):
        async with stocked(solver, ready=3):
            with anyio.CancelScope(shield=True):
                await anyio.sleep(9)

    assert (3, 3) == (len(solver.began), solver.cancelled)


@virtual
async def test_a_generator_that_ends_in_another_task() -> None:
    """No scope stays open in whoever reads it: neither task is harmed, and what is under way ends."""
    solver = Solver(time=iter([1.0, *[50.0] * 9]).__next__)

    async def found() -> AsyncGenerator[TokenSolution, None]:
        async with stocked(solver, ready=3) as tokens:
            while True:
                yield await tokens.get()

    generator = found()
    assert "token-0" == (await anext(generator)).token
    async with anyio.create_task_group() as group:
        group.start_soon(generator.aclose)
    await anyio.sleep(0.01)

    assert len(solver.began) - 1 == solver.cancelled


@virtual
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
async def test_asyncio_cancels_the_block(anyio_backend: Any) -> None:
    """`task.cancel()` and `asyncio.timeout` mean what they always mean."""
    solver = Solver(time=lambda: 0.01)

    async def block() -> None:
        async with stocked(solver, ready=3) as tokens:
            await tokens.get()
            await asyncio.sleep(100)

    task = asyncio.create_task(block())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await block()


@virtual
async def test_the_end() -> None:
    """Who still waits is told; then nobody can `get`; what was not used is there; it cannot be entered again."""
    solver = Solver(time=iter([1.0, 1.0, *[50.0] * 9]).__next__)
    prefetch = stocked(solver, ready=2)
    with pytest.raises(ClientStateError, match="not entered"):
        await prefetch.get()
    assert 0 == prefetch.statistics().level
    async with anyio.create_task_group() as users:

        async def user() -> None:
            with pytest.raises(ClientStateError, match="was left"):
                await prefetch.get()

        async with prefetch as tokens:
            await anyio.sleep(2)
            await tokens.get()
            assert () == tokens.unused
            left = await tokens.get()
            users.start_soon(user)
            await anyio.sleep(2)
    with pytest.raises(ClientStateError, match="closed"):
        await tokens.get()
    with pytest.raises(ClientStateError, match="once"):
        async with tokens:
            pass
    assert left.token not in [solution.token for solution in tokens.unused]
    books_agree(tokens, solver)


@virtual
async def test_unused() -> None:
    """What is still fresh at the end; what got too old is not."""
    solver = Solver(time=iter([1.0, 60.0]).__next__)
    async with stocked(solver, ready=2, min_remaining=20) as tokens:
        await anyio.sleep(105)

    assert ["token-1"] == [solution.token for solution in tokens.unused]
    assert 1 == tokens.statistics().expired


@virtual
async def test_events() -> None:
    """Each step has one; none shows a token."""
    events: list[Event] = []
    solver = Solver(errors=[UnsolvableError("no", task_id="failed")])
    async with stocked(solver, ready=2, max_under_way=1, on_event=events.append) as tokens:
        await tokens.get()
        await anyio.sleep(200)
        shown = repr(tokens) + repr(tokens.statistics())

    kinds = [type(event) for event in events]
    assert {TokenDelayed, TokenReady, TokenTaken, TokenExpired} == set(kinds)
    assert {V2.type} == {event.task_type for event in events}
    (taken,) = [event for event in events if isinstance(event, TokenTaken)]
    assert ("token-1", 21.0) == (taken.task_id, pytest.approx(taken.waited))
    assert "gRecaptchaResponse" not in shown
    assert "Prefetch RecaptchaV2TaskProxyless" in shown


@virtual
async def test_a_hook_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is told of all the same, and breaks nothing."""
    events: list[Event] = []

    def hook(event: Event) -> None:
        events.append(event)
        raise RuntimeError("the hook's own")

    async with opened(LocalService(solve_time=5), on_event=hook) as client, client.prefetch(V2, ready=1) as tokens:
        solution = await tokens.get()

    told = [event for event in events if isinstance(event, TokenReady | TokenTaken)]
    assert [TokenReady, TokenTaken] == [type(event) for event in told]
    assert {(V2.kind, solution.task_id)} == {(event.task_type, event.task_id) for event in told}
    assert "the hook's own" in caplog.text


# --- settings ---------------------------------------------------------------------------------------------------------

PNG = bytes.fromhex("89504e470d0a1a0a") + b"\0" * 120
MT = MTCaptcha(website_url="https://example.com", website_key="MTPublic-abc")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ready": 0}, "ready"),
        ({"ready": 2.5}, "ready"),
        ({"service_level": 1}, "service_level"),
        ({"service_level": "0.9"}, "service_level"),
        ({"service_level": math.nan}, "service_level"),
        ({"min_remaining": 120}, "min_remaining"),
        ({"min_remaining": -1}, "min_remaining"),
        ({"lifetime": 0}, "lifetime"),
        ({"lifetime": math.inf}, "lifetime"),
        ({"max_under_way": 0}, "max_under_way"),
        ({"idle_after": -1}, "idle_after"),
        ({"task": MT}, "lifetime"),
    ],
    ids=str,
)
def test_wrong_settings(options: dict[str, Any], field: str) -> None:
    """Each is named, with what is allowed, before anything is sent."""
    with pytest.raises(ConfigurationError, match=field) as caught:
        stocked(Solver(), **options)
    assert field == caught.value.field


@pytest.mark.parametrize(
    "task",
    [
        ImageToText(image=PNG),
        ClickCoordinates(image=PNG, comment="cats"),
        Task("ImageToTextTask", body="aGVsbG8=", lifetime=60),
        "Turnstile",
    ],
    ids=repr,
)
def test_pictures_are_refused(task: Any) -> None:
    """Nobody knows the next picture beforehand."""
    with pytest.raises(InvalidTaskError) as caught:
        stocked(Solver(), task=task)
    assert "task" == caught.value.field


@virtual
async def test_lifetime_of_a_task_of_which_nobody_knows() -> None:
    """It is given, counts, and is what the solutions say."""
    solver = Solver()
    async with stocked(solver, task=MT, lifetime=30, min_remaining=10, ready=1) as tokens:
        solution = await tokens.get()
        assert (30, True) == (solution.lifetime, solution.is_fresh(20))
        await anyio.sleep(100)
        assert 0 == tokens.statistics().ready


# --- with a client ----------------------------------------------------------------------------------------------------


@virtual
async def test_with_a_client() -> None:
    """Tokens of a real solve, typed, within the client's bounds; what is under way at the end is abandoned."""
    service = LocalService(solve_time=LogNormal(12, 0.3), seed=2)
    async with opened(service) as client:
        async with client.prefetch(TURNSTILE, ready=5) as tokens:
            await anyio.sleep(60)
            for _ in range(60):
                assert (await tokens.get()).token
                await anyio.sleep(1)
        at_rest(client)
        now = tokens.statistics()
        known = [solution.task_id for solution in tokens.unused]
        assert_nothing_lost(service.books, client, known=known)
        assert len(service.books.accepted) == now.handed_out + now.expired + now.ready + len(client.abandoned)

    assert 60 == now.handed_out
    assert now.at_once > 30
    assert client.abandoned


@virtual
async def test_several_prefetches_share_the_bounds() -> None:
    """In flight, and the budget, are the client's."""
    service = LocalService(solve_time=8)
    async with opened(service, max_in_flight=4, budget=Budget(max_spend="0.10", estimate="0.01")) as client:
        async with (
            client.prefetch(V2, ready=3) as one,
            client.prefetch(TURNSTILE, ready=3) as other,
        ):
            most = 0

            async def user(tokens: Prefetch[TokenSolution]) -> None:
                with pytest.raises(BudgetExceededError):
                    while True:
                        await tokens.get()

            async def look() -> None:
                nonlocal most
                while True:
                    await anyio.sleep(0.5)
                    most = max(most, client.statistics().in_flight)

            async with anyio.create_task_group() as watch:
                watch.start_soon(look)
                async with anyio.create_task_group() as both:
                    both.start_soon(user, one)
                    both.start_soon(user, other)
                watch.cancel_scope.cancel()
        at_rest(client)

    assert 4 == most
    assert service.books.spent <= Decimal("0.10")
    assert_nothing_lost(service.books, client, known=[s.task_id for p in (one, other) for s in p.unused])


@virtual
async def test_an_account_error_of_a_client() -> None:
    """It comes out of `get`, and after `reset_breaker` the next `get` tries again."""
    service = LocalService(solve_time=8)
    service.script("createTask", Error("ERROR_KEY_DOES_NOT_EXIST"))
    async with opened(service) as client, client.prefetch(V2, ready=1) as tokens:
        with pytest.raises(AuthenticationError):
            await tokens.get()
        with pytest.raises(AuthenticationError):
            await tokens.get()
        assert 1 == service.books.total_requests
        client.reset_breaker()
        assert (await tokens.get()).token


@virtual
async def test_the_client_checks() -> None:
    """Settings that are wrong, and a client that is not open."""
    async with opened(LocalService()) as client:
        with pytest.raises(ConfigurationError, match="lifetime"):
            client.prefetch(MT)
        with pytest.raises(InvalidTaskError, match="picture"):
            client.prefetch(ImageToText(image=PNG))
        with pytest.raises(ConfigurationError, match="timeout"):
            client.prefetch(V2, timeout=-1)
    with pytest.raises(ClientStateError):
        client.prefetch(V2)


@virtual
async def test_options_reach_each_solve() -> None:
    """`timeout`, `selection_mode`, `provider` and `attempts` are those of `solve`."""
    service = LocalService(solve_time=8)
    service.fail_next(times=2)
    async with opened(service) as client:
        async with client.prefetch(V2, ready=1, attempts=3, selection_mode="autoFastest", timeout=60) as tokens:
            await tokens.get()
            assert 0 == client.statistics().failed
        bodies = [task.selection_mode for task in service.books.tasks.values()]

    assert {"autoFastest"} == set(bodies)


@virtual
async def test_prefetching_clients_among_others() -> None:
    """Through faults, with users who give up: what the service charged for is what the clients know of."""
    rng = Random(9)
    service = LocalService(
        solve_time=LogNormal(12, 0.5),
        seed=9,
        failure_rate=0.1,
        latency=lambda endpoint: rng.uniform(0.01, 1),
        fault_rates=FaultRates(rates=((RateLimit(), 0.02), (Drop(after=True), 0.02), (Html(502), 0.02))),
    )
    known: set[str | None] = set()
    uncertain: list[Event] = []

    def hear(event: Event) -> None:
        if isinstance(event, TokenTaken | TokenExpired):
            known.add(event.task_id)
        if isinstance(event, Failed) and event.error.task_id is not None:
            known.add(event.error.task_id)
        if isinstance(event, Uncertain):
            uncertain.append(event)

    async def user(call: Callable[[], Awaitable[TokenSolution]]) -> None:
        await anyio.sleep(rng.uniform(0, 300))
        with anyio.move_on_after(rng.choice([rng.uniform(0, 20), 300])):
            try:
                known.add((await call()).task_id)
            except UCaptchaError as error:
                known.add(error.task_id)

    async with opened(service, max_in_flight=60, on_event=hear) as client:
        async with client.prefetch(V2, ready=5) as one, client.prefetch(TURNSTILE, ready=5) as other:
            async with anyio.create_task_group() as users:
                for call in (one.get, other.get, lambda: client.solve(V2)):
                    for _ in range(200):
                        users.start_soon(user, call)
        at_rest(client)
        unused = [solution.task_id for tokens in (one, other) for solution in tokens.unused]
        abandoned = set(client.abandoned)
        handed_out = one.statistics().handed_out + other.statistics().handed_out

    assert handed_out > 200
    assert uncertain
    assert unused
    assert not known & {*unused}
    assert_nothing_lost(service.books, client, known={*known, *unused}, uncertain=len(uncertain))
    paid = {task.id for task in service.books.tasks.values() if not task.refunded}
    assert len(paid - known - {*unused} - abandoned) <= len(uncertain)


# --- how old a solution may be ----------------------------------------------------------------------------------------


@virtual
async def test_age_counts_from_the_last_poll_that_was_pending() -> None:
    """Or from the submit, where the first poll is ready; a failed poll says nothing."""
    polling = Polling(schedule=(4, 11, 20, 30), jitter=0)
    service = LocalService(solve_time=25, latency=0.5)
    async with opened(service, polling=polling) as client:
        late = await client.solve(TURNSTILE)
        service.solve_next(after=1)
        first = await client.solve(TURNSTILE)
        service.script("getTaskResult", Delay(0), Html(502))
        service.solve_next(after=9)
        through_a_fault = await client.solve(TURNSTILE)
        at_once = await client.solve(ImageToText(image=PNG))

    assert [late.polls, first.polls, through_a_fault.polls] == [4, 1, 3]
    expected = [10 + 0.5, 4 + 1.0, 12 + 0.5, 0.5]
    ages = [solution.age for solution in (late, first, through_a_fault, at_once)]
    assert ages == [pytest.approx(age, abs=0.3) for age in expected]


@virtual
async def test_what_may_be_too_old_is_not_handed_out() -> None:
    """At polls that are far apart, a token counts as old as it may be."""
    service = LocalService(solve_time=10)
    events: list[Event] = []
    async with opened(service, polling=Polling(schedule=(5, 35), jitter=0), on_event=events.append) as client:
        async with client.prefetch(V2, ready=2, min_remaining=60) as tokens:
            await anyio.sleep(35 + 29)
            assert tokens.statistics().ready == 2
            await tokens.get()
            await anyio.sleep(2)
            assert tokens.statistics().expired == 1

    (taken,) = [event for event in events if isinstance(event, TokenTaken)]
    assert taken.remaining == pytest.approx(120 - 30 - 29, abs=0.1)


@virtual
async def test_what_comes_old_counts_for_the_level() -> None:
    """Of tokens that can be handed out for ten seconds only, few are held; of those that live long, more."""
    held = []
    for made in (70.0, 0.0):
        rng, solver = Random(8), Solver(made=lambda number, took, made=made: made)  # type: ignore[misc]
        async with stocked(solver, ready=20) as tokens:
            await poisson(tokens, rng, 0.2, 1_200)
            now = tokens.statistics()
        held.append(now.level)
        assert now.expired <= 0.25 * solver.solved

    assert held[0] < held[1]


# --- over real sockets ------------------------------------------------------------------------------------------------

QUICK = Polling(interval=0.2, first=0.25)


async def test_over_real_sockets() -> None:
    """Many users of one stock: each gets a token of its own, and the service's books agree."""
    with running_service(seed=4, solve_time=0.3) as service:
        async with AsyncClient(KEY, base_url=service.url, polling=QUICK) as client:
            async with client.prefetch(TURNSTILE, ready=5) as tokens:
                numbers, taken = itertools.count(), set()

                async def user() -> None:
                    while next(numbers) < 60:
                        taken.add((await tokens.get()).token)

                async with anyio.create_task_group() as users:
                    for _ in range(6):
                        users.start_soon(user)
            at_rest(client)
            now = tokens.statistics()
        books = service.books()

    assert 60 == len(taken) == now.handed_out
    assert books["accepted"] == now.handed_out + now.expired + now.ready + len(client.abandoned)


async def test_leaving_over_real_sockets() -> None:
    """The block ends soon though solves take long; the paid ones are known, and can be taken up."""
    with running_service(seed=4, solve_time=2) as service:
        async with AsyncClient(KEY, base_url=service.url, polling=QUICK) as client:
            with pytest.raises(BodyError):
                async with client.prefetch(TURNSTILE, ready=5):
                    with anyio.fail_after(20):
                        while client.statistics().submitted < 5:
                            await anyio.sleep(0.01)
                    raise BodyError
            assert 5 == len(client.abandoned)
            at_rest(client)
            assert (await client.job(client.abandoned[0]).wait()).raw
