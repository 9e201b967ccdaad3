"""Streams of tasks, the bound on what is in flight, and gather."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from tests.helpers import KEY, TURNSTILE, V2, at_rest, opened
from ucaptcha_async import (
    AsyncClient,
    AuthenticationError,
    Budget,
    BudgetExceededError,
    ClientStateError,
    ImageToText,
    InsufficientBalanceError,
    InvalidTaskError,
    Outcome,
    Polling,
    RateLimiter,
    RecaptchaV2,
    Task,
    Turnstile,
    UnsolvableError,
)
from ucaptcha_async.events import Event, Solved
from ucaptcha_async.testing import Error, LocalService

pytestmark = pytest.mark.virtual_time

PNG = bytes.fromhex("89504e470d0a1a0a") + b"\0" * 120


def pages(count: int) -> Iterator[Turnstile]:
    for number in range(count):
        yield Turnstile(website_url=f"https://example.com/{number}", website_key="0x4AAAAAAA")


async def test_outcomes_come_as_they_complete() -> None:
    """Each input gives one outcome with its index, in the order of completion."""
    service = LocalService(solve_time={"TurnstileTokenProxyLess": 40, "RecaptchaV2TaskProxyless": 8})
    async with opened(service) as client:
        async with client.solve_many([TURNSTILE, V2, V2]) as outcomes:
            seen = [outcome async for outcome in outcomes]
        at_rest(client)

    assert {0, 1, 2} == {outcome.index for outcome in seen}
    assert 0 == seen[-1].index
    assert all(outcome.ok and outcome.solution.token for outcome in seen)


async def test_failures_are_values() -> None:
    """A failed task is an outcome whose solution raises; the others go on."""
    service = LocalService(solve_time=8)
    service.fail_next()
    async with opened(service) as client:
        outcomes = await client.gather([V2, V2, Task("NoSuchTask"), V2])

    assert [0, 1, 2, 3] == [outcome.index for outcome in outcomes]
    assert [False, True, False, True] == [outcome.ok for outcome in outcomes]
    with pytest.raises(UnsolvableError):
        _ = outcomes[0].solution


async def test_any_async_iterable() -> None:
    """An async generator is read as lazily."""

    async def slowly() -> AsyncIterator[RecaptchaV2]:
        for _ in range(5):
            await anyio.sleep(1)
            yield V2

    async with opened(LocalService()) as client:
        outcomes = await client.gather(slowly())

    assert 5 == len({outcome.solution.token for outcome in outcomes})


async def test_the_input_is_read_lazily() -> None:
    """Not more inputs are read than there is room for, and the client stays within its bound."""
    read = 0

    def counting() -> Iterator[Turnstile]:
        nonlocal read
        for task in pages(200):
            read += 1
            yield task

    service = LocalService(solve_time=10)
    async with opened(service, max_in_flight=7) as client:
        async with client.solve_many(counting(), max_pending=20) as outcomes:
            number = 0
            async for _ in outcomes:
                number += 1
                assert read <= number + 20
                assert client.statistics().in_flight <= 7
    assert 200 == number


async def test_a_long_input_uses_bounded_memory() -> None:
    """Memory does not grow with the number of inputs."""
    service = LocalService(books_detail=False, rate_limit=10**9)

    async def run(count: int) -> int:
        async with opened(service, max_in_flight=50) as client:
            async with client.solve_many((ImageToText(image=PNG) for _ in range(count)), max_pending=50) as outcomes:
                async for outcome in outcomes:
                    assert outcome.ok
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        await run(100)
        short = await run(150)
        long = await run(750)
    finally:
        tracemalloc.stop()

    # The service's own books keep each task: that is what may grow here.
    assert (long - short) / 600 < 6_000


async def test_account_errors_stop_the_intake() -> None:
    """A refused key ends the run after what runs, and says how many inputs were not submitted."""
    service = LocalService(keys=["ucap_other"])
    async with opened(service) as client:
        with pytest.raises(AuthenticationError):
            async with client.solve_many([V2] * 500, max_pending=50) as outcomes:
                async for outcome in outcomes:
                    assert isinstance(outcome.error, AuthenticationError)
        at_rest(client)

    assert 500 == outcomes.not_submitted
    assert 1 == service.books.request_counts["createTask"]


async def test_paid_tasks_finish_when_the_balance_ends() -> None:
    """An empty balance stops the intake; those that were paid for are still solved."""
    service = LocalService(balance="0.0300", solve_time=20)
    solved = 0
    async with opened(service) as client:
        with pytest.raises(InsufficientBalanceError):
            async with client.solve_many([V2] * 100, max_pending=100) as outcomes:
                async for outcome in outcomes:
                    solved += outcome.ok

    assert 10 == solved == len(service.books.delivered)
    assert 90 == outcomes.not_submitted


async def test_a_budget_is_used_to_the_end() -> None:
    """The run waits for room that running solves may give back, and stops when none is left."""
    service = LocalService(solve_time=10)
    budget = Budget(max_spend="0.10", estimate="0.02")
    solved = 0
    async with opened(service, budget=budget) as client:
        with pytest.raises(BudgetExceededError):
            async with client.solve_many([V2] * 100, max_pending=30) as outcomes:
                async for outcome in outcomes:
                    solved += outcome.ok

    assert service.books.spent <= budget.max_spend
    # After 26 tasks at 0.00299, one more at 0.02 still fits; after 27 it does not.
    assert 27 == solved


async def test_gather_loses_nothing_when_the_account_is_refused() -> None:
    """What is solved by then is returned, and the rest has the account's error, without a request each."""
    service = LocalService(balance="0.0300", solve_time=20)
    async with opened(service) as client:
        outcomes = await client.gather([V2] * 500, max_pending=100)
        at_rest(client)

    assert list(range(500)) == [outcome.index for outcome in outcomes]
    assert 10 == sum(outcome.ok for outcome in outcomes) == len(service.books.delivered)
    assert all(isinstance(outcome.error, InsufficientBalanceError) for outcome in outcomes if not outcome.ok)
    assert service.books.request_counts["createTask"] <= 100
    assert () == client.abandoned


async def test_gather_loses_nothing_when_the_budget_ends() -> None:
    """The budget is used to its end, and what has no room in it says so."""
    service = LocalService(solve_time=10)
    budget = Budget(max_spend="0.10", estimate="0.02")
    async with opened(service, budget=budget) as client:
        outcomes = await client.gather([V2] * 100)
        at_rest(client)

    assert 27 == sum(outcome.ok for outcome in outcomes) == service.books.request_counts["createTask"]
    assert 73 == sum(isinstance(outcome.error, BudgetExceededError) for outcome in outcomes)


@pytest.mark.parametrize("end", ["cancelled", "broken"])
async def test_a_gather_that_ends_early_keeps_the_ids(end: str) -> None:
    """Solved or not, the paid tasks of a gather that was cancelled, or whose input broke, can be taken up again."""

    async def inputs() -> AsyncIterator[RecaptchaV2]:
        for _ in range(5):
            yield V2
            await anyio.sleep(10)
        raise LookupError("no more pages")

    service = LocalService(solve_time=8)
    async with opened(service) as client:
        if end == "cancelled":
            with anyio.move_on_after(35):
                await client.gather(inputs())
        else:
            with pytest.raises(LookupError):
                await client.gather(inputs())
        kept = set(client.abandoned)
        at_rest(client)

    assert kept == set(service.books.accepted)
    assert len(kept) == (4 if end == "cancelled" else 5)


async def test_a_budget_shared_by_clients() -> None:
    """One client's solves wait for room that another's give back."""
    service = LocalService(solve_time=10)
    budget = Budget(max_spend="0.10", estimate="0.05")
    async with opened(service, budget=budget) as one, opened(service, budget=budget) as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.gather, [V2] * 2)
            await anyio.sleep(1)
            outcomes = await other.gather([V2] * 3)

    assert all(outcome.ok for outcome in outcomes)


async def test_waiting_for_room_does_not_wake_the_crowd() -> None:
    """Thousands that wait for room in a budget cost a few tries for each solve, not a try of each."""
    service = LocalService(solve_time=10)
    budget = Budget(max_spend="0.10", estimate="0.003")
    async with opened(service, budget=budget) as client:
        outcomes = await client.gather([V2] * 2_000)

    solved = sum(outcome.ok for outcome in outcomes)
    assert 33 == solved
    assert budget.statistics().refusals <= 2 * 2_000 + 3 * solved


async def test_leaving_early_cancels() -> None:
    """Leaving the block ends what runs, and the ids of paid tasks are kept."""
    service = LocalService(solve_time={"TurnstileTokenProxyLess": 500, "RecaptchaV2TaskProxyless": 8})
    async with opened(service) as client:
        async with client.solve_many([TURNSTILE, V2, TURNSTILE]) as outcomes:
            async for outcome in outcomes:
                assert outcome.ok
                break
        at_rest(client)
        kept = client.abandoned

    assert 2 == len(kept)
    assert set(kept) < set(service.books.accepted)


async def test_errors_of_the_block_come_out_as_they_are() -> None:
    """No ExceptionGroup around the caller's own error, and no cancellation in its place."""
    async with opened(LocalService()) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.solve_many([V2, V2]) as outcomes:
                async for _ in outcomes:
                    raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), anyio.CancelScope() as scope:
            async with client.solve_many([V2, V2]):
                scope.cancel()
                raise ZeroDivisionError
        at_rest(client)


async def test_asyncios_own_cancellation_reaches_whoever_leaves_a_block(anyio_backend_name: str) -> None:
    """It comes only once: an error of the block's own must not stand in its place."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio has it")

    async with opened(LocalService(latency=lambda endpoint: 3)) as client:

        async def work() -> None:
            while True:
                with contextlib.suppress(ZeroDivisionError):
                    async with client.solve_many([V2]):
                        await asyncio.sleep(1)
                        raise ZeroDivisionError

        working = asyncio.create_task(work())
        await asyncio.sleep(2)
        working.cancel()
        done, _ = await asyncio.wait([working], timeout=20)
        at_rest(client)

    assert {working} == done


async def test_errors_of_the_input_come_after_the_outcomes() -> None:
    """An iterable that raises loses nothing that is paid for; one bad input is one bad outcome."""

    def broken() -> Iterator[Any]:
        yield V2
        yield V2
        raise OSError("disk gone")

    async with opened(LocalService()) as client:
        solved = 0
        with pytest.raises(OSError, match="disk gone"):
            async with client.solve_many(broken()) as outcomes:
                async for outcome in outcomes:
                    solved += outcome.ok
        good, bad, handed_over = await client.gather([V2, "no task", InvalidTaskError("line 3")])  # type: ignore[list-item]
        assert good.ok
        with pytest.raises(InvalidTaskError, match="task must be a Task"):
            _ = bad.solution
        with pytest.raises(InvalidTaskError, match="line 3"):
            _ = handed_over.solution
        with pytest.raises(TypeError, match="iterable of tasks"):
            await client.gather(V2)  # type: ignore[arg-type]
        at_rest(client)

    assert 2 == solved


async def test_ten_thousand_within_the_bound() -> None:
    """Ten thousand solves at once stay within max_in_flight, and none fails."""
    service = LocalService(lightning={KEY: 10_000}, latency=3.0, books_detail=False, rate_limit=10**9)
    most = done = 0
    async with opened(service, max_in_flight=2_000) as client:

        async def one() -> None:
            nonlocal most, done
            await client.solve(V2, timeout=3_600)
            done += 1
            most = max(most, client.statistics().in_flight)

        async with anyio.create_task_group() as tasks:
            for _ in range(10_000):
                tasks.start_soon(one)
        at_rest(client)

    assert 10_000 == done == len(service.books.delivered)
    assert 1_900 < most <= 2_000


async def test_throttled_submits_are_repeated() -> None:
    """A 429 and a lack of providers cost nothing and are tried again."""
    service = LocalService(solve_time=6)
    service.script(
        "createTask", Error("ERROR_TOO_MUCH_REQUESTS", status=429), Error("ERROR_NO_SLOT_AVAILABLE", status=200)
    )
    async with opened(service) as client:
        assert (await client.solve(V2)).token
        assert 1 == client.statistics().throttled

    assert 1 == len(service.books.accepted)
    assert 3 == service.books.request_counts["createTask"]


# --- a generator around a stream --------------------------------------------------------------------------------------


async def _found(client: AsyncClient) -> AsyncIterator[Outcome[Any]]:
    """A generator that yields from inside the block."""
    async with client.solve_many([TURNSTILE] * 6) as outcomes:
        async for outcome in outcomes:
            yield outcome


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # what trio says of it, rightly
@pytest.mark.parametrize("closing", [True, False])
async def test_a_generator_that_is_left_half_way(closing: bool) -> None:
    """Whoever leaves it goes on, in whatever scopes, and its solves end: at once if it is closed, else some time."""
    service = LocalService(keys=[KEY], seed=1)
    service.solve_next(after=0)
    service.solve_next(after=600, times=5)
    async with opened(service, polling=Polling(interval=0.05)) as client:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.1)
                generator = _found(client)
                async for outcome in generator:
                    assert outcome.ok
                    break
                if closing:
                    await generator.aclose()  # type: ignore[attr-defined]
                    assert client.statistics().in_flight == 0
                del generator
                gc.collect()
                await anyio.sleep(0.2)
            while client.statistics().in_flight:
                await anyio.sleep(0.05)
        assert len(client.abandoned) == 5


async def test_a_generator_that_ends_in_another_task() -> None:
    """Python ends it wherever it happens to be: neither task is harmed."""
    service = LocalService(keys=[KEY], seed=1)
    service.solve_next(after=0)
    service.solve_next(after=600, times=5)
    async with opened(service, polling=Polling(interval=0.05)) as client:
        generator = _found(client)
        with anyio.fail_after(20):
            assert (await anext(generator)).ok
            async with anyio.create_task_group() as group:
                group.start_soon(generator.aclose)  # type: ignore[attr-defined]
            await anyio.sleep(0.01)
        assert len(client.abandoned) == 5


async def test_a_defect_in_a_solve_comes_out_of_the_loop() -> None:
    """As it is, where the next outcome is asked for: what runs in the block is not cancelled."""

    class Defect(Exception):  # noqa: N818 - an exception of somebody else's
        pass

    class Broken(RateLimiter):
        async def acquire(self) -> None:
            await anyio.sleep(0.01)
            raise Defect

    service = LocalService(keys=[KEY])
    async with opened(service, rate_limit=Broken()) as client:
        with pytest.raises(Defect):
            async with client.solve_many([TURNSTILE] * 3) as outcomes:
                await anyio.sleep(0.05)
                with pytest.raises(Defect):
                    await anext(outcomes)
                raise Defect
        with pytest.raises(Defect):
            async with client.solve_many([TURNSTILE] * 3):
                await anyio.sleep(0.05)
        assert client.statistics().in_flight == 0


async def test_a_stream_hears_of_a_native_cancellation(anyio_backend_name: str) -> None:
    """asyncio's own `Task.cancel()` ends the block, and all that runs in it."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio has it")
    service = LocalService(keys=[KEY])
    service.solve_next(after=600, times=3)
    async with opened(service, polling=Polling(interval=0.05)) as client:

        async def stream() -> None:
            async with client.solve_many([TURNSTILE] * 3) as outcomes:
                async for _ in outcomes:
                    pass

        task = asyncio.create_task(stream())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.statistics().in_flight == 0
        assert len(client.abandoned) == 3


async def _slow(seconds: float) -> AsyncIterator[RecaptchaV2]:
    """An input that is long in coming behind the first."""
    yield V2
    await anyio.sleep(seconds)
    yield V2


async def test_an_account_error_does_not_wait_for_the_next_input() -> None:
    """The iteration ends with the error while the next input is still waited for; the iterable is cancelled."""
    async with opened(LocalService(keys=["ucap_other"])) as client:
        with anyio.fail_after(100), pytest.raises(AuthenticationError):
            async with client.solve_many(_slow(1_000)) as outcomes:
                async for _ in outcomes:
                    pass
        at_rest(client)


@pytest.mark.parametrize("draining", [True, False])
async def test_the_clients_end_does_not_wait_for_the_next_input(draining: bool) -> None:
    """Nothing runs, and an input is waited for: the end of the client ends the iteration, too."""
    raised: list[ClientStateError] = []

    async def read() -> None:
        try:
            async with client.solve_many(_slow(1_000)) as outcomes:
                async for outcome in outcomes:
                    assert outcome.ok
        except ClientStateError as error:
            raised.append(error)

    with anyio.fail_after(200):
        async with opened(LocalService()) as client, anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.sleep(100)
            await (client.drain(10) if draining else client.aclose())

    assert len(raised) == 1
    assert ("draining" if draining else "closed") in raised[0].message


async def test_gather_reads_on_while_the_account_is_refused() -> None:
    """Each input has its outcome, however late it comes."""
    async with opened(LocalService(keys=["ucap_other"])) as client:
        outcomes = await client.gather(_slow(1_000))

    assert [AuthenticationError] * 2 == [type(outcome.error) for outcome in outcomes]


@pytest.mark.parametrize("whose", ["the input", "a solve"])
async def test_a_foreign_cancellation_is_no_end_of_the_input(whose: str, anyio_backend_name: str) -> None:
    """A task that somebody cancels by asyncio's own means does not make a list of outcomes shorter."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio has it")

    async def inputs() -> AsyncIterator[RecaptchaV2]:
        yield V2
        yield V2
        if whose == "the input":
            sleeping = asyncio.create_task(asyncio.sleep(100))
            asyncio.get_running_loop().call_later(1, sleeping.cancel)
            await sleeping

    async with opened(LocalService(solve_time=8)) as client:
        before = asyncio.all_tasks()
        gathering = asyncio.create_task(client.gather(inputs()))
        await asyncio.sleep(3)
        if whose == "a solve":
            (asyncio.all_tasks() - before - {gathering}).pop().cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathering
        at_rest(client)

    assert len(client.abandoned) == 2


@pytest.mark.parametrize("last", [True, False])
async def test_an_outcome_goes_to_the_next_reader(last: bool, anyio_backend_name: str) -> None:
    """A reader is cancelled in the moment in which it is handed an outcome: another one gets it, at once."""
    if anyio_backend_name != "asyncio":
        pytest.skip("only asyncio cancels a task that goes on already")
    seen: dict[int, str] = {}

    async def read(name: str) -> None:
        async for outcome in outcomes:
            seen[outcome.index] = name

    def cancel(event: Event) -> None:
        if isinstance(event, Solved):  # the reader is called right after this, and cancelled before it goes on
            asyncio.get_running_loop().call_soon(first.cancel)

    async with opened(LocalService(solve_time=8), on_event=cancel) as client:
        async with client.solve_many([V2] if last else _slow(1_000)) as outcomes:
            first = asyncio.create_task(read("first"))
            await asyncio.sleep(1)
            second = asyncio.create_task(read("second"))
            await asyncio.sleep(100)
            assert seen == {0: "second"}
            second.cancel()
