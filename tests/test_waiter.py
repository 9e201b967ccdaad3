"""What lets a task of asyncio go on in the turn of the event loop in which it is called."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from tests.helpers import KEY
from tests.transport_kit import always, server, socket_wire
from ucaptcha_async import AsyncClient
from ucaptcha_async.pacing.waiter import Waiter


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def turn() -> None:
    """Let the event loop go round once."""
    await asyncio.sleep(0)


async def waiting(waiter: Waiter, said: list[str]) -> None:
    """Wait, and say how that ended."""
    try:
        await waiter
    except asyncio.CancelledError:
        said.append("cancelled")
        raise
    said.append("called")


async def begun(said: list[str]) -> tuple[Waiter, asyncio.Task[None]]:
    """A task that waits, and what it waits for."""
    waiter = Waiter(asyncio.get_running_loop())
    task = asyncio.create_task(waiting(waiter, said))
    await turn()
    return waiter, task


async def in_a_callback(function: Callable[[], object]) -> None:
    """Run something as the event loop runs a timer or what a socket brings."""
    done = asyncio.get_running_loop().create_future()

    def call() -> None:
        function()
        done.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    await done


async def test_a_callback_lets_the_task_go_on_at_once() -> None:
    said: list[str] = []
    waiter, task = await begun(said)

    await in_a_callback(lambda: (waiter.call(), said.append("callback")))

    assert ["called", "callback"] == said
    await task


async def test_another_task_lets_it_go_on_in_the_next_turn() -> None:
    said: list[str] = []
    waiter, task = await begun(said)

    waiter.call()
    said.append("caller")
    await turn()

    assert ["caller", "called"] == said
    await task


async def test_whoever_comes_later_does_not_wait() -> None:
    waiter, said = Waiter(asyncio.get_running_loop()), list[str]()
    waiter.call()

    await waiting(waiter, said)

    assert ["called"] == said


async def test_a_second_call_does_nothing() -> None:
    said: list[str] = []
    waiter, task = await begun(said)

    await in_a_callback(lambda: (waiter.call(), waiter.call()))
    waiter.call()
    await task

    assert ["called"] == said


async def test_a_cancellation_goes_before_a_later_call() -> None:
    said: list[str] = []
    waiter, task = await begun(said)

    await in_a_callback(lambda: (task.cancel("why"), waiter.call()))
    with pytest.raises(asyncio.CancelledError, match="why"):
        await task

    assert ["cancelled"] == said


async def test_a_call_goes_before_a_later_cancellation() -> None:
    said: list[str] = []
    waiter, task = await begun(said)

    await in_a_callback(lambda: (waiter.call(), task.cancel()))
    await task

    assert ["called"] == said


async def test_a_call_by_a_task_and_a_cancellation_in_one_turn() -> None:
    """It is cancelled where it waits, as with any other future of asyncio."""
    said: list[str] = []
    waiter, task = await begun(said)

    waiter.call()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["cancelled"] == said


async def test_a_scope_around_it_ends() -> None:
    waiter = Waiter(asyncio.get_running_loop())

    with anyio.move_on_after(0.01) as scope:
        await waiter

    assert scope.cancelled_caught
    assert waiter.cancelled()


async def test_others_may_wait_for_it_as_well() -> None:
    """It is a future like any other."""
    waiter, said = Waiter(asyncio.get_running_loop()), list[str]()
    waits = asyncio.create_task(waiting(waiter, said)), asyncio.create_task(waiting(waiter, said))
    waiter.add_done_callback(lambda done: said.append("told"))
    await turn()

    await in_a_callback(waiter.call)
    await asyncio.gather(*waits)

    assert ["called", "called", "told"] == sorted(said)


async def test_the_task_goes_on_in_its_own_context_and_as_itself() -> None:
    waiter, found = Waiter(asyncio.get_running_loop()), list[object]()
    own: ContextVar[str] = ContextVar("own", default="nobody's")

    async def wait() -> None:
        own.set("the task's")
        await waiter
        found.extend((asyncio.current_task(), own.get()))
        await turn()

    task = asyncio.create_task(wait())
    await turn()
    await in_a_callback(lambda: (waiter.call(), found.extend((asyncio.current_task(), own.get()))))
    await task

    assert [task, "the task's", None, "nobody's"] == found


@pytest.mark.parametrize("end", ["called", "cancelled"])
async def test_it_is_freed_without_the_collector(end: str) -> None:
    said: list[str] = []
    waiter, task = await begun(said)
    gc.collect()
    gc.disable()
    try:
        if end == "called":
            await in_a_callback(waiter.call)
        else:
            task.cancel()
        await asyncio.wait([task])
        left = weakref.ref(waiter)
        del waiter, task

        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_a_program_that_exits_after_an_answer_ends(end: BaseException) -> None:
    """What leaves a task of the caller's leaves the event loop, on uvloop too: it takes an error in a callback of a
    socket for the protocol's own, and nobody is left to stop the loop."""
    uvloop = pytest.importorskip("uvloop")
    said: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        loop.call_later(2, loop.stop)
        async with server(always(b'{"errorId":0,"balance":1}')) as port:
            client = await AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}").__aenter__()

            async def program() -> None:
                await client.get_balance()
                raise end

            task = asyncio.create_task(program())
            await asyncio.wait([task])

    with pytest.raises(type(end)):
        uvloop.run(main())
    assert not said


async def test_a_writer_that_goes_on_may_close_the_connection() -> None:
    """A write that was held up goes on, and its answer is there already: the connection is closed once."""
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    wire, there = await socket_wire()

    async def ask() -> None:
        await wire.send(b"x" * 1_000_000)
        assert await wire.receive() == b"answer"
        await wire.aclose()

    with there:
        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        there.send(b"answer")
        while not task.done():
            await asyncio.sleep(0.001)
            with suppress(BlockingIOError):
                there.recv(1_000_000)
        await task
        await asyncio.sleep(0.01)

    assert not said
