"""Group commit: the changes of many tasks share few transactions, without a background task.

Whoever writes while nobody flushes becomes the flusher, for all whose changes are queued. During a flush the next batch
gathers; at its end the first who still waits is woken to make the next one. A flush runs in a worker thread and is
waited for, so that a queued change is written even if its caller, or the flusher, is cancelled.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

import anyio
import anyio.lowlevel
import attrs

from ucaptcha_async.errors import JournalError
from ucaptcha_async.pacing.event_loop import Signal, signal

from .ledger import Abandoned, Begin, Change, Released, TakeUp
from .records import Claim, ClaimKind, Entry
from .store import BusyError
from .threads import Job

logger = logging.getLogger("ucaptcha_async")

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
    """Whether the caller has its answer. A report that is kept after a failure has been answered, too."""
    answer: object = None
    _woken: Signal | None = None

    @property
    def is_claim(self) -> bool:
        """Whether the change is of use only to a caller who waits for the answer."""
        return isinstance(self.change, Begin | TakeUp)

    def is_late(self, now: float, patience: float) -> bool:
        """Whether it has been refused for too long, counted from the first time."""
        self.deadline = self.deadline or now + patience
        return self.deadline <= now

    async def wait(self) -> None:
        """Until it is answered, or the caller is to flush."""
        self._woken = signal()
        await self._woken.wait()

    def wake(self) -> None:
        """Let the caller look again."""
        if self._woken is not None:
            self._woken.set()

    def settle(self, answer: object) -> None:
        """Answer the caller."""
        self.answer, self.done = answer, True
        self.wake()


class Writer:
    """Gathers changes and commits them.

    Args:
        commit: Applies changes in a worker thread. Answers each in turn, with an exception if that one cannot be
            written; changes without an answer were not tried. Raises `BusyError` or `JournalError` if none could be.
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
        self._draining: anyio.Event | None = None
        self._busy = False
        self._last_start = -math.inf
        self._last_size = 0
        self._last_task: int | None = None

    async def write(self, change: Change) -> object:
        """Commit a change and return its answer.

        Raises:
            JournalError: It was not written. A claim is given up; a report is kept and tried again with the next flush,
                unless the fault is its own.
        """
        write = _Write(change)
        self._queue.append(write)
        try:
            while not write.done:
                await (write.wait() if self._flushing else self._flush())
        except BaseException:
            await self._desert(write)
            raise
        if isinstance(write.answer, Exception):
            raise write.answer
        return write.answer

    async def drain(self) -> int:
        """Commit what is left, at the end. Whoever still waits is answered.

        Returns:
            How many reports are lost.
        """
        while self._flushing:
            self._draining = anyio.Event()
            await self._draining.wait()
        deadline = anyio.current_time() + self._patience
        self._flushing = True
        try:
            while self._queue or self._kept:
                if not await self._round_trip() and not (self._busy and anyio.current_time() < deadline):
                    break
        finally:
            self._flushing = False
        rest = self._take(self._queue, len(self._queue))
        for write in rest:
            write.settle(JournalError("the journal was closed before this could be written"))
        return self._lost + len(self._kept) + sum(not write.is_claim for write in rest)

    async def _flush(self, *, linger: bool = True) -> None:
        self._flushing = True
        try:
            if linger and self._last_size < BATCH and self._is_shared():
                await anyio.sleep_until(self._last_start + SPACING)
            await anyio.lowlevel.checkpoint_if_cancelled()
            while await self._round_trip() and self._queue and self._waiting() is None:
                await anyio.lowlevel.checkpoint_if_cancelled()
        finally:
            self._end_round()

    def _end_round(self) -> None:
        self._flushing = False
        self._hand_on()

    def _is_shared(self) -> bool:
        """Whether others write, too: who writes one line after the other, alone, does not wait between them."""
        before, self._last_task = self._last_task, anyio.get_current_task().id
        return self._last_size >= 2 or self._last_task != before

    def _hand_on(self) -> bool:
        """Wake whoever is to flush next; whether there is anybody."""
        if self._draining is not None:
            self._draining.set()
            return True
        heir = self._waiting()
        if heir is not None:
            heir.wake()
        return heir is not None

    def _waiting(self) -> _Write | None:
        """The first in the queue whose caller is still there, and so can flush."""
        return next((write for write in self._queue if not write.deserted), None)

    async def _round_trip(self) -> bool:
        """Commit one batch; whether the file could be written."""
        batch = self._take(self._kept, BATCH)
        batch += self._take(self._queue, BATCH - len(batch))
        self._last_start, self._last_size = anyio.current_time(), len(batch)
        changes = [write.change for write in batch]
        job = Job(lambda: self._commit(changes), self._lock)
        try:
            interruption = await job.through(self._limiter)
        except BaseException:  # there is no thread to be had
            self._put_back(batch)
            raise
        succeeded = self._settle(batch, job)
        if interruption is not None:
            raise interruption
        return succeeded

    def _settle(self, batch: Sequence[_Write], job: Job[list[object]]) -> bool:
        """Answer the callers of a batch."""
        self._busy = False
        try:
            answers = job.result()
        except BusyError as error:
            self._busy = True
            self._postpone(batch, error)
            return False
        except JournalError as error:
            self._fail(batch, error)
            return False
        for write, answer in zip(batch, answers, strict=False):
            self._answer(write, answer)
        self._put_back(batch[len(answers) :])
        return True

    def _answer(self, write: _Write, answer: object) -> None:
        if isinstance(answer, Exception) and not write.is_claim and (write.done or write.deserted):
            logger.warning("the journal cannot write a report, and gives it up: %s", answer)
        write.settle(answer)
        if write.deserted:
            self._undo(write)

    def _take(self, source: deque[_Write], most: int) -> list[_Write]:
        taken: list[_Write] = []
        while source and len(taken) < most:
            write = source.popleft()
            if not (write.deserted and write.is_claim):
                taken.append(write)
        return taken

    def _put_back(self, writes: Sequence[_Write]) -> None:
        self._kept.extendleft(write for write in reversed(writes) if write.done)
        self._queue.extendleft(write for write in reversed(writes) if not write.done)

    def _postpone(self, batch: Sequence[_Write], error: JournalError) -> None:
        now = anyio.current_time()
        late: list[_Write] = []
        rest: list[_Write] = []
        for write in batch:
            (late if not write.done and write.is_late(now, self._patience) else rest).append(write)
        self._put_back(rest)
        self._fail(late, error)

    def _fail(self, batch: Sequence[_Write], error: JournalError) -> None:
        """Nothing of it was written, for a reason that is the file's: keep the reports for another try."""
        self._put_back([write for write in batch if write.done])
        for write in batch:
            if write.done:
                continue
            kept = "" if write.is_claim else "; the report is kept in memory and written with the next one"
            # One error each: several tasks that raise the same object would mix up their tracebacks.
            write.settle(JournalError(error.message + kept))
            if not write.is_claim:
                self._keep(write)

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
        if self._flushing or not self._queue or self._hand_on():
            return
        with anyio.CancelScope(shield=True):
            await self._flush(linger=False)

    def _undo(self, write: _Write) -> None:
        """Give back what a caller asked for who is no longer there; before the next call for the same key."""
        answer = write.answer
        if isinstance(answer, Claim) and answer.mine:
            released = answer.kind is ClaimKind.NEW
            change: Change = Released(answer.submit_id) if released else Abandoned(answer.submit_id)
        elif isinstance(answer, Entry):
            change = Abandoned(answer.submit_id)
        else:
            return
        self._queue.appendleft(_Write(change, deserted=True))
