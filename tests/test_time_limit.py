"""The time of a call: its end comes at the deadline or from outside, in a step as between two of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
import sniffio
from anyio.abc import ByteStream

from tests.helpers import KEY, TURNSTILE
from tests.transport_kit import request, response, server
from ucaptcha_async import AsyncClient
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.pacing.time_limit import TimeIsUp, TimeLimit
from ucaptcha_async.solving.session import SUBMITS_AHEAD

virtual = pytest.mark.virtual_time


def limit_of(seconds: float) -> TimeLimit:
    """The limit of a call that begins now."""
    return current().limit(anyio.current_time() + seconds)


async def rest(limit: TimeLimit, when: float) -> None:
    """Wait as a job waits for its next poll."""
    try:
        await limit.alarm(when)
    finally:
        limit.alarm_off()
    limit.check(when)


async def step(limit: TimeLimit, seconds: float) -> None:
    """Do what a job does in a step."""
    with limit:
        await anyio.sleep(seconds)


@virtual
async def test_alarm_comes_at_its_time() -> None:
    start = anyio.current_time()

    await rest(limit_of(math.inf), start + 30)

    assert anyio.current_time() == pytest.approx(start + 30)


@virtual
async def test_time_that_is_past_is_still_a_checkpoint() -> None:
    ran: list[str] = []

    async def other() -> None:
        ran.append("other")

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await rest(limit_of(math.inf), anyio.current_time() - 5)

    assert ran == ["other"]


@virtual
async def test_deadline_comes_before_the_alarm() -> None:
    limit, start = limit_of(10), anyio.current_time()

    with pytest.raises(TimeIsUp):
        await rest(limit, start + 30)

    assert anyio.current_time() == pytest.approx(start + 10)


@virtual
async def test_deadline_ends_a_step() -> None:
    limit, start = limit_of(10), anyio.current_time()

    with pytest.raises(TimeIsUp):
        await step(limit, 30)

    assert anyio.current_time() == pytest.approx(start + 10)
    with pytest.raises(TimeIsUp):
        await step(limit, 0)


@virtual
async def test_each_step_ends_at_its_own_deadline() -> None:
    """One timer serves them all: a nearer deadline may come later, and a step may end before its own."""
    loop, start = current(), anyio.current_time()
    ended: dict[float, float] = {}

    async def call(begins: float, seconds: float) -> None:
        await anyio.sleep(begins)
        with pytest.raises(TimeIsUp):
            await step(loop.limit(start + seconds), 1_000)
        ended[seconds] = anyio.current_time() - start

    async with anyio.create_task_group() as group:
        group.start_soon(step, loop.limit(start + 5), 2)
        for begins, seconds in ((0, 40), (1, 20), (3, 30), (4, 10), (35, 41), (39, 300)):
            group.start_soon(call, begins, seconds)

    assert ended == {seconds: pytest.approx(seconds) for seconds in (40, 20, 30, 10, 41, 300)}


@virtual
async def test_a_deadline_that_is_over_ends_the_step_at_its_first_wait() -> None:
    limit, start = limit_of(-1), anyio.current_time()

    with pytest.raises(TimeIsUp):
        await step(limit, 30)

    assert anyio.current_time() == pytest.approx(start)


@virtual
@pytest.mark.parametrize("way", [step, rest])
async def test_ended_from_outside(way: Callable[[TimeLimit, float], Awaitable[None]]) -> None:
    """What runs ends at once, and what comes next does not begin."""
    limit, start = limit_of(math.inf), anyio.current_time()
    ended: list[float] = []

    async def wait() -> None:
        with pytest.raises(TimeIsUp):
            await way(limit, start + 30)
        ended.append(anyio.current_time() - start)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(5)
        limit.end()

    assert ended == [pytest.approx(5)]
    with pytest.raises(TimeIsUp), limit:
        raise AssertionError("this step must not begin")
    with pytest.raises(TimeIsUp):
        await rest(limit, math.inf)


@virtual
async def test_ended_by_its_own_task() -> None:
    """It hits the step at its next wait, and nothing behind the step."""
    limit = limit_of(math.inf)
    with pytest.raises(TimeIsUp), limit:
        limit.end()
        await anyio.sleep(30)

    other = limit_of(math.inf)
    with other:
        other.end()
    await anyio.sleep(1)


@virtual
@pytest.mark.parametrize("way", [step, rest])
async def test_a_cancellation_of_the_callers_is_no_end_of_time(
    way: Callable[[TimeLimit, float], Awaitable[None]],
) -> None:
    limit, caught = limit_of(10), ""
    with anyio.move_on_after(5) as scope:
        try:
            await way(limit, anyio.current_time() + 30)
        except BaseException as error:
            caught = type(error).__name__
            raise

    assert scope.cancelled_caught
    assert caught in ("CancelledError", "Cancelled")
    await step(limit, 1)


@virtual
@pytest.mark.parametrize("first", ["caller", "deadline"])
async def test_a_cancellation_at_the_moment_of_the_deadline(first: str) -> None:
    """Both come before the call can run: the caller's reaches its scope, and none is left over."""
    limit, reached = limit_of(math.inf), ""

    async def call(scope: anyio.CancelScope) -> None:
        nonlocal reached
        with scope:
            reached = "in the scope"
            try:
                await step(limit, 30)
            except TimeIsUp:
                await anyio.sleep(30)
            reached = "behind the scope's wait"
        await anyio.sleep(3)
        reached = "the end"

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(call, scope)
        await anyio.sleep(5)
        for end in (scope.cancel, limit.end) if first == "caller" else (limit.end, scope.cancel):
            end()

    assert scope.cancelled_caught
    assert reached == "the end"


@pytest.mark.parametrize("first", ["caller", "deadline"])
async def test_a_cancellation_at_the_moment_of_the_deadline_in_a_bare_turn(first: str) -> None:
    """A task that only lets others go on keeps one cancellation in mind: the scope must know it for its own."""
    limit, scope = limit_of(math.inf), anyio.CancelScope()
    ends = (scope.cancel, limit.end) if first == "caller" else (limit.end, scope.cancel)

    def end() -> None:
        for one in ends:
            one()

    with scope:
        current().call_soon(end)
        try:
            with limit:
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
        except TimeIsUp:
            await anyio.sleep(30)

    assert scope.cancelled_caught
    await anyio.lowlevel.checkpoint()


async def test_asyncios_own_cancellation_goes_first() -> None:
    if sniffio.current_async_library() != "asyncio":
        return
    limit = limit_of(math.inf)
    task = asyncio.ensure_future(step(limit, 30))
    await asyncio.sleep(0)

    limit.end()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_good_step_ends_well() -> None:
    with limit_of(30):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("transport", ["httpx", "fast"])
async def test_submits_do_not_wait_for_the_answers_to_others(transport: str) -> None:
    """A service that answers nobody until all have asked: more submits than are made ahead of their departure."""
    count, numbers, all_asked = 2 * SUBMITS_AHEAD + 5, itertools.count(0), anyio.Event()

    async def handle(stream: ByteStream) -> None:
        while True:
            await request(stream)
            number = next(numbers)
            if number == count:
                all_asked.set()
            if number > 0:  # the first is alone: it finds the name of the type
                await all_asked.wait()
            body = {"errorId": 0, "taskId": f"t-{number}", "status": "idle"}
            await stream.send(response(json.dumps(body).encode()))

    async with server(handle) as port:
        with anyio.fail_after(25):
            client = AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", transport=transport)  # type: ignore[arg-type]
            async with client:
                jobs = [await client.submit(TURNSTILE)]

                async def submit() -> None:
                    jobs.append(await client.submit(TURNSTILE))

                async with anyio.create_task_group() as group:
                    for _ in range(count):
                        group.start_soon(submit)

    assert {job.task_id for job in jobs} == {f"t-{number}" for number in range(count + 1)}
