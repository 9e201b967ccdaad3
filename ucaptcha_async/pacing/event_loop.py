"""The event loop that runs, asked for once: its clock, its sleep, and the way back into it from any thread."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable

import attrs

from ucaptcha_async.errors import ClientStateError


@attrs.frozen(eq=False)
class EventLoop:
    """One running event loop, of asyncio or trio. Asking anyio for it at each question takes a tenth of a solve.

    Attributes:
        identity: What is the same as long as it is the same loop.
        time: The loop's clock, in seconds.
        sleep: Sleeps for seconds; a checkpoint even for 0.
        call_soon: Runs a function in the loop; right from any thread, and from a finaliser.
        runs_here: Whether this is the loop that runs the caller.
        is_trio: Whether it is trio's.
    """

    identity: object
    time: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
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

        return EventLoop(token, trio.current_time, trio.sleep, token.run_sync_soon, runs_in_trio, True)
    import asyncio

    loop = asyncio.get_running_loop()

    def runs_in_asyncio() -> bool:
        try:
            return asyncio.get_running_loop() is loop
        except RuntimeError:
            return False

    return EventLoop(loop, loop.time, asyncio.sleep, loop.call_soon_threadsafe, runs_in_asyncio, False)


def _running() -> object | None:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        token: object = trio.lowlevel.current_trio_token()
        return token
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        loop: object = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop


def _is_trio(identity: object) -> bool:
    return type(identity).__module__.startswith("trio")


def _nothing() -> None:
    pass
