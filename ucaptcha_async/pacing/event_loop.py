"""The event loop that runs, asked for once: its clock, its sleep, its tasks, and the way into it from any thread.

What anyio offers for these is right, and costs more: it asks for the loop at each question, and a task of its groups
holds twice as much as one of the loop's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import anyio
import attrs

from ucaptcha_async.errors import ClientStateError

from .time_limit import AsyncioTimeLimit, TimeLimit, TrioTimeLimit, Watch
from .waiter import Waiter


class Signal(Protocol):
    """What one task waits for: an event for one waiter at a time."""

    def set(self) -> None:
        """Let the waiter go on, now or when it comes."""
        ...

    def is_set(self) -> bool:
        """Whether it was set."""
        ...

    def wait(self) -> Awaitable[None]:
        """Wait until it is set; a checkpoint only if it is not."""
        ...


class Running(Protocol):
    """A task that was spawned."""

    def cancel(self) -> object:
        """Cancel it."""
        ...


class Stopped(Exception):  # noqa: N818 - it is never raised: it tells how a task ended
    """A spawned task was cancelled, by `Running.cancel` or by the event loop's end."""


Ended = Callable[[Running, BaseException | None], None]
"""Told of a task's end: the error is `None` for a good one, `Stopped` for a cancelled one."""

Spawn = Callable[[Coroutine[Any, Any, object]], Running]
"""Starts a task that no cancel scope around the caller reaches. Whoever starts it keeps it until its end."""


@attrs.frozen(eq=False)
class EventLoop:
    """One running event loop, of asyncio or trio.

    Attributes:
        identity: What is the same as long as it is the same loop.
        time: The loop's clock, in seconds.
        sleep: Sleeps for seconds; a checkpoint even for 0.
        limit: Makes the `TimeLimit` of a call, until a time of the loop's clock.
        spawner: Makes what starts tasks, from what is told of their ends: one callback for all of them.
        call_soon: Runs a function in the loop; right from any thread, and from a finaliser.
        runs_here: Whether this is the loop that runs the caller.
        is_trio: Whether it is trio's.
    """

    identity: object
    time: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    limit: Callable[[float], TimeLimit]
    spawner: Callable[[Ended], Spawn] = attrs.field(repr=False)
    call_soon: Callable[[Callable[[], object]], object] = attrs.field(repr=False)
    runs_here: Callable[[], bool] = attrs.field(repr=False)
    is_trio: bool

    async def uninterrupted(self, work: Coroutine[Any, Any, None], patience: Callable[[], float] | None = None) -> None:
        """Await something in a task of its own, so that it goes on when the caller is cancelled, which is raised then.

        A shield alone does not do it: it does not learn of a cancellation from outside, and asyncio's own
        `Task.cancel()` reaches through it.

        Args:
            work: What is awaited.
            patience: Called when the caller is cancelled: for how many seconds the work may still go on. Default: for
                as long as it takes.
        """
        done, ends = signal(), list[BaseException]()

        def ended(_: Running, error: BaseException | None) -> None:
            if error is not None:
                ends.append(error)
            done.set()

        running = self.spawner(ended)(work)
        try:
            await done.wait()
        except anyio.get_cancelled_exc_class():
            until = math.inf if patience is None else self.time() + patience()
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await wait_through(done, until)
            if not done.is_set():
                running.cancel()
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await wait_through(done)
            raise
        finally:
            error = ends.pop() if ends else None
            del running
        if error is not None:
            try:
                raise raised(error)
            finally:
                del error  # the frame must not keep its own exception alive

    def may_still_run(self) -> bool:
        """Whether somebody else could be running in it, so that state must not move to another loop."""
        if self.is_trio:
            import trio

            try:
                self.call_soon(_nothing)
            except trio.RunFinishedError:
                return False
            return True
        return bool(self.identity.is_running())  # type: ignore[attr-defined]

    def once_begun(self, cancel: Callable[[], object]) -> None:
        """Cancel a spawned task once it has begun. asyncio would not begin one that is cancelled at once, and what it
        was given would be lost.
        """
        if self.is_trio:
            cancel()
        else:
            self.identity.call_soon(cancel)  # type: ignore[attr-defined]

    def call_later_from_anywhere(self, function: Callable[[], object]) -> None:
        """Like `call_soon`; nothing happens if the loop has ended."""
        with contextlib.suppress(RuntimeError):  # trio's RunFinishedError is one, too
            self.call_soon(function)


def current() -> EventLoop:
    """The running event loop.

    Raises:
        ClientStateError: None runs here.
    """
    running = _running()
    if running is None:
        raise ClientStateError("no event loop of asyncio or trio runs in this thread")
    if _is_trio(running):
        import trio

        token = trio.lowlevel.current_trio_token()

        def runs_in_trio() -> bool:
            return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is token

        return EventLoop(
            token, trio.current_time, trio.sleep, TrioTimeLimit, _trio_spawner, token.run_sync_soon, runs_in_trio, True
        )
    loop = asyncio.get_running_loop()

    def runs_in_asyncio() -> bool:
        try:
            return asyncio.get_running_loop() is loop
        except RuntimeError:
            return False

    # One context for all that needs none: else there is a copy for each timer and each task.
    context = contextvars.copy_context()
    limit = functools.partial(AsyncioTimeLimit, Watch(loop, context))
    spawner = functools.partial(_asyncio_spawner, loop, context)
    sleep = functools.partial(_sleep_in_asyncio, loop, context)
    # Asked several times for each request: not by way of the loop, where that would do nothing else.
    clock = time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
    return EventLoop(loop, clock, sleep, limit, spawner, loop.call_soon_threadsafe, runs_in_asyncio, False)


def signal() -> Signal:
    """A signal for a task of the running event loop."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        made: Signal = trio.Event()
        return made
    return _AsyncioSignal()


def raised(end: BaseException) -> BaseException:
    """What the end of a spawned task is to whoever waits for it, and has not cancelled it."""
    return anyio.get_cancelled_exc_class()() if isinstance(end, Stopped) else end


async def wait_through(waited: Signal, deadline: float = math.inf) -> None:
    """Wait for a signal, or for a time of the loop's clock, whatever happens.

    A cancellation that comes meanwhile is raised at the end.
    """
    cancelled = None
    while not waited.is_set() and anyio.current_time() < deadline:
        try:
            with anyio.CancelScope(deadline=deadline, shield=True):
                await waited.wait()
        except anyio.get_cancelled_exc_class() as error:  # no shield keeps out asyncio's own `Task.cancel()`
            cancelled = error
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # the frame must not keep its own exception alive


class _AsyncioSignal:
    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        # In the next turn, not at once as a `Waiter`: whoever sets it may be in the middle of something.
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self) -> Awaitable[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        if self._is_set:
            self._waiter.set_result(None)
        return self._waiter


async def _sleep_in_asyncio(loop: asyncio.AbstractEventLoop, context: contextvars.Context, seconds: float) -> None:
    if seconds <= 0:
        return await asyncio.sleep(0)
    waiter = Waiter(loop)
    timer = loop.call_later(seconds, waiter.call, context=context)
    try:
        await waiter
    finally:
        timer.cancel()


def _asyncio_spawner(loop: asyncio.AbstractEventLoop, context: contextvars.Context, ended: Ended) -> Spawn:
    def told(task: asyncio.Task[object]) -> None:
        ended(task, Stopped() if task.cancelled() else task.exception())

    def spawn(way: Coroutine[Any, Any, object]) -> Running:
        task = loop.create_task(way)
        # Not in the task itself: asyncio does not even start a task that is cancelled at once.
        task.add_done_callback(told, context=context)
        return task

    return spawn


def _trio_spawner(ended: Ended) -> Spawn:
    import trio

    async def system_task(scope: trio.CancelScope, way: Coroutine[Any, Any, object]) -> None:
        end: BaseException | None = Stopped()
        try:
            with scope:
                await way
                end = None
        except trio.Cancelled:  # the event loop ends
            raise
        except BaseException as error:  # what comes out of a system task would end trio
            end = error
        finally:
            ended(scope, end)
            del end  # the frame must not keep its own exception alive

    def spawn(way: Coroutine[Any, Any, object]) -> Running:
        scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(system_task, scope, way, context=contextvars.copy_context())
        return scope

    return spawn


def _running() -> object | None:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        token: object = trio.lowlevel.current_trio_token()
        return token
    try:
        loop: object = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop


def _is_trio(identity: object) -> bool:
    return type(identity).__module__.startswith("trio")


def _nothing() -> None:
    pass
