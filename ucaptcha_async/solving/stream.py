"""Streams of tasks: lazily in, outcomes out as they complete, failures as values; and what an earlier process left."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sized
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ucaptcha_async.errors import (
    AccountError,
    BudgetExceededError,
    ClientStateError,
    ConfigurationError,
    SubmitUncertainError,
    UCaptchaError,
)
from ucaptcha_async.journal import Entry, Journal
from ucaptcha_async.journal import State as EntryState
from ucaptcha_async.results import Outcome, Solution
from ucaptcha_async.tasks import Task

from .job import Job, Options, State
from .lease import Fate, Lease
from .session import Session

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

    Attributes:
        not_submitted: After such an error: how many inputs the service has not accepted; `None` where the input has no
            length.
    """

    def __init__(
        self,
        inputs: Iterable[I] | AsyncIterable[I],
        job: Callable[[I], Job[S]],
        solve: Callable[[Job[S]], Awaitable[S]],
        width: int,
        unread: Callable[[Outcome[S]], None] = lambda outcome: None,
    ) -> None:
        self._inputs = inputs
        self._job = job
        self._solve = solve
        self._unread = unread
        self._room = anyio.Semaphore(width)
        self._stops: tuple[type[UCaptchaError], ...] = STOPS_INTAKE
        self._accepted = 0
        self._stopped: Exception | None = None
        self._group: TaskGroup | None = None
        self._receive: MemoryObjectReceiveStream[Outcome[S]] | None = None
        self.not_submitted: int | None = None

    async def __aenter__(self) -> Self:
        send, self._receive = anyio.create_memory_object_stream[Outcome[S]](float("inf"))
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._feed, send)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._group is not None
        assert self._receive is not None
        self._group.cancel_scope.cancel()
        try:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                return await self._group.__aexit__(kind, error, traceback)
            # An error of the caller's own block is not for the group: it would come out wrapped into an ExceptionGroup.
            await self._group.__aexit__(None, None, None)
            return False
        finally:
            self._close(self._receive)

    def _close(self, receive: MemoryObjectReceiveStream[Outcome[S]]) -> None:
        with receive, contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                self._unread(receive.receive_nowait())

    def __aiter__(self) -> AsyncIterator[Outcome[S]]:
        return self

    async def __anext__(self) -> Outcome[S]:
        if self._receive is None:
            raise RuntimeError("use 'async with' first")
        try:
            outcome = await self._receive.receive()
        except anyio.EndOfStream:
            if self._stopped is None:
                raise StopAsyncIteration from None
            total = len(self._inputs) if isinstance(self._inputs, Sized) else None
            self.not_submitted = None if total is None else total - self._accepted
            raise self._stopped from None
        self._room.release()
        return outcome

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
                self._unread(outcome)
            raise
        return sorted(done, key=lambda outcome: outcome.index)

    async def _feed(self, send: MemoryObjectSendStream[Outcome[S]]) -> None:
        source = _Source(self._inputs)
        unknown: Task[Any] = Task("unknown")
        # The stream ends with the last of the tasks.
        async with send, anyio.create_task_group() as tasks:
            try:
                for index in itertools.count():
                    await self._room.acquire()
                    if self._stopped is not None:
                        break
                    item = await source.next()
                    try:
                        if isinstance(item, UCaptchaError):
                            raise item
                        job = self._job(item)
                    except UCaptchaError as error:  # one bad input is one bad outcome
                        if error is not item and isinstance(error, self._stops):
                            self._stopped = self._stopped or error
                        send.send_nowait(Outcome(index=index, task=unknown, result=error))
                    else:
                        tasks.start_soon(self._one, job, index, send)
            except StopAsyncIteration:
                pass
            except Exception as error:
                # The caller's own iterable or key function failed: what is running still ends well.
                self._stopped = error
            finally:
                await source.aclose()

    async def _one(self, job: Job[S], index: int, send: MemoryObjectSendStream[Outcome[S]]) -> None:
        result: S | UCaptchaError
        try:
            result = await self._solve(job)
        except UCaptchaError as error:
            result = error
        if isinstance(result, self._stops):
            self._stopped = self._stopped or result
        self._accepted += any(attempt.task_id or attempt.uncertain for attempt in job.attempts)
        # Without a checkpoint: what was paid for must not be lost to a cancellation here.
        send.send_nowait(outcome_of(job, result, index))


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

    return Outcomes(_open(journal, session.account), job, solve, width, session.unread)


async def _open(journal: Journal, account: str) -> AsyncIterator[Entry]:
    for entry in await journal.open_entries(account):
        taken = await journal.take_up(entry)
        if taken is not None:
            yield taken


async def _uncertain(job: Job[Any]) -> Solution:
    assert job.lease is not None
    await job.lease.close(Fate.UNCERTAIN)
    job.state = State.ENDED
    learned = "did not learn whether it was accepted" if job.task_id is None else "the service did not know it any more"
    raise SubmitUncertainError(f"an earlier process submitted this, and {learned}", task_id=job.task_id)
