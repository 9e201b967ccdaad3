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
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

import anyio
import attrs

from ucaptcha_async.errors import ClientStateError


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


class Alarm(Awaitable[None], Protocol):
    """A time that one task waits for, by `await`. A checkpoint in any case."""

    def ring(self) -> None:
        """Let the waiter go on now."""
        ...

    def off(self) -> None:
        """Forget the time. Whoever has waited calls this, however the wait has ended."""
        ...


class Running(Protocol):
    """A task that was spawned."""

    def cancel(self) -> object:
        """Cancel it."""
        ...


class Stopped(Exception):  # noqa: N818 - it is never raised: it tells how a task ended
    """A spawned task was cancelled, by `Running.cancel` or by the event loop's end."""


Ended = Callable[[Any, BaseException | None], None]
Spawn = Callable[[Coroutine[Any, Any, object], Ended, Any], Running]


@attrs.frozen(eq=False)
class EventLoop:
    """One running event loop, of asyncio or trio.

    Attributes:
        identity: What is the same as long as it is the same loop.
        time: The loop's clock, in seconds.
        sleep: Sleeps for seconds; a checkpoint even for 0.
        alarm: Sets an alarm for a time of the loop's clock.
        spawn: Starts a task that no cancel scope around the caller reaches. At its end it calls `ended(key, error)`:
            `None` for a good end, `Stopped` for a cancelled one. Whoever starts it keeps what is returned, and waits
            for that call.
        call_soon: Runs a function in the loop; right from any thread, and from a finaliser.
        runs_here: Whether this is the loop that runs the caller.
        is_trio: Whether it is trio's.
    """

    identity: object
    time: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    alarm: Callable[[float], Alarm]
    spawn: Spawn = attrs.field(repr=False)
    call_soon: Callable[[Callable[[], object]], object] = attrs.field(repr=False)
    runs_here: Callable[[], bool] = attrs.field(repr=False)
    is_trio: bool

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
            token, trio.current_time, trio.sleep, _TrioAlarm, _spawn_in_trio, token.run_sync_soon, runs_in_trio, True
        )
    loop = asyncio.get_running_loop()

    def runs_in_asyncio() -> bool:
        try:
            return asyncio.get_running_loop() is loop
        except RuntimeError:
            return False

    # One context for all that needs none: else there is a copy for each timer and each task.
    context = contextvars.copy_context()
    alarm = functools.partial(_AsyncioAlarm, loop, context)
    spawn = functools.partial(_spawn_in_asyncio, loop, context)
    sleep = functools.partial(_sleep_in_asyncio, loop, alarm)
    return EventLoop(loop, loop.time, sleep, alarm, spawn, loop.call_soon_threadsafe, runs_in_asyncio, False)


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
        wake(self._waiter)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self) -> Awaitable[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        if self._is_set:
            self._waiter.set_result(None)
        return self._waiter


class _AsyncioAlarm:
    __slots__ = ("_future", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context, when: float) -> None:
        self._future: asyncio.Future[None] = loop.create_future()
        self._timer = loop.call_at(when, wake, self._future, context=context)

    def __await__(self) -> Generator[Any, None, None]:
        return self._future.__await__()

    def ring(self) -> None:
        wake(self._future)

    def off(self) -> None:
        self._timer.cancel()


class _TrioAlarm:
    __slots__ = ("_scope",)

    def __init__(self, when: float) -> None:
        import trio

        self._scope = trio.CancelScope(deadline=when)

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        import trio

        with self._scope:
            await trio.sleep_forever()

    def ring(self) -> None:
        self._scope.cancel()

    def off(self) -> None:
        pass


async def _sleep_in_asyncio(
    loop: asyncio.AbstractEventLoop, alarm: Callable[[float], _AsyncioAlarm], seconds: float
) -> None:
    if seconds <= 0:
        return await asyncio.sleep(0)
    wait = alarm(loop.time() + seconds)
    try:
        await wait
    finally:
        wait.off()


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Let whoever awaits a future of asyncio go on, if there is one, and it does not already."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _spawn_in_asyncio(
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context,
    way: Coroutine[Any, Any, object],
    ended: Ended,
    key: Any,
) -> Running:
    task = loop.create_task(way)
    # Not in the task itself: asyncio does not even start a task that is cancelled at once.
    task.add_done_callback(functools.partial(_tell, ended, key), context=context)
    return task


def _tell(ended: Ended, key: Any, task: asyncio.Task[object]) -> None:
    ended(key, Stopped() if task.cancelled() else task.exception())


def _spawn_in_trio(way: Coroutine[Any, Any, object], ended: Ended, key: Any) -> Running:
    import trio

    scope = trio.CancelScope()

    async def system_task() -> None:
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
            ended(key, end)
            del end  # the frame must not keep its own exception alive

    trio.lowlevel.spawn_system_task(system_task, context=contextvars.copy_context())
    return scope


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
