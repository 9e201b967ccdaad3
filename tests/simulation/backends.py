"""Running a world on asyncio and on trio: virtual time, and an order of tasks that only the seed decides."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any, Literal

import anyio
import trio
import trio._core._run as trio_run
import trio.testing

from ucaptcha_async.testing import VirtualLoop

Backend = Literal["asyncio", "trio"]

BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")


class _Task(asyncio.Task[Any]):
    """A task that knows its place in the order of creation."""

    number = 0


class ShuffledLoop(VirtualLoop):
    """A virtual loop in which tasks that are ready at the same moment run in an order drawn from a seed.

    Only steps of tasks change places: asyncio relies on the order of other callbacks. They are sorted first, as anyio
    keeps tasks in sets, whose order differs from run to run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(f"{seed}:loop")
        self._created = 0
        self.set_task_factory(self._make)

    def _make(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
        task = _Task(coroutine, loop=loop, **options)
        self._created += 1
        task.number = self._created
        return task

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if len(ready) > 1:
            places = [place for place, handle in enumerate(ready) if _task_of(handle) is not None]
            steps = sorted((ready[place] for place in places), key=_number)
            self._random.shuffle(steps)
            for place, step in zip(places, steps, strict=True):
                ready[place] = step
        super()._run_once()  # type: ignore[misc]


def _task_of(handle: Any) -> _Task | None:
    owner = getattr(handle._callback, "__self__", None)
    return owner if isinstance(owner, _Task) else None


def _number(handle: Any) -> int:
    task = _task_of(handle)
    return 0 if task is None else task.number


def run(main: Callable[[], Awaitable[None]], backend: Backend, seed: int) -> None:
    """Run a world's main function in virtual time."""
    with _no_garbage_collection():
        if backend == "asyncio":
            anyio.run(main, backend="asyncio", backend_options={"loop_factory": lambda: ShuffledLoop(seed)})
        else:
            with _seeded_trio(seed):
                clock = trio.testing.MockClock(autojump_threshold=0)
                anyio.run(main, backend="trio", backend_options={"clock": clock})


@contextlib.contextmanager
def _seeded_trio(seed: int) -> Iterator[None]:
    before, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        trio_run._r.setstate(state)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Weak references must not die at moments that the seed does not decide."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def tasks_alive() -> int:
    """How many tasks the event loop has now."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living
