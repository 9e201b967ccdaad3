"""A call that is seen to its end, for a while, after its caller was cancelled."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio

from ucaptcha_async.transport.old_exchange import Sending


def under_trio() -> bool:
    """Whether the running event loop is trio's."""
    return anyio.get_cancelled_exc_class().__module__.startswith("trio")


async def sheltered(call: Callable[[], Awaitable[object]], sending: Sending, grace: float) -> None:
    """Await `call`; when cancelled after it was sent, still wait for its end, for `grace` seconds at the most.

    A scope alone cannot do it: a shielded scope does not learn that it is being cancelled. So the call runs in a task
    of its own, out of the reach of the caller's scopes, and the caller's task shortens its time when it is cancelled.
    """
    shelter = anyio.CancelScope()
    done = anyio.Event()
    answered = False
    failure: Exception | None = None

    async def run() -> None:
        nonlocal answered, failure
        try:
            with shelter:
                await call()
                answered = True
        except Exception as error:
            failure = error

    task = _spawn(run, done.set)
    try:
        await done.wait()
    except BaseException:
        if sending.sent:
            sending.withdrawn = True  # it may still wait in the pool of an injected client
            shelter.deadline = anyio.current_time() + grace
        else:
            shelter.cancel()
        await _end_of(done)
        raise
    finally:
        del task  # until here, because asyncio itself does not keep its tasks alive
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # the frame must not keep its own exception alive
    if not answered:
        raise anyio.get_cancelled_exc_class()  # somebody cancelled the task by asyncio's own means


def _spawn(run: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> object:
    """Start a task that no scope reaches, and call `ended` at its end. Whoever starts it waits for that.

    A task group would add a bound on tasks that nobody waits for, which is dear for one task that somebody waits for.
    """
    if under_trio():
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


async def _end_of(done: anyio.Event) -> None:
    """Wait, whatever happens; no shield keeps out asyncio's own `Task.cancel()`."""
    while not done.is_set():
        with anyio.CancelScope(shield=True), contextlib.suppress(anyio.get_cancelled_exc_class()):
            await done.wait()
