"""Virtual time: the clock jumps, on both backends."""

from __future__ import annotations

import time

import anyio
import pytest

pytestmark = pytest.mark.virtual_time


async def test_sleeping_jumps() -> None:
    """An hour of sleep takes no time, and the clock says an hour passed."""
    real, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(3600)

    assert 3600 == pytest.approx(anyio.current_time() - virtual)
    assert time.monotonic() - real < 60


async def test_order_of_sleepers() -> None:
    """Sleepers wake in the order of their deadlines, not of their start."""
    woken: list[int] = []

    async def sleeper(delay: int) -> None:
        await anyio.sleep(delay)
        woken.append(delay)

    async with anyio.create_task_group() as tasks:
        for delay in (30, 10, 20):
            tasks.start_soon(sleeper, delay)

    assert [10, 20, 30] == woken
