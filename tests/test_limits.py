"""The rate limiter and the bound on what is in flight, in virtual time."""

from __future__ import annotations

import anyio
import pytest

from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.limits import InFlight, RateLimiter

pytestmark = pytest.mark.virtual_time


def most_in_a_window(times: list[float], window: float) -> int:
    """The most departures in any half-open window: one of the fullest windows starts at a departure."""
    most, end = 0, 0
    for start, opened in enumerate(times):
        while end < len(times) and times[end] < opened + window:
            end += 1
        most = max(most, end - start)
    return most


async def departures(limiter: RateLimiter, count: int) -> list[float]:
    times: list[float] = []

    async def request() -> None:
        await limiter.acquire()
        times.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(request)
    return times


@pytest.mark.parametrize("limit", [1, 2, 99, 100, 250, 1_000])
async def test_no_window_holds_more_than_the_limit(limit: int) -> None:
    """Under saturation every window holds at most the limit, and at least 98 % of it are used."""
    times = await departures(RateLimiter(limit, window=10), 3 * limit)

    assert limit >= most_in_a_window(times, 10) >= 0.98 * limit
    assert (len(times) - 1) * 10 / (times[-1] - times[0]) >= 0.98 * limit


async def test_in_flight_bound() -> None:
    """No more than the limit hold a place, and all get one in the end."""
    bound = InFlight(3)
    most = 0

    async def hold() -> None:
        nonlocal most
        await bound.acquire()
        most = max(most, bound.statistics().in_flight)
        await anyio.sleep(1)
        bound.release()

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(hold)

    assert most == 3
    assert (bound.statistics().in_flight, bound.statistics().waiting) == (0, 0)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10"])
def test_limits_are_positive_whole_numbers(wrong: int) -> None:
    """A limit that is no positive whole number is refused at once."""
    with pytest.raises(ConfigurationError, match="limit"):
        RateLimiter(wrong)
    with pytest.raises(ConfigurationError, match="limit"):
        InFlight(wrong)
