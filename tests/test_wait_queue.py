"""The line in which tasks wait to be called."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint

from ucaptcha_async.pacing.wait_queue import WaitQueue

pytestmark = pytest.mark.virtual_time


@attrs.define
class Line:
    """A line, who of it was called with what, and what came back."""

    went: list[tuple[int, str]] = attrs.field(factory=list)
    returned: list[str] = attrs.field(factory=list)
    scopes: list[anyio.CancelScope] = attrs.field(factory=list)
    queue: WaitQueue[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.queue = WaitQueue(self.returned.append)

    async def join(self, number: int) -> None:
        with self.scopes[number]:
            self.went.append((number, await self.queue.wait()))


@asynccontextmanager
async def line_of(count: int) -> AsyncIterator[Line]:
    """A line of so many; all of them have gone, or were cancelled, at the end."""
    line = Line()
    with anyio.fail_after(1):
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                line.scopes.append(anyio.CancelScope())
                tasks.start_soon(line.join, number)
                await checkpoint()
            yield line
    assert len(line.queue) == 0


async def test_first_come_first_served() -> None:
    """Who is called goes on with what was handed over: the first of the line, or the last; nobody if nobody waits."""
    async with line_of(4) as line:
        assert line.queue.call("a")
        await anyio.sleep(0.1)
        assert line.queue.call("b", last=True)
        await anyio.sleep(0.1)
        line.queue.call_all("c")
        assert not line.queue.call("d")

    assert line.went[:2] == [(0, "a"), (3, "b")]
    assert sorted(line.went[2:]) == [(1, "c"), (2, "c")]
    assert line.returned == []


async def test_who_gives_up_leaves_the_line() -> None:
    """A cancelled waiter is not called any more."""
    async with line_of(3) as line:
        line.scopes[0].cancel()
        await anyio.sleep(0.1)
        line.queue.call_all("a")

    assert sorted(line.went) == [(1, "a"), (2, "a")]


async def test_nothing_that_was_handed_over_is_lost() -> None:
    """What a waiter was handed that is cancelled before it goes on is returned, or it goes on with it."""
    async with line_of(2) as line:
        line.queue.call("a")
        line.scopes[0].cancel()
        await anyio.sleep(0.1)
        assert [handed for _, handed in line.went] + line.returned == ["a"]
        line.queue.call("b")

    assert line.went[-1] == (1, "b")


async def test_who_is_recalled_waits_again() -> None:
    """Those who were called and recalled before they went on have their places again, ahead of those behind them."""
    async with line_of(4) as line:
        line.queue.call("a")
        line.queue.call("b")
        assert line.queue.recall() == ["a", "b"]
        await anyio.sleep(0.1)
        assert (len(line.queue), line.went) == (4, [])
        for handed in "cdef":
            line.queue.call(handed)
            await anyio.sleep(0.1)

    assert line.went == [(0, "c"), (1, "d"), (2, "e"), (3, "f")]


async def test_who_is_recalled_may_be_called_at_once_or_give_up() -> None:
    """After a recall a waiter holds nothing: it may be called again before it looked, or be cancelled."""
    async with line_of(2) as line:
        line.queue.call("a")
        line.queue.call("b")
        line.queue.recall()
        line.queue.call("c")
        line.scopes[1].cancel()
        await anyio.sleep(0.1)

    assert (line.went, line.returned) == ([(0, "c")], [])


async def test_a_line_that_is_forgotten() -> None:
    """Those of an event loop that has ended are forgotten."""
    async with line_of(3) as line:
        line.queue.clear()
        assert not line.queue.call("a")
        for scope in line.scopes:
            scope.cancel()

    assert (line.went, line.returned) == ([], [])
