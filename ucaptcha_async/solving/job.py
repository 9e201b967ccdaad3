"""The whole way of one solve, in the caller's own task: place, journal, account, money, submit, wait, solution.

QUEUED ──▶ SUBMITTING ──▶ WAITING ──▶ ENDED
▲                         │
└──── another attempt ◀───┘  unsolvable, refunded
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

import anyio
import attrs

from ucaptcha_async.checks import DEFAULT, ClientDefault, Seconds, time_limit, wrong
from ucaptcha_async.errors import (
    APIConnectionError,
    Attempt,
    ClientStateError,
    InvalidTaskError,
    JournalError,
    RateLimitedError,
    SolveTimeoutError,
    SubmitUncertainError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.events import (
    Cancelled,
    Failed,
    Polled,
    PollRefused,
    Retried,
    Solved,
    Started,
    Submitted,
    TakenUp,
    Throttled,
    TypeNameChosen,
    Uncertain,
)
from ucaptcha_async.journal import Claim, ClaimKind, Entry
from ucaptcha_async.json_values import NumericId
from ucaptcha_async.pacing.time_limit import TimeIsUp, TimeLimit
from ucaptcha_async.polling import PollClock
from ucaptcha_async.results import Status
from ucaptcha_async.secrecy import SecretMapping, SecretStr, passwords
from ucaptcha_async.tasks import Solution, Task
from ucaptcha_async.tasks.names import Name
from ucaptcha_async.transport.api import Answer, Unreadable, WrongTask
from ucaptcha_async.transport.error_codes import ends_wait

from .lease import End, Fate, Lease
from .session import Session, noted
from .submit import submit

S = TypeVar("S", bound=Solution)
T = TypeVar("T")

MAX_RESUBMITS = 2
"""How often a task of unknown fate is submitted again, where that was asked for."""

BUSY_DELAY = 1.0
"""Seconds until the journal is asked again about a key that another process is submitting."""

LAST_CHANCE = 1.0
"""Seconds before the deadline at which a task is asked for once more, if its next poll would come too late."""


_NUMBERS = itertools.count(1)


@attrs.frozen(kw_only=True)
class Options:
    """What one call may choose, with the client's own choice as the default.

    Attributes:
        timeout: Seconds for the whole solve; infinite for no limit.
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


class State(StrEnum):
    """Where a solve stands."""

    QUEUED = "queue"
    SUBMITTING = "submit"
    WAITING = "wait"
    ENDED = "ended"


_DOING = {State.QUEUED: "in the queue", State.SUBMITTING: "while submitting", State.WAITING: "while waiting"}


@attrs.define(eq=False, repr=False, weakref_slot=True)
class Job(Generic[S]):
    """A task that the service has accepted: wait for it now, later, or in another process.

    Attributes:
        task_id: The service's id; `None` only for an immediate answer that came without one.
    """

    # Inside the library it is one solve from end to end, and what its errors and events tell of it.
    session: Session = attrs.field()
    task: Task[S] = attrs.field()
    options: Options = attrs.field()
    key: str | None = None
    task_id: str | None = None
    state: State = State.QUEUED
    fate: Fate | None = None
    lease: Lease | None = None
    answer: Answer | None = None
    solution: S | None = None
    clock: PollClock | None = None
    limit: TimeLimit = attrs.field(init=False)
    exchange: Any = None
    trouble: UCaptchaError | None = None
    attempts: tuple[Attempt, ...] = ()
    mode: str | None = None
    secrets: tuple[str, ...] = ()
    accepted_at: float | None = None
    unsolved_at: float | None = None
    from_journal: bool = False
    maybe_charged: bool = False
    other_name: str | None = None
    watchers: anyio.Event | None = None
    handed_out: bool = False
    answerable: bool = False
    respell: bool = False
    called_at: float | None = None
    told: bool = False
    context: str | None = None
    number: int = attrs.field(factory=_NUMBERS.__next__)

    # --- what a program calls -----------------------------------------------------------------------------------------

    async def wait(self, timeout: Seconds | ClientDefault | None = DEFAULT) -> S:
        """Wait for the solution, through whatever faults, until the deadline.

        A job that timed out or whose waiter was cancelled can be waited for again.

        Args:
            timeout: Seconds from now (`float` or `timedelta`); `None` for no limit. Default: the timeout of the call
                that made the job.

        Raises:
            SolveTimeoutError: Not solved in time. It may still be: wait again.
            UnsolvableError: The service gave up.
            TaskNotFoundError: The service does not know the id, or no longer.
            ClientStateError: Another task waits for this job already; or the client is closed.
            UCaptchaError: Any other refusal.
        """
        if self.solution is not None:
            return self.solution
        if self in self.session.running:
            message = "another task is waiting for this job already"
            raise ClientStateError(message, task_id=self.task_id, charged=self.charged)
        allowed = time_limit(timeout, self.options.timeout)
        self.session.check_open(self.task_id)
        return await self.run(self.wait_for_end(), allowed)

    @property
    def kind(self) -> str:
        """The kind of the task: what is learned and counted goes by it."""
        return self.task.kind

    def __repr__(self) -> str:
        state = "solved" if self.solution is not None else "open"
        return f"<Job {self.kind} task_id={self.task_id!r} {state}>"

    def __del__(self) -> None:
        # A job that nobody can wait for any more must not keep others from being submitted.
        if self.handed_out and self.answerable and self.lease is not None:
            self.session.drop(self.lease.free_place, self.task_id)

    def stop(self) -> None:
        """End it, because the client closes or drains."""
        self.limit.end()

    # --- one solve ----------------------------------------------------------------------------------------------------

    async def run(self, way: Coroutine[Any, Any, T], timeout: float) -> T:
        """Go one way for `timeout` seconds at the most, and tell how it ended."""
        session = self.session
        self.called_at = session.loop.time()
        self.limit = session.loop.limit(self.called_at + timeout)
        session.running.add(self)
        if self.state is State.WAITING and not self.told:
            self._tell_start()
        try:
            try:
                return await way
            except TimeIsUp:
                pass
            raise self._stopped(timeout)
        except UCaptchaError as error:
            self._failed(error)
            raise
        except BaseException as error:
            self._broken_off(error)
            raise
        finally:
            session.stopped_running(self)

    async def solve(self) -> S:
        """Submit and wait, with as many attempts as allowed."""
        for attempt in range(1, self.options.attempts + 1):
            try:
                await self.submit(attempt)
                return await self.wait_for_end()
            except UnsolvableError:
                if attempt == self.options.attempts:
                    raise
        raise AssertionError("unreachable: attempts is at least 1")

    async def alone(self, way: Coroutine[Any, Any, T]) -> T:
        """Go one way while no other call with the same key does."""
        assert self.key is not None
        try:
            with self.limit:
                await self.session.take_key(self.key)
            try:
                return await way
            finally:
                self.session.leave_key(self.key)
        finally:
            way.close()  # a coroutine that was never awaited would complain

    async def submit(self, attempt: int = 1) -> None:
        """Submit a task; again, where that was asked for, when its fate is unknown."""
        resubmits = MAX_RESUBMITS if self.session.on_uncertain == "resubmit" else 0
        while True:
            try:
                return await self._submit_once(attempt)
            except SubmitUncertainError as error:
                # A task that the answer names is waited for rather than paid for again.
                if not resubmits or error.task_id is not None:
                    raise
                resubmits -= 1

    async def _submit_once(self, attempt: int) -> None:
        session, lease = self.session, Lease(self.session, self.kind)
        self.state, self.lease, self.task_id = State.QUEUED, lease, None
        self.answer = self.exchange = self.fate = self.clock = self.accepted_at = self.unsolved_at = None
        self.mode = self.options.mode(attempt)
        try:
            with self.limit:  # what it holds is settled after the step, for no deadline cuts that off
                session.check_submits()
                await lease.take_place()
                if not self.told:
                    self._tell_start()
                # Work with a name may be paid for already: that needs neither a good account nor money.
                if self.key is not None and await self._claimed(lease):
                    return
                await session.breaker.check(self, session.api.get_balance)
                await lease.reserve()
                if self.key is None:
                    await self._claimed(lease)
                self.state = State.SUBMITTING
                answer = await self._submitted()
        except BaseException as error:
            session.breaker.stand_down(self)
            await self._not_accepted(lease, error)
            raise
        try:
            await self._accepted(answer, attempt)
        except BaseException:
            await self._close(Fate.PARKED)
            raise

    async def wait_for_end(self) -> S:
        """Wait for a task that the service has, until the deadline."""
        session = self.session
        self.state = State.WAITING
        session.tally.waiting += 1
        try:
            if session.callbacks is not None and self.task_id is not None:
                session.callbacks.expect(self.task_id)
            if self.answer is None:
                await self._watch_others()
            if self.answer is None:
                clock = self._start_polling()
                while self.answer is None:
                    if clock.net or clock.stretched:
                        await self._until_brought_forward(clock)
                    due = self._due(clock)
                    try:
                        await self.limit.alarm(due)
                    finally:
                        self.limit.alarm_off()
                    self.limit.check(due)
                    self.answer = await self._asked(clock)
                self._stop_polling()  # now: others that wait for the task need not wait for the journal
            return await self._settle(self.answer)
        except UCaptchaError as error:
            await self._ended(error)
            raise
        except BaseException:
            await self._close(Fate.PARKED)
            raise
        finally:
            self._stop_polling()
            session.tally.waiting -= 1
            if session.callbacks is not None and self.task_id is not None:
                session.callbacks.forget(self.task_id)

    # --- the submit's ends --------------------------------------------------------------------------------------------

    async def _submitted(self) -> Answer:
        """Submit, under the name that the service knows the kind by."""
        search = await self.session.type_names.begin(self.task, self.options.provider)
        try:
            answer = await submit(self, search)
            if search.accepted() and search.name is not None:
                name, refused = search.name, tuple(search.tried)
                self.session.emit(TypeNameChosen, self, name=name.type, refused=refused, inferred=name.inferred)
            return answer
        finally:
            search.end()

    def wire(self, name: Name | None) -> tuple[SecretMapping, dict[str, str], tuple[str, ...]]:
        """The task as it is sent, the other fields of `createTask`, and what no error may show."""
        callbacks = self.session.callbacks
        url = None if callbacks is None else callbacks.url
        fields = {"callbackUrl": url, "selectionMode": self.mode, "provider": self.options.provider}
        wire = SecretMapping(self.task.to_wire(name))
        of_callback = () if url is None else (SecretStr(url), SecretStr(url.rpartition("/")[2]))
        self.secrets = (*passwords(wire), *of_callback)
        return wire, {name: value for name, value in fields.items() if value}, self.secrets

    async def _accepted(self, answer: Answer, attempt: int) -> None:
        self.accepted_at, self.unsolved_at = answer.received_at, answer.sent_at
        self.session.tally.submitted += 1
        solved = answer.status == Status.READY and (bool(answer.solution) or answer.task_id is None)
        if not solved and answer.status != Status.FAILED:
            self.answer = None  # "ready" without a solution, too: that is yet to be asked for
        self.state, self.exchange, self.answerable = State.WAITING, None, answer.task_id is not None
        # An end that is written at once says the same, in one line of the journal instead of two.
        if answer.task_id is not None and (self.answer is None or self.handed_out):
            assert self.lease is not None
            await self.lease.accepted(answer.task_id)
        self.session.emit(Submitted, self, attempt=attempt)

    async def _claimed(self, lease: Lease) -> bool:
        """Whether the journal knows the job already, so that there is nothing to submit."""
        while True:
            claim = await lease.begin(self.key, self.context)
            if claim is None or claim.kind is ClaimKind.NEW:
                return False
            if claim.kind is not ClaimKind.BUSY:
                break
            await self.session.loop.sleep(BUSY_DELAY)
        if claim.kind is ClaimKind.UNCERTAIN:
            self.session.emit(TakenUp, self, context=claim.entry.context)
            raise SubmitUncertainError(
                f"the work {self.key!r} was submitted before and its fate is unknown; "
                "it is not submitted again unless on_uncertain='resubmit'",
                task_id=claim.task_id,
            )
        self._take_up(claim)
        return True

    def _take_up(self, claim: Claim) -> None:
        self.task_id = claim.task_id
        self.session.emit(TakenUp, self, context=claim.entry.context)
        self.from_journal = claim.kind is ClaimKind.DONE
        if claim.kind is ClaimKind.DONE and claim.entry.solution is not None:
            self.answer = _remembered(claim.entry, self.session.loop.time())
        elif claim.task_id is None:
            raise JournalError(f"the work {self.key!r} is solved, but the journal keeps neither solution nor task id")

    async def _not_accepted(self, lease: Lease, error: BaseException) -> None:
        """Settle a submit that did not end with an accepted task in the caller's hands."""
        exchange = self.exchange
        if isinstance(error, UCaptchaError) and exchange is not None:
            self._attempted(error)
        if self.answer is not None:
            await self._answered_too_late(lease, self.answer)
        elif exchange is None:
            await lease.close(Fate.UNSENT)
        elif exchange.named is not None and self.fate in (None, Fate.UNCERTAIN):
            self.task_id, self.maybe_charged = exchange.named, True
            self.session.emit(Uncertain, self)
            await lease.accepted(exchange.named)
            await self._close(Fate.PARKED)
        else:
            fate = self.fate or (Fate.UNCERTAIN if exchange.sent else Fate.UNSENT)
            self.maybe_charged = self.maybe_charged or fate in (Fate.UNCERTAIN, Fate.FAILED_BY_CODE)
            if fate is Fate.UNCERTAIN:
                self.session.emit(Uncertain, self)
            if fate is not Fate.UNCERTAIN and isinstance(error, UCaptchaError):
                error.charged = None if fate is Fate.FAILED_BY_CODE else False
            await lease.close(fate, End(error_code=error.error_code if isinstance(error, UCaptchaError) else None))

    async def _answered_too_late(self, lease: Lease, answer: Answer) -> None:
        """Cancelled, and the answer came within the grace: what is paid for is known."""
        if answer.status == Status.FAILED:
            await self._close(Fate.FAILED, answer)
        elif self.task_id is None:
            # Paid for, and without an id there is nothing to take up: no other event would tell of the charge.
            self.maybe_charged = True
            self.session.emit(Uncertain, self)
            await self._close(Fate.SOLVED, answer)
        else:
            await lease.accepted(self.task_id)
            await self._close(Fate.PARKED)

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def _watch_others(self) -> None:
        """Wait for whoever in this client asks for the same task already: it is not polled twice as often."""
        assert self.task_id is not None
        asking = self.session.asking
        while (other := asking.get(self.task_id)) is not None:
            other.watchers = other.watchers or anyio.Event()
            with self.limit:
                await other.watchers.wait()
            if other.answer is not None:
                self.answer, self.unsolved_at = other.answer, other.unsolved_at
                return

    def _start_polling(self) -> PollClock:
        assert self.task_id is not None
        self.session.asking[self.task_id] = self
        return self._schedule()

    def _stop_polling(self) -> None:
        session, task_id = self.session, self.task_id
        if task_id is None or self.clock is None or session.asking.get(task_id) is not self:
            return
        del session.asking[task_id]
        session.leave(task_id, self.clock.next_poll)
        if self.watchers is not None:
            self.watchers.set()
            self.watchers = None

    async def _asked(self, clock: PollClock) -> Answer | None:
        """Ask once. Returns the answer if it is the last one."""
        session = self.session
        assert self.task_id is not None
        exchange = self.exchange = session.api.get_task_result(self.task_id, self.secrets)
        session.tally.polls += 1
        try:
            with self.limit, session.telling(self, exchange):
                answer = await session.api.ask(exchange, self.other_name)
        except UCaptchaError as error:
            clock.polled(exchange.sent_at or session.loop.time())
            ends = isinstance(error, ClientStateError) or (exchange.in_protocol and ends_wait(exchange.code))
            if ends and not self._respelled(error):
                raise
            self._late(clock, error)
        except BaseException:
            if exchange.sent_at is not None:
                clock.interrupted(exchange.sent_at)
            raise
        else:
            return answer if self._heard(clock, answer) else None
        finally:
            self.exchange = None
        return None

    def _schedule(self) -> PollClock:
        session = self.session
        if self.clock is None:
            resumed, now = self.accepted_at is None, session.loop.time()
            self.accepted_at = now if self.accepted_at is None else self.accepted_at
            net = session.callbacks is not None
            self.clock = PollClock(
                session.polling, session.times, self.kind, self.accepted_at, session.rng, net=net, resumed=resumed
            )
        if self.task_id is not None:
            self.clock.not_before(session.may_poll_at(self.task_id))
        return self.clock

    def _due(self, clock: PollClock) -> float:
        """When the next poll is due; one comes just before the deadline, if the next would come after it."""
        deadline = self.limit.deadline
        if clock.next_poll >= deadline:
            last = max(clock.earliest, deadline - LAST_CHANCE)
            return last if last < deadline else clock.next_poll
        return clock.next_poll

    async def _until_brought_forward(self, clock: PollClock) -> None:
        """Wait for the next poll, or for a callback or a good answer to somebody else that brings it forward."""
        session, callbacks = self.session, self.session.callbacks
        with self.limit:
            if clock.stretched:
                if await session.until_reached(self._due(clock) - session.loop.time()):
                    clock.brought_back(session.loop.time())
            elif callbacks is not None and await callbacks.wait_until(self.task_id or "", self._due(clock)):
                clock.hinted(session.loop.time())

    def _heard(self, clock: PollClock, answer: Answer) -> bool:
        """Take a poll's answer in. `True` if it is the last one."""
        session, self.trouble = self.session, None
        session.reached()
        clock.polled(answer.sent_at)
        if answer.status in (Status.READY, Status.FAILED):
            return True
        if answer.status not in (Status.IDLE, Status.PROCESSING):
            session.warn_once(f"status {answer.status}", "unknown task status %r counts as pending", answer.status[:40])
        clock.pending(answer.received_at)
        self.unsolved_at = answer.sent_at
        session.emit(Polled, self, status=answer.status, polls=clock.polls)
        return False

    def _respelled(self, error: UCaptchaError) -> bool:
        """Whether an id of digits that was not found is to be asked for once more, as a number."""
        task_id = self.task_id
        if not self.respell or not isinstance(error, TaskNotFoundError):
            return False
        self.respell = False
        if task_id is None or not task_id.isdecimal() or task_id.startswith("0"):
            return False
        self.task_id = NumericId(task_id)
        return True

    def _late(self, clock: PollClock, error: UCaptchaError) -> None:
        """A failed poll is a late poll."""
        session, now = self.session, self.session.loop.time()
        clock.faulted(now, error.retry_after)
        self.trouble = error
        if self.exchange.in_protocol:
            session.answered()
        if isinstance(error, WrongTask):
            self.other_name = error.named
        elif isinstance(error, APIConnectionError):
            session.unreachable(error, "tasks at the service are asked for until their own deadlines")
        elif isinstance(error, RateLimitedError):
            session.emit(Throttled, self, endpoint="getTaskResult")
        elif not error.retryable and not isinstance(error, Unreadable):
            told = error.error_code or type(error).__name__
            if session.warn_once(f"poll {told}", "a poll was refused, and the wait goes on: %s", error):
                session.emit(PollRefused, self, error=error)
        reason, delay = type(error).__name__, clock.next_poll - now
        session.emit(Retried, self, endpoint="getTaskResult", reason=reason, error_code=error.error_code, delay=delay)

    # --- the wait's ends ----------------------------------------------------------------------------------------------

    async def _settle(self, answer: Answer) -> S:
        """The task has ended: write it down, then read what came."""
        if answer.status == Status.FAILED:
            raise _unsolvable(answer, self.task_id)
        session, clock = self.session, self.clock
        if clock is not None:
            clock.ready(answer.received_at, answer.solve_time)
        # Written before it is read: even a solution that lacks what its type promises was paid for.
        try:
            await self._close(Fate.SOLVED, answer)
        except BaseException:
            self.state = State.WAITING  # paid for, and in nobody's hands
            raise
        self.solution = self._parsed(answer)
        session.tally.solved += 1
        self._attempted(None, answer.cost)
        session.note_end(self, self.solution)
        session.emit(
            Solved,
            self,
            cost=answer.cost,
            solve_time=answer.solve_time,
            elapsed=0.0 if self.accepted_at is None else answer.received_at - self.accepted_at,
            polls=self.solution.polls,
            from_journal=self.from_journal,
        )
        return self.solution

    def _parsed(self, answer: Answer) -> S:
        unsolved_at = answer.sent_at if self.unsolved_at is None else self.unsolved_at
        solution: S = self.task.solution_class.parse(  # type: ignore[assignment]
            answer.solution,
            task_id=self.task_id,
            cost=answer.cost,
            solve_time=answer.solve_time,
            polls=self.clock.polls if self.clock is not None else 0,
            obtained_at=datetime.now(UTC) - timedelta(seconds=self.session.loop.time() - unsolved_at),
            lifetime=self.task.lifetime,
            feedback=functools.partial(feedback, self.session, self.task_id, self.secrets),
        )
        return solution

    async def _close(self, fate: Fate, answer: Answer | None = None, error_code: str | None = None) -> None:
        """Settle what the task holds; a task that was taken up by its id holds nothing, and its cost counts."""
        session, lease = self.session, self.lease
        if fate is not Fate.PARKED:
            self.state = State.ENDED
            self._not_answerable()
        if self.from_journal:
            if lease is not None:
                lease.free_place()
            return
        end = End(task_id=self.task_id, error_code=error_code)
        if answer is not None:
            kept = answer.solution if isinstance(answer.solution, dict) else None
            end = attrs.evolve(end, cost=answer.cost, solve_time=answer.solve_time, solution=kept)
        await (lease or Lease(session, self.kind)).close(fate, end)

    async def _ended(self, error: UCaptchaError) -> None:
        error.task_id = error.task_id or self.task_id
        self._attempted(error)
        if self.state is State.ENDED:
            return  # solved, and what came lacks what its type promises
        if self.clock is not None:
            self.clock.ended()
        submitted_here = self.lease is not None and not self.respell
        if self.answer is not None and self.answer.status == Status.FAILED:
            await self._close(Fate.FAILED, error_code=error.error_code)
        elif isinstance(error, TaskNotFoundError):
            error.charged = True if submitted_here else None
            self.maybe_charged = self.maybe_charged or submitted_here
            await self._close(Fate.LOST, error_code=error.error_code)
        elif isinstance(error, UnsolvableError | InvalidTaskError):
            error.charged = None
            self.maybe_charged = True
            await self._close(Fate.FAILED_BY_CODE, error_code=error.error_code)
        else:
            error.charged = True
            await self._close(Fate.PARKED)

    # --- what the caller learns ---------------------------------------------------------------------------------------

    def _tell_start(self) -> None:
        """Tell the hook that a solve begins. What it answers is kept for whoever takes the task up later."""
        earlier, now = self.context, self.session.loop.time()
        queued = 0.0 if self.called_at is None else now - self.called_at
        self.told, self.context = True, self.session.emit(Started, self, queued=queued)
        if self.state is State.WAITING:
            self.session.emit(TakenUp, self, context=earlier)
            self.context = earlier or self.context

    @property
    def charged(self) -> bool | None:
        """Whether money was spent, as far as is known now."""
        if self.task_id is not None and self.state is not State.ENDED:
            return None if self.fate is Fate.UNCERTAIN else True
        sent = self.state is State.SUBMITTING and self.exchange is not None and self.exchange.sent
        return None if self.maybe_charged or (sent and self.fate is None) else False

    def _stopped(self, timeout: float) -> UCaptchaError:
        if self.session.ends is not None:
            message = f"{self.session.ends} {_DOING.get(self.state, '')}".rstrip()
            return ClientStateError(message, task_id=self.task_id, charged=self.charged)
        trouble = f"; the last request failed: {self.trouble.message}" if self.trouble is not None else ""
        error = SolveTimeoutError(
            f"no solution within {timeout:g} s; timed out {_DOING.get(self.state, '')}{trouble}",
            task_id=self.task_id,
            phase=self.state.value,
            charged=self.charged,
        )
        error.__cause__ = self.trouble
        self._attempted(error)
        return error

    def _failed(self, error: UCaptchaError) -> None:
        error.attempts = self.attempts
        if error.charged is False and self.maybe_charged:
            error.charged = None  # the last task was not charged; an earlier one of unknown fate may have been
        ends = isinstance(error, ClientStateError | JournalError)
        if ends and self.charged:
            error.task_id, error.charged = self.task_id, True
        waits_again = self.handed_out and self.state is State.WAITING
        if ends or (self.lease is not None and not waits_again):
            self._abandon()
        if not self.handed_out:
            self._not_answerable()
        self.session.tally.failed += 1
        self.told = False
        self.session.emit(Failed, self, error=error)
        self.session.note_end(self, error)

    def _broken_off(self, error: BaseException) -> None:
        """Cancelled, or a defect of ours or of the caller's own code: it comes out as it is."""
        self._abandon()
        if isinstance(error, anyio.get_cancelled_exc_class()):
            self.session.tally.cancelled += 1
            self.told = False
            self.session.emit(Cancelled, self)
        else:
            self.session.tally.failed += 1
            noted(error, self)

    def _abandon(self) -> None:
        if self.lease is not None:
            self.lease.free_place()
        if self.task_id is not None and self.state is not State.ENDED:
            self.session.abandoned.append(self.task_id)
            self._not_answerable()

    def _not_answerable(self) -> None:
        self.answerable = False
        if self.task_id is not None:
            (self.session.ended if self.state is State.ENDED else self.session.gave_up)(self.task_id)

    def _attempted(self, error: UCaptchaError | None, cost: Any = None) -> None:
        """Note one createTask of a solve, and how it went."""
        uncertain = isinstance(error, SubmitUncertainError)
        task_id = self.task_id if error is None else error.task_id or self.task_id
        attempt = Attempt(task_id=task_id, error=error, cost=cost, selection_mode=self.mode, uncertain=uncertain)
        self.attempts = (*self.attempts, attempt)


def _unsolvable(answer: Answer, task_id: str | None) -> UnsolvableError:
    """The error for a task that the service has given up. Source: docs/api/ucaptcha/get-task-result."""
    told = f": {answer.error_description}" if answer.error_description else ""
    code = answer.error_code or "ERROR_CAPTCHA_UNSOLVABLE"
    message = f"the task could not be solved and is refunded{told}"
    return UnsolvableError(message, task_id=task_id or answer.task_id, error_code=code)


def _remembered(entry: Entry, now: float) -> Answer:
    now -= max(0.0, (datetime.now(UTC) - entry.updated_at).total_seconds())  # that is when it was solved
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


async def feedback(
    session: Session, task_id: str | None, secrets: tuple[str, ...], accepted: bool, message: str, code: str | None
) -> str:
    """Tell the service whether a solution worked."""
    if task_id is None:
        message = "this solution came without a task id, so there is nothing to give feedback on"
        raise ClientStateError(message, charged=None)
    session.check_open(task_id)
    if not isinstance(accepted, bool):
        raise wrong("accepted", accepted, "True or False")  # "no" would count as a yes
    if not isinstance(message, str) or not message:
        raise wrong("message", message, "a non-empty str: the service requires one")
    if code is not None and (not isinstance(code, str) or not code):
        raise wrong("code", code, "a non-empty str, or None")
    result: dict[str, Any] = {"invalid": not accepted, "message": message}
    if code is not None:
        result["code"] = code
    return await session.api.feedback(task_id, result, secrets)
