"""For tests of one's own programs: clocks that jump, and assertions on the books."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from .books import TOLERANCE, Books, TaskRecord
from .virtual import VirtualLoop

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

SHOWN = 5
"""How many tasks a message lists."""


class Abandons(Protocol):
    """What is asked of a client: `AsyncClient` has it."""

    @property
    def abandoned(self) -> Collection[str]:
        """The ids of accepted tasks that nobody waits for any more."""
        ...


def virtual_backends() -> list[ParameterSet]:
    """Return parameters for anyio's fixture `anyio_backend`: asyncio and, if it is installed, trio, in virtual time.

    Minutes of sleep take milliseconds. In a `conftest.py`:

        @pytest.fixture(params=virtual_backends())
        def anyio_backend(request):
            return request.param

    Threads and real sockets do not mix with it: the clock jumps past them.

    Raises:
        ImportError: If pytest is not installed.
    """
    import pytest

    backends = [pytest.param(("asyncio", {"loop_factory": VirtualLoop}), id="asyncio")]
    try:
        from trio.testing import MockClock
    except ImportError:
        return backends
    return [*backends, pytest.param(("trio", {"clock": MockClock(autojump_threshold=0)}), id="trio")]


def assert_paid_once(books: Books, *, solves: int | None = None) -> None:
    """Assert that no job was paid for twice; what was refunded does not count.

    Args:
        books: The books of the service.
        solves: How many tasks may be paid for. Default: works are told apart by task type, page and site key, so that
            two paid tasks that agree in all three are one work paid twice.

    Raises:
        AssertionError: The message lists the tasks.
    """
    __tracebackhide__ = True
    books.settle()
    paid = [task for task in books.tasks.values() if not task.refunded]
    if solves is None:
        for twins in _twins(paid):
            raise AssertionError(
                f"one job was paid for {len(twins)} times (if these are several, say how many: solves=…):"
                f"{_list(twins, _story)}"
            )
    elif len(paid) != solves:
        raise AssertionError(f"{solves} solves were to be paid for, and {len(paid)} were:{_list(paid, _story)}")


def _twins(paid: Iterable[TaskRecord]) -> Iterator[list[TaskRecord]]:
    works: defaultdict[tuple[str | None, ...], list[TaskRecord]] = defaultdict(list)
    for task in paid:
        works[task.key, task.type, task.website_url, task.website_key].append(task)
    return (tasks for tasks in works.values() if len(tasks) > 1)


def assert_nothing_lost(
    books: Books, client: Abandons | None = None, *, known: Iterable[str | None] = (), uncertain: int = 0
) -> None:
    """Assert that every task that is paid for was delivered, or that its id is known and it can still be waited for.

    Args:
        books: The books of the service.
        client: The client, whose `abandoned` tasks are known.
        known: Further known ids: those of jobs and of errors (`error.task_id`).
        uncertain: How many submits ended with a `SubmitUncertainError`: so many tasks may be there that nobody ever
            asked for.

    Raises:
        AssertionError: The message lists the tasks.
    """
    __tracebackhide__ = True
    ids = {*known, *(client.abandoned if client is not None else ())}
    lost = [books.tasks[task_id] for task_id in books.paid_not_delivered if task_id not in ids]
    unheard = [task for task in lost if not task.polls]
    excused = {task.id for task in unheard[:uncertain]}
    lost = [task for task in lost if task.id not in excused]
    if lost:
        raise AssertionError(f"{_count(lost)} paid for and lost:{_list(lost, _story)}")


def assert_polite(
    books: Books, *, limit: int = 10_000, window: float = 10.0, interval: float = 5.0, tolerance: float = TOLERANCE
) -> None:
    """Assert that the service's limits were kept: in every window of time, and from poll to poll of each task.

    Source: docs/api/overview, docs/api/ucaptcha/get-task-result.

    Args:
        books: The books of the service.
        limit: The most requests in any window.
        window: The length of the window, in seconds.
        interval: The least time between two polls of one task, in seconds.
        tolerance: How much less is forgiven, in seconds; over real sockets requests do not arrive as evenly as they
            were sent.

    Raises:
        AssertionError: The message says where.
    """
    __tracebackhide__ = True
    worst = books.worst_window(window)
    if worst > limit:
        raise AssertionError(f"{worst} requests within {window:g} s, where {limit} are allowed")
    hasty = [task for task in books.tasks.values() if _smallest_gap(task) < interval - tolerance]
    if hasty:
        raise AssertionError(
            f"{_count(hasty)} polled sooner than every {interval:g} s:"
            f"{_list(hasty, lambda task: f'after {_smallest_gap(task):.3g} s')}"
        )


def _smallest_gap(task: TaskRecord) -> float:
    return min((later - earlier for earlier, later in pairwise(task.polls)), default=float("inf"))


def _count(tasks: Sequence[TaskRecord]) -> str:
    return "1 task was" if len(tasks) == 1 else f"{len(tasks)} tasks were"


def _list(tasks: Sequence[TaskRecord], tell: Callable[[TaskRecord], str]) -> str:
    lines = [f"\n  task {task.id} ({task.type}{_page(task)}): {tell(task)}" for task in tasks[:SHOWN]]
    more = [f"\n  and {len(tasks) - SHOWN} more"] if len(tasks) > SHOWN else []
    return "".join(lines + more)


def _page(task: TaskRecord) -> str:
    return "" if task.website_url is None else f", {task.website_url}"


def _story(task: TaskRecord) -> str:
    if task.first_delivered_at is not None:
        end = f"delivered at {task.first_delivered_at:.3f} s"
    elif task.polls:
        end = f"asked for {len(task.polls)} times, last at {task.polls[-1]:.3f} s, and never delivered"
    else:
        end = "never asked for, as if the answer of createTask had not arrived"
    return f"{task.cost} USD, accepted at {task.created_at:.3f} s, {end}"
