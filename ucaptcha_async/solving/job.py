"""The line that one solve walks: place, money, journal, submit, wait, solution. In the caller's own task."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import anyio
import attrs

from ucaptcha_async.checks import Seconds, seconds
from ucaptcha_async.errors import (
    ClientStateError,
    JournalError,
    RateLimitedError,
    SolveTimeoutError,
    SubmitUncertainError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.events import Cancelled, Failed, Polled, Retried, Solved, Submitted, Throttled
from ucaptcha_async.journal import Claim, ClaimKind, Entry
from ucaptcha_async.json_values import SecretMapping
from ucaptcha_async.polling import PollClock
from ucaptcha_async.results import Solution, Status
from ucaptcha_async.secrecy import SecretStr, passwords
from ucaptcha_async.tasks import Task
from ucaptcha_async.transport.api import Answer, is_fault

from .session import Engine, Ticket, Walk, attempted
from .submit import Submit

S = TypeVar("S", bound=Solution)
T = TypeVar("T")

MAX_RESUBMITS = 2
"""How often a task of unknown fate is submitted again, where that was asked for."""

BUSY_DELAY = 1.0
"""Seconds until the journal is asked again about a key that another process is submitting."""


@attrs.frozen(kw_only=True)
class Options:
    """What one call may choose, with the client's own choice as the default.

    Attributes:
        timeout: Seconds for the whole solve.
        selection_mode: How the service chooses a provider; `None` leaves it to the key's settings.
        provider: The provider to use; `None` leaves it to the service.
        attempts: How many tasks may be paid for until one is solved; a failed one is refunded.
        retry_selection_mode: Another `selection_mode` from the second attempt on.
    """

    timeout: float
    selection_mode: str | None
    provider: str | None
    attempts: int
    retry_selection_mode: str | None

    def mode(self, attempt: int) -> str | None:
        """The selection mode of an attempt (from 1)."""
        return self.retry_selection_mode or self.selection_mode if attempt > 1 else self.selection_mode


class Job(Generic[S]):
    """A task that the service has accepted: wait for it now, later, or in another process.

    Attributes:
        task_id: The service's id; `None` only for an immediate answer that came without one.
    """

    def __init__(self, engine: Engine, walk: Walk, kind: type[Task[S]], lifetime: float | None, timeout: float) -> None:
        self._engine = engine
        self._walk = walk
        self._kind = kind
        self._lifetime = lifetime
        self._timeout = timeout
        self._ticket = Ticket(engine, walk)
        self._answer: Answer | None = None
        self._solution: S | None = None
        self._clock: PollClock | None = None
        self._waiting = False
        self._mode: str | None = None
        self._accepted_at: float | None = None
        self._left_at: float | None = None

    @property
    def task_id(self) -> str | None:
        """The service's id of the task."""
        return self._walk.task_id

    def __repr__(self) -> str:
        state = "solved" if self._solution is not None else "open"
        return f"<Job {self._walk.task_type} task_id={self.task_id!r} {state}>"

    def __del__(self) -> None:
        # A job that nobody can wait for any more must not keep others from being submitted.
        self._ticket.release_place()

    async def wait(self, timeout: Seconds | None = None) -> S:
        """Wait for the solution, through whatever faults, until the deadline.

        A job that timed out or whose waiter was cancelled can be waited for again.

        Args:
            timeout: Seconds from now (`float` or `timedelta`). Default: what is left of the solve's own time.

        Raises:
            SolveTimeoutError: Not solved in time. It may still be: wait again.
            UnsolvableError: The service gave up, and refunds the charge.
            TaskNotFoundError: The service does not know the id, or no longer.
            UCaptchaError: Any other refusal.
        """
        if self._waiting:
            raise ClientStateError("another task is waiting for this job already", task_id=self.task_id)
        allowed = self._timeout if timeout is None else seconds("timeout", timeout, allow_inf=True)
        self._waiting = True
        try:
            return await within(self._engine, self._walk, allowed, self.finish)
        finally:
            self._waiting = False

    async def finish(self) -> S:
        """Wait without a deadline of its own."""
        if self._solution is not None:
            return self._solution
        self._walk.phase = "wait"
        self._engine.tally.waiting += 1
        self._expect()
        try:
            if self._answer is None:
                assert self.task_id is not None  # only an answer comes without
                self._answer = await self._engine.watched(self.task_id, self._poll)
            return await self._settle(self._answer)
        except UCaptchaError as error:
            await self._end(error)
            raise
        except BaseException:
            await self._ticket.parked()
            raise
        finally:
            self._engine.tally.waiting -= 1
            if self._engine.callbacks is not None and self.task_id is not None:
                self._engine.callbacks.forget(self.task_id)

    def _expect(self) -> None:
        if self._engine.callbacks is not None and self.task_id is not None:
            self._engine.callbacks.expect(self.task_id)

    def _schedule(self) -> PollClock:
        engine = self._engine
        if self._clock is None:
            resumed = self._accepted_at is None
            accepted_at = self._accepted_at = anyio.current_time() if self._accepted_at is None else self._accepted_at
            self._clock = PollClock(
                engine.polling,
                engine.times,
                self._walk.task_type,
                accepted_at,
                engine.rng,
                net=engine.callbacks is not None,
                resumed=resumed,
            )
        if self.task_id is not None:
            self._clock.next_poll = max(self._clock.next_poll, engine.may_poll_at(self.task_id))
        return self._clock

    async def _poll(self) -> Answer:
        engine, clock, task_id = self._engine, self._schedule(), self.task_id
        assert task_id is not None
        try:
            while True:
                if clock.net:
                    await self._until_called(clock)
                await anyio.sleep(max(0.0, clock.next_poll - anyio.current_time()))
                engine.tally.polls += 1
                self._left_at = None
                try:
                    answer = await engine.api.get_task_result(task_id, self._departing)
                except UCaptchaError as error:
                    if not is_fault(error):
                        clock.polled(anyio.current_time())
                        raise
                    self._late(clock, error)
                except BaseException:
                    self._interrupted(clock)
                    raise
                else:
                    if self._heard(clock, answer):
                        return answer
        finally:
            engine.leave(task_id, clock.next_poll)

    def _departing(self) -> None:
        self._left_at = anyio.current_time()

    def _heard(self, clock: PollClock, answer: Answer) -> bool:
        """Take a poll's answer in. `True` if it is the last one."""
        self._walk.trouble = None
        clock.polled(answer.sent_at)
        if answer.status in (Status.READY, Status.FAILED):
            return True
        if answer.status not in (Status.IDLE, Status.PROCESSING):
            self._engine.report_unknown(answer.status)
        clock.pending(answer.received_at)
        self._engine.emit(Polled, self._walk, status=answer.status, polls=clock.polls)
        return False

    def _interrupted(self, clock: PollClock) -> None:
        """The wait was given up during a poll. The next one keeps the distance, by a little more each time, or short
        waits in a row might all end just before the answer.
        """
        if self._left_at is None:
            return
        clock.polled(self._left_at)
        clock.next_poll += self._engine.rng.random() * self._engine.polling.interval / 5

    async def _until_called(self, clock: PollClock) -> None:
        """Wait for the next poll, or for a callback that brings it forward."""
        callbacks, task_id = self._engine.callbacks, self.task_id
        if callbacks is not None and task_id is not None and await callbacks.wait_until(task_id, clock.next_poll):
            clock.hinted(anyio.current_time())

    def _late(self, clock: PollClock, error: UCaptchaError) -> None:
        """A failed poll is a late poll."""
        now = anyio.current_time()
        clock.polled(now)
        clock.faulted(now, error.retry_after)
        engine, walk = self._engine, self._walk
        walk.trouble = error
        if isinstance(error, RateLimitedError):
            engine.emit(Throttled, walk, endpoint="getTaskResult")
        engine.emit(
            Retried,
            walk,
            endpoint="getTaskResult",
            reason=type(error).__name__,
            error_code=error.error_code,
            delay=clock.next_poll - now,
        )

    async def _settle(self, answer: Answer) -> S:
        if answer.status == Status.FAILED:
            raise failed(answer, self.task_id)
        clock, engine = self._clock, self._engine
        if clock is not None:
            clock.ready(answer.received_at, answer.solve_time)
        # Written before it is read: even a solution that lacks what its type promises was paid for.
        if self._walk.from_journal:
            self._ticket.release_place()
        else:
            await self._ticket.solved(self.task_id, answer.cost, answer.solve_time, answer.solution)
        solution: S = self._kind.solution_class.parse(  # type: ignore[assignment]
            answer.solution,
            task_id=self.task_id,
            cost=answer.cost,
            solve_time=answer.solve_time,
            polls=clock.polls if clock is not None else 0,
            lifetime=self._lifetime,
            feedback=functools.partial(feedback, engine, self.task_id),
        )
        self._solution = solution
        engine.tally.solved += 1
        attempted(self._walk, None, answer.cost, self._mode)
        engine.emit(
            Solved,
            self._walk,
            cost=answer.cost,
            solve_time=answer.solve_time,
            elapsed=0.0 if self._accepted_at is None else answer.received_at - self._accepted_at,
            polls=solution.polls,
            from_journal=self._walk.from_journal,
        )
        return solution

    async def _end(self, error: UCaptchaError) -> None:
        error.task_id = error.task_id or self.task_id
        attempted(self._walk, error, None, self._mode)
        if self._clock is not None:
            self._clock.ended()
        if isinstance(error, UnsolvableError):
            await self._ticket.failed(self.task_id, error.error_code)
        elif isinstance(error, TaskNotFoundError):
            # Nothing will ever be learned of it: the charge stands, and the row is closed.
            self._ticket.keep()
            await self._ticket.failed(self.task_id, error.error_code)
        else:
            # A poll was refused, not the task: that is paid for, and may be waited for again.
            error.charged = True
            await self._ticket.parked()


def failed(answer: Answer, task_id: str | None) -> UnsolvableError:
    """The error for a task that the service has given up. Source: docs/api/ucaptcha/get-task-result."""
    told = f": {answer.error_description}" if answer.error_description else ""
    code = answer.error_code or "ERROR_CAPTCHA_UNSOLVABLE"
    return UnsolvableError(
        f"the task could not be solved and is refunded{told}", task_id=task_id or answer.task_id, error_code=code
    )


async def feedback(engine: Engine, task_id: str | None, accepted: bool, message: str, code: str | None) -> str:
    """Tell the service whether a solution worked."""
    if task_id is None:
        raise ClientStateError("this solution came without a task id, so there is nothing to give feedback on")
    result: dict[str, Any] = {"invalid": not accepted, "message": message}
    if code is not None:
        result["code"] = code
    return await engine.api.feedback(task_id, result)


async def within(engine: Engine, walk: Walk, timeout: float, call: Callable[[], Awaitable[T]]) -> T:
    """Await `call` for `timeout` seconds at the most, and tell how it ended."""
    try:
        with anyio.move_on_after(timeout):
            return await call()
        raise _out_of_time(walk, timeout) from walk.trouble
    except UCaptchaError as error:
        error.attempts = tuple(walk.attempts)
        if error.charged is False and any(attempt.uncertain for attempt in error.attempts):
            error.charged = None  # the last task was not charged; an earlier one of unknown fate may have been
        engine.tally.failed += 1
        engine.emit(Failed, walk, error=error)
        raise
    except anyio.get_cancelled_exc_class():
        engine.tally.cancelled += 1
        if walk.task_id is not None:
            engine.abandoned.append(walk.task_id)
        engine.emit(Cancelled, walk)
        raise


def _out_of_time(walk: Walk, timeout: float) -> SolveTimeoutError:
    charged = True if walk.task_id is not None else (None if walk.sent else False)
    trouble = f"; the last request failed: {walk.trouble.message}" if walk.trouble is not None else ""
    error = SolveTimeoutError(
        f"no solution within {timeout:g} s; the time ran out in the phase {walk.phase!r}{trouble}",
        task_id=walk.task_id,
        phase=walk.phase,
        charged=charged,
    )
    attempted(walk, error, None, None)
    return error


def solve(engine: Engine, task: Task[S], options: Options, walk: Walk) -> Awaitable[S]:
    """Submit and wait, with as many attempts as allowed. Without a deadline of its own: see `within`."""
    if walk.key is None:
        return _attempts(engine, task, options, walk)
    return _alone(engine, task, options, walk, walk.key)


async def _alone(engine: Engine, task: Task[S], options: Options, walk: Walk, key: str) -> S:
    async with engine.alone_with(key):
        return await _attempts(engine, task, options, walk)


async def _attempts(engine: Engine, task: Task[S], options: Options, walk: Walk) -> S:
    walk.waits = True
    for attempt in range(1, options.attempts + 1):
        try:
            job = await submit(engine, task, options, walk, attempt)
            return await job.finish()
        except UnsolvableError:
            if attempt == options.attempts:
                raise
    raise AssertionError("unreachable: attempts is at least 1")


async def submit(engine: Engine, task: Task[S], options: Options, walk: Walk, attempt: int = 1) -> Job[S]:
    """Submit a task; again, where that was asked for, when its fate is unknown."""
    resubmits = MAX_RESUBMITS if engine.on_uncertain == "resubmit" else 0
    while True:
        job = Job(engine, walk, type(task), task.lifetime, options.timeout)
        try:
            await _submit_once(engine, task, options, job, attempt)
        except SubmitUncertainError:
            if not resubmits:
                raise
            resubmits -= 1
        else:
            return job


async def _submit_once(engine: Engine, task: Task[S], options: Options, job: Job[S], attempt: int) -> None:
    walk, ticket = job._walk, job._ticket
    walk.phase, walk.task_id, walk.sent = "queue", None, False
    job._mode = options.mode(attempt)
    await ticket.take_place()
    order: Submit | None = None
    try:
        # Work with a name may be paid for already: that needs neither a good account nor money.
        if walk.key is not None and await _claimed(engine, job, ticket):
            return
        await engine.breaker.check(engine.api.get_balance)
        ticket.reserve()
        if walk.key is None:
            await _claimed(engine, job, ticket)
        walk.phase = "submit"
        order = _order(engine, task, options, walk, job._mode)
        answer = await order.run()
    except BaseException as error:
        if order is None:
            engine.breaker.stand_down()
        else:
            engine.breaker.heard(error)
            walk.sent = order.sending.sent
        await _unsubmitted(ticket, order, error, job._mode)
        raise
    engine.breaker.heard(None)
    await _accepted(engine, job, answer, attempt)


def _order(engine: Engine, task: Task[Any], options: Options, walk: Walk, mode: str | None) -> Submit:
    url = None if engine.callbacks is None else engine.callbacks.url
    fields = {
        "callbackUrl": url,
        "selectionMode": mode,
        "provider": options.provider,
    }
    wire = SecretMapping(task.to_wire())
    of_callback = () if url is None else (SecretStr(url), SecretStr(url.rpartition("/")[2]))
    return Submit(engine, walk, wire, (*passwords(wire), *of_callback), fields)


async def _accepted(engine: Engine, job: Job[Any], answer: Answer, attempt: int) -> None:
    job._accepted_at = answer.received_at
    engine.tally.submitted += 1
    if answer.status in (Status.READY, Status.FAILED):
        job._answer = answer
    # An end that is written at once says the same, in one line of the journal instead of two.
    if answer.task_id is not None and not (job._answer and job._walk.waits):
        await job._ticket.accepted(answer.task_id)
    engine.emit(Submitted, job._walk, attempt=attempt)


async def _claimed(engine: Engine, job: Job[Any], ticket: Ticket) -> bool:
    """Whether the journal knows the piece of work already, so that there is nothing to submit."""
    while True:
        claim = await ticket.begin()
        if claim is None or claim.kind is ClaimKind.NEW:
            return False
        if claim.kind is not ClaimKind.BUSY:
            break
        await anyio.sleep(BUSY_DELAY)
    ticket.give_back()
    if claim.kind is ClaimKind.UNCERTAIN:
        raise SubmitUncertainError(
            f"the work {job._walk.key!r} was submitted before and its fate is unknown; "
            "it is not submitted again unless on_uncertain='resubmit'"
        )
    _take_up(job, claim)
    return True


def _take_up(job: Job[Any], claim: Claim) -> None:
    job._walk.task_id = claim.task_id
    job._walk.from_journal = claim.kind is ClaimKind.DONE
    if claim.kind is ClaimKind.DONE and claim.entry.solution is not None:
        job._answer = _remembered(claim.entry)
    elif claim.task_id is None:
        raise JournalError(f"the work {job._walk.key!r} is solved, but the journal keeps neither solution nor task id")


def _remembered(entry: Entry) -> Answer:
    now = anyio.current_time()
    return Answer(
        task_id=entry.task_id,
        status=Status.READY,
        solution=entry.solution,
        cost=entry.cost,
        solve_time=entry.solve_time,
        error_code=None,
        error_description=None,
        sent_at=now,
        received_at=now,
        raw={},
    )


async def _unsubmitted(ticket: Ticket, order: Submit | None, error: BaseException, mode: str | None) -> None:
    """Settle a submit that did not end with an accepted task in the caller's hands."""
    if isinstance(error, UCaptchaError):
        attempted(ticket.walk, error, None, mode)
    if order is not None and order.answer is not None and order.answer.task_id is not None:
        # Cancelled, and the answer came within the grace: the task is paid for and known.
        await ticket.accepted(order.answer.task_id)
        await ticket.parked()
    elif isinstance(error, SubmitUncertainError) and error.task_id is not None:
        await ticket.accepted(error.task_id)
        await ticket.parked()
    elif isinstance(error, SubmitUncertainError):
        await ticket.uncertain()
    elif isinstance(error, UCaptchaError) and order is not None:
        await ticket.refused(error.error_code)
    elif order is not None and order.sending.sent:
        await ticket.uncertain()
    else:
        await ticket.unsent()
