"""Group commit: the changes of many tasks share few transactions, without a background task.

Whoever writes while nobody flushes becomes the flusher, for all who wait. During a flush the next batch gathers: its
first writer waits for the end of the flush, to make the next one, and the others wait for their batch. A flush runs in
a worker thread and is waited for, so that a queued change is written even if its caller, or the flusher, is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

import anyio
import anyio.lowlevel
import attrs

from ucaptcha_async.errors import JournalError

from .ledger import Abandoned, Begin, Change, Released, TakeUp
from .records import Claim, ClaimKind, Entry
from .store import BusyError
from .threads import Job

SPACING = 0.05
"""Seconds from flush to flush while several tasks write: a flush costs a thread hop, however many share it."""

BATCH = 500
"""Changes a flush: bounds the time for which its JSON keeps the event loop from running."""

KEPT = 100_000
"""Failed reports that are kept for another try; beyond it the oldest are lost."""


@attrs.define(eq=False)
class _Write:
    """A change on its way to the file."""

    change: Change
    deserted: bool = False
    deadline: float | None = None
    done: bool = False
    answer: object = None

    @property
    def is_claim(self) -> bool:
        """Whether the change is of use only to a caller who waits for the answer."""
        return isinstance(self.change, Begin | TakeUp)

    def is_late(self, now: float, patience: float) -> bool:
        """Whether it has been refused for too long, counted from the first time."""
        self.deadline = self.deadline or now + patience
        return self.deadline <= now

    def settle(self, answer: object) -> None:
        """Answer the caller."""
        self.answer, self.done = answer, True


class Writer:
    """Gathers changes and commits them.

    Args:
        commit: Applies changes in a worker thread; raises `BusyError` or `JournalError` if none was written.
        limiter: Admits one thread at a time.
        lock: Held while a thread works.
        patience: How long a change waits for another process's lock, seconds.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Change]], list[object]],
        limiter: anyio.CapacityLimiter,
        lock: Lock,
        patience: float,
    ) -> None:
        self._commit = commit
        self._limiter = limiter
        self._lock = lock
        self._patience = patience
        self._queue: deque[_Write] = deque()
        self._kept: deque[_Write] = deque()
        self._lost = 0
        self._flushing = False
        self._flushed = anyio.Event()
        self._gathering = anyio.Event()
        self._next: _Write | None = None
        self._busy = False
        self._last_start = 0.0
        self._last_size = 0

    @property
    def kept(self) -> int:
        """How many failed reports wait for another try."""
        return len(self._kept)

    async def write(self, change: Change) -> object:
        """Commit a change and return its answer.

        Raises:
            JournalError: It was not written. A claim is given up, a report is kept and tried again with the next flush.
        """
        write = _Write(change)
        self._queue.append(write)
        try:
            while not write.done:
                await self._turn(write)
        except BaseException:
            await self._desert(write)
            raise
        if isinstance(write.answer, JournalError):
            raise write.answer
        return write.answer

    async def _turn(self, write: _Write) -> None:
        """Flush, or wait to be the next who does, or wait for the batch."""
        if not self._flushing:
            await self._flush()
        elif self._next is not None:
            await self._gathering.wait()
        else:
            self._next = write
            try:
                await self._flushed.wait()
            finally:
                self._next = None

    async def drain(self) -> int:
        """Commit what is left, at the end.

        Returns:
            How many reports are lost.
        """
        while self._flushing:
            await self._flushed.wait()
        deadline = anyio.current_time() + self._patience
        self._flushing = True
        try:
            while self._queue or self._kept:
                if not await self._round_trip() and not (self._busy and anyio.current_time() < deadline):
                    break
        finally:
            self._end_round()
        self._fail(self._take(self._queue, len(self._queue)), JournalError("the journal was closed"))
        return self._lost + len(self._kept)

    async def _flush(self, *, linger: bool = True) -> None:
        self._flushing = True
        try:
            if linger and 2 <= self._last_size < BATCH:
                await anyio.sleep_until(self._last_start + SPACING)
            await anyio.lowlevel.checkpoint_if_cancelled()
            while await self._round_trip() and self._queue and not self._attended():
                await anyio.lowlevel.checkpoint_if_cancelled()
        finally:
            self._end_round()

    def _end_round(self) -> None:
        self._flushing = False
        flushed, self._flushed = self._flushed, anyio.Event()
        flushed.set()
        if self._next is None or self._next.done:
            self._wake()

    def _wake(self) -> None:
        """Let all who wait for their batch look again."""
        gathering, self._gathering = self._gathering, anyio.Event()
        gathering.set()

    def _attended(self) -> bool:
        """Whether somebody waits for what is in the queue, and so will flush it."""
        return any(not write.deserted for write in self._queue)

    async def _round_trip(self) -> bool:
        """Commit one batch; whether it succeeded."""
        kept = self._take(self._kept, BATCH)
        fresh = self._take(self._queue, BATCH - len(kept))
        gathered, self._gathering = self._gathering, anyio.Event()
        self._last_start, self._last_size = anyio.current_time(), len(kept) + len(fresh)
        changes = [write.change for write in (*kept, *fresh)]
        job = Job(lambda: self._commit(changes), self._lock)
        try:
            interruption = await job.through(self._limiter)
            succeeded = self._settle(kept, fresh, job)
        except BaseException:
            self._kept.extendleft(reversed(kept))
            self._queue.extendleft(reversed(fresh))
            raise
        finally:
            gathered.set()
        if interruption is not None:
            raise interruption
        return succeeded

    def _settle(self, kept: Sequence[_Write], fresh: Sequence[_Write], job: Job[list[object]]) -> bool:
        """Answer the callers of a batch."""
        self._busy = False
        try:
            answers = job.result()
        except JournalError as error:
            self._kept.extendleft(reversed(kept))
            self._postpone(fresh, error) if isinstance(error, BusyError) else self._fail(fresh, error)
            return False
        for write, answer in zip(fresh, answers[len(kept) :], strict=True):
            write.settle(answer)
            if write.deserted:
                self._undo(write)
        return True

    def _take(self, source: deque[_Write], most: int) -> list[_Write]:
        taken: list[_Write] = []
        while source and len(taken) < most:
            write = source.popleft()
            if not (write.deserted and write.is_claim):
                taken.append(write)
        return taken

    def _postpone(self, writes: Sequence[_Write], error: JournalError) -> None:
        self._busy = True
        now = anyio.current_time()
        late = [write for write in writes if write.is_late(now, self._patience)]
        self._fail(late, error)
        self._queue.extendleft(write for write in reversed(writes) if not write.done)

    def _fail(self, writes: Sequence[_Write], error: JournalError) -> None:
        for write in writes:
            if not write.is_claim:
                self._keep(write)
            kept = "" if write.is_claim else "; the report is kept in memory and written with the next one"
            # One error each: several tasks that raise the same object would mix up their tracebacks.
            write.settle(JournalError(error.message + kept))

    def _keep(self, write: _Write) -> None:
        if len(self._kept) >= KEPT:
            self._kept.popleft()
            self._lost += 1
        self._kept.append(write)

    async def _desert(self, write: _Write) -> None:
        """The caller was cancelled: withdraw what it asked, see to it that what it reported is written."""
        write.deserted = True
        if write.done:
            self._undo(write)
        if not self._queue or self._flushing:
            return
        if self._attended():
            self._wake()
            return
        with anyio.CancelScope(shield=True):
            await self._flush(linger=False)

    def _undo(self, write: _Write) -> None:
        """Give back what a caller asked for who is no longer there."""
        answer = write.answer
        if isinstance(answer, Claim) and answer.mine:
            released = answer.kind is ClaimKind.NEW
            change: Change = Released(answer.submit_id) if released else Abandoned(answer.submit_id)
        elif isinstance(answer, Entry):
            change = Abandoned(answer.submit_id)
        else:
            return
        self._queue.append(_Write(change, deserted=True))
