"""The time of a call: its end comes at the deadline or from outside, in a step as between two of them."""

from __future__ import annotations

import itertools
import json
import math

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream

from tests.helpers import KEY, TURNSTILE
from tests.transport_kit import request, response, server
from ucaptcha_async import AsyncClient
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.solving.session import SUBMITS_AHEAD
from ucaptcha_async.solving.time_limit import TimeIsUp, TimeLimited

virtual = pytest.mark.virtual_time


async def rest(call: TimeLimited, when: float) -> None:
    """Wait as a job waits for its next poll."""
    try:
        await call.set_alarm(current(), when)
    finally:
        call.clear_alarm()
    call.check_time(when)


@virtual
async def test_alarm_comes_at_its_time() -> None:
    call, start = TimeLimited(), anyio.current_time()

    await rest(call, start + 30)

    assert anyio.current_time() == pytest.approx(start + 30)
    assert call.alarm is None


@virtual
async def test_time_that_is_past_is_still_a_checkpoint() -> None:
    ran: list[str] = []

    async def other() -> None:
        ran.append("other")

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await rest(TimeLimited(), anyio.current_time() - 5)

    assert ran == ["other"]


@virtual
async def test_deadline_comes_before_the_alarm() -> None:
    call, start = TimeLimited(), anyio.current_time()
    call.deadline = start + 10

    with pytest.raises(TimeIsUp):
        await rest(call, start + 30)

    assert anyio.current_time() == pytest.approx(start + 10)


@virtual
async def test_deadline_ends_a_step() -> None:
    call, start = TimeLimited(), anyio.current_time()
    call.deadline = start + 10

    with pytest.raises(TimeIsUp), call.in_time():
        await anyio.sleep(30)

    assert anyio.current_time() == pytest.approx(start + 10)
    assert call.step is None


@virtual
@pytest.mark.parametrize("way", ["step", "alarm"])
async def test_stopped_from_outside(way: str) -> None:
    """What runs ends at once, and what comes next does not begin."""
    call, start = TimeLimited(), anyio.current_time()
    ended: list[float] = []

    async def wait() -> None:
        with pytest.raises(TimeIsUp):
            if way == "alarm":
                await rest(call, start + 30)
            else:
                with call.in_time():
                    await anyio.sleep(30)
        ended.append(anyio.current_time() - start)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(5)
        call.stop()

    assert ended == [pytest.approx(5)]
    with pytest.raises(TimeIsUp), call.in_time():
        raise AssertionError("this step must not begin")
    with pytest.raises(TimeIsUp):
        await rest(call, math.inf)


@virtual
@pytest.mark.parametrize("way", ["step", "alarm"])
async def test_a_cancellation_of_the_callers_is_no_end_of_time(way: str) -> None:
    call, caught = TimeLimited(), ""
    with anyio.move_on_after(5) as scope:
        try:
            if way == "alarm":
                await rest(call, anyio.current_time() + 30)
            else:
                with call.in_time():
                    await anyio.sleep(30)
        except BaseException as error:
            caught = type(error).__name__
            raise

    assert scope.cancelled_caught
    assert caught in ("CancelledError", "Cancelled")
    assert call.alarm is None
    assert call.step is None


async def test_a_good_step_ends_well() -> None:
    with TimeLimited().in_time():
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
