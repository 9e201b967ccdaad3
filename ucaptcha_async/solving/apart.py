"""Tasks that no scope of their caller reaches."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup


def spawn(run: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> object:
    """Start a task that no scope reaches, and call `ended` at its end. Whoever starts it waits for that.

    A task group would add a bound on tasks that nobody waits for, which is expensive for one task that somebody does.

    Returns:
        The task, to be kept until its end, because asyncio itself does not keep its tasks alive.
    """
    if anyio.get_cancelled_exc_class().__module__.startswith("trio"):
        import trio

        async def system_task() -> None:
            try:
                await run()
            finally:
                ended()

        return trio.lowlevel.spawn_system_task(system_task, context=contextvars.copy_context())
    import asyncio

    task = asyncio.ensure_future(run())
    # Not in the task itself: asyncio does not even start a task that is cancelled at once.
    task.add_done_callback(lambda _: ended())
    return task


async def end_of(done: anyio.Event) -> None:
    """Wait, whatever happens; no shield keeps out asyncio's own `Task.cancel()`."""
    while not done.is_set():
        with anyio.CancelScope(shield=True), contextlib.suppress(anyio.get_cancelled_exc_class()):
            await done.wait()


class GroupApart:
    """A task group that lives in a task of its own, so that no scope stays open in its caller's task.

    A generator that yields inside such a scope and is left half-way is finished in another task, which breaks the
    scopes of the task that entered it and cancels its program (PEP 789). This group may be left from any task.
    """

    def __init__(self) -> None:
        self.cancel_scope = anyio.CancelScope()
        self._failure: BaseException | None = None
        self._left, self._ended = anyio.Event(), anyio.Event()
        self._group: TaskGroup
        self._task: object = None

    def start_soon(self, call: Callable[..., Coroutine[Any, Any, object]], *arguments: Any) -> None:
        """Start a task in the group."""
        self._group.start_soon(call, *arguments)

    async def __aenter__(self) -> Self:
        begun = anyio.Event()
        self._task = spawn(lambda: self._live(begun), self._ended.set)
        try:
            await begun.wait()
        except BaseException:
            self.cancel_scope.cancel()
            await end_of(self._ended)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the end of all tasks; with an error, cancel them first. Raises what has failed in them, once.

        Unlike those of anyio, such a failure comes alone if it is the only one, and cancels nothing of the caller.
        """
        self._left.set()
        if error is not None:
            self.cancel_scope.cancel()
        try:
            await self._ended.wait()
        except BaseException:
            self.cancel_scope.cancel()
            await end_of(self._ended)
            raise
        failure, self._failure = self._failure, None
        if failure is not None and error is None:
            raise failure

    async def _live(self, begun: anyio.Event) -> None:
        try:
            with self.cancel_scope:
                async with anyio.create_task_group() as self._group:
                    begun.set()
                    await self._left.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._failure = _alone(error)
        finally:
            begun.set()


def _alone(error: BaseException) -> BaseException:
    """The error that task groups have wrapped, if it is the only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
