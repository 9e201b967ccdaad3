"""Streams of tasks: lazily in, outcomes out as they complete, failures as values; and what an earlier process left."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sized
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio

from ucaptcha_async.errors import (
    AccountError,
    BudgetExceededError,
    ClientStateError,
    ConfigurationError,
    JournalError,
    SubmitUncertainError,
    UCaptchaError,
)
from ucaptcha_async.journal import Entry, Journal
from ucaptcha_async.journal import State as EntryState
from ucaptcha_async.pacing import InFlight
from ucaptcha_async.pacing.wait_queue import WaitQueue
from ucaptcha_async.results import Outcome
from ucaptcha_async.tasks import Solution, Task

from .block import BlockTasks
from .job import Job, Options, State
from .lease import Fate, Lease
from .session import LAST_WRITE, Session

S = TypeVar("S", bound=Solution)
I = TypeVar("I")  # noqa: E741 - an input

STOPS_INTAKE = (AccountError, BudgetExceededError, ClientStateError)
"""Errors that would meet every further input too."""


class Outcomes(Generic[I, S]):
    """The outcomes of a stream of inputs, as they complete. Made by `AsyncClient.solve_many` and `recover`.

    Enter it with `async with`, then iterate with `async for`.

    Inputs are read only as fast as there is room for them: at most `width` are between the input and the reader of the
    outcomes. When the account as a whole is refused, the budget is used up, or the client drains or closes, no further
    input is read; what is running ends, and then the iteration raises that error, with `not_submitted` saying how many
    inputs were left.
    After leaving early, the ids of paid tasks whose outcomes were not read are in `client.abandoned`.
    A generator that yields from inside the block is best used with `contextlib.aclosing`: else, when its reader breaks
    off, the solves go on until Python ends the generator.

    Attributes:
        not_submitted: After such an error: how many inputs the service has not accepted; `None` where the input has no
            length.
    """

    def __init__(
        self,
        session: Session,
        inputs: Iterable[I | UCaptchaError] | AsyncIterable[I | UCaptchaError],
        job: Callable[[I], Job[S]],
        solve: Callable[[Job[S]], Coroutine[Any, Any, S]],
        width: int,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._job = job
        self._solve = solve
        self._room = InFlight(width)
        self._stops: tuple[type[UCaptchaError], ...] = STOPS_INTAKE
        self._accepted = 0
        self._stopped: Exception | None = None
        self._tasks: BlockTasks | None = None
        self._intake = anyio.CancelScope()
        self._unread: deque[Outcome[S]] = deque()
        self._readers: WaitQueue[Outcome[S] | None] = WaitQueue(self._put_back)
        self.not_submitted: int | None = None

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a stream is entered once")
        self._tasks = BlockTasks(self._session.loop, self._over)
        self._session.intakes.add(self._stop)
        self._tasks.start(self._feed(self._tasks), self._intake)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        try:
            await self._tasks.leave(error)
        finally:
            while self._unread:
                self._session.unread(self._unread.popleft())

    def __aiter__(self) -> AsyncIterator[Outcome[S]]:
        return self

    async def __anext__(self) -> Outcome[S]:
        if self._tasks is None:
            raise RuntimeError("use 'async with' first")
        if self._unread:
            await self._session.loop.sleep(0)
        outcome = None
        if not self._unread and not self._tasks.over.is_set():
            outcome = await self._readers.wait()
        if outcome is None and self._unread:
            outcome = self._unread.popleft()
        if outcome is None:
            raise self._tasks.broken or self._end() from None
        self._room.release()
        return outcome

    def _end(self) -> Exception:
        """What ends the iteration."""
        if self._stopped is None:
            return StopAsyncIteration()
        total = len(self._inputs) if isinstance(self._inputs, Sized) else None
        self.not_submitted = None if total is None else total - self._accepted
        return self._stopped

    # --- the tasks of a stream ----------------------------------------------------------------------------------------

    def _over(self) -> None:
        self._session.intakes.discard(self._stop)
        self._readers.call_all(None)

    def _stop(self, error: UCaptchaError) -> None:
        """Read no further input, not even the one that is waited for, if the error would meet it too."""
        if isinstance(error, self._stops):
            self._stopped = self._stopped or error
            self._intake.cancel()

    def _put(self, outcome: Outcome[S]) -> None:
        if not self._readers.call(outcome):
            self._unread.append(outcome)

    def _put_back(self, outcome: Outcome[S] | None) -> None:
        """A reader was cancelled before it could take it."""
        if outcome is not None and not self._readers.call(outcome):
            self._unread.appendleft(outcome)

    async def in_order(self) -> list[Outcome[S]]:
        """All outcomes, in input order; every input has one, whatever its error. In place of entering it."""
        self._stops = ()
        done: list[Outcome[S]] = []
        try:
            async with self:
                async for outcome in self:
                    done.append(outcome)  # noqa: PERF401 - what came before an error is kept
        except BaseException:
            for outcome in done:
                self._session.unread(outcome)
            raise
        return sorted(done, key=lambda outcome: outcome.index)

    async def _feed(self, tasks: BlockTasks) -> None:
        source = _Source(self._inputs)
        with self._intake:
            try:
                await self._read(source, tasks)
            except StopAsyncIteration:
                pass
            except Exception as error:
                # The caller's own iterable or key function failed: what is running still ends well.
                self._stopped = error
            finally:
                await source.aclose()

    async def _read(self, source: _Source[I | UCaptchaError], tasks: BlockTasks) -> None:
        unknown: Task[Any] = Task("unknown")
        for index in itertools.count():
            await self._room.acquire()
            await self._session.loop.sleep(0)  # in turn: trio begins what is started together in any order
            await self._session.until_submits_go_on()
            item = await source.next()
            try:
                if isinstance(item, UCaptchaError):
                    raise item
                job = self._job(item)
            except UCaptchaError as error:  # one bad input is one bad outcome
                if error is not item:
                    self._stop(error)
                self._put(Outcome(index=index, task=unknown, result=error))
            else:
                tasks.start(self._one(job, index))

    async def _one(self, job: Job[S], index: int) -> None:
        result: S | UCaptchaError
        try:
            result = await self._solve(job)
        except UCaptchaError as error:
            result = error
        if isinstance(result, UCaptchaError):
            self._stop(result)
        self._accepted += any(attempt.task_id or attempt.uncertain for attempt in job.attempts)
        # Without a checkpoint: what was paid for must not be lost to a cancellation here.
        self._put(outcome_of(job, result, index))


def outcome_of(job: Job[S], result: S | UCaptchaError, index: int) -> Outcome[S]:
    """How a job ended, as a value."""
    return Outcome(
        index=index,
        task=job.task,
        key=job.key,
        result=result,
        attempts=job.attempts,
        from_journal=job.from_journal,
    )


class _Source(Generic[I]):
    """The next input of any iterable, and an end for generators that are left half-way."""

    def __init__(self, inputs: Iterable[I] | AsyncIterable[I]) -> None:
        self._iterator = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)

    async def next(self) -> I:
        if isinstance(self._iterator, AsyncIterator):
            return await anext(self._iterator)
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        if isinstance(self._iterator, AsyncGenerator):
            with anyio.move_on_after(1, shield=True):
                await self._iterator.aclose()


def recover(session: Session, options: Options, width: int) -> Outcomes[Entry, Solution]:
    """The outcomes of all open entries of this account that nobody alive works on."""
    journal = session.journal
    if journal is None:
        raise ConfigurationError("recover needs a client with a journal", field="journal")

    def job(entry: Entry) -> Job[Solution]:
        task: Task[Solution] = Task(entry.type)
        lease = Lease(session, task.kind, row=entry.submit_id)
        # A dead process's intent, or a task that the service did not know any more: nothing is to be learned of it.
        fate = Fate.UNCERTAIN if entry.state is EntryState.UNCERTAIN or entry.task_id is None else None
        return Job(
            session,
            task,
            options,
            entry.key,
            entry.task_id,
            State.WAITING,
            fate,
            lease,
            context=entry.context,
            respell=True,
        )

    async def solve(job: Job[Solution]) -> Solution:
        way = job.wait_for_end() if job.fate is None else _uncertain(job)
        return await job.run(way, options.timeout)

    return Outcomes(session, _open(journal, session.account), job, solve, width)


async def _open(journal: Journal, account: str) -> AsyncIterator[Entry]:
    for entry in await journal.open_entries(account):
        taken = None
        with anyio.move_on_after(LAST_WRITE, shield=True) as limit:  # what is taken up must come to a job, to be left
            taken = await journal.take_up(entry)
        if limit.cancelled_caught:
            raise JournalError(f"the journal did not let an entry be taken up within {LAST_WRITE:g} s")
        if taken is not None:
            yield taken


async def _uncertain(job: Job[Any]) -> Solution:
    assert job.lease is not None
    await job.lease.close(Fate.UNCERTAIN)
    job.state = State.ENDED
    learned = "did not learn whether it was accepted" if job.task_id is None else "the service did not know it any more"
    raise SubmitUncertainError(f"an earlier process submitted this, and {learned}", task_id=job.task_id)
