"""What all solves of a client share."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import anyio
import attrs

from ucaptcha_async.budget import SharedBudget
from ucaptcha_async.errors import APIConnectionError, ClientStateError, JournalError, UCaptchaError
from ucaptcha_async.events import (
    ConnectionsDistrusted,
    Context,
    Event,
    Hook,
    JournalFailed,
    Requested,
    ServiceReached,
    ServiceUnreachable,
    SubmitsHeld,
    SubmitsResumed,
)
from ucaptcha_async.journal import Journal
from ucaptcha_async.json_values import EXACT
from ucaptcha_async.pacing import Breaker, InFlight, InFlightBound
from ucaptcha_async.pacing.event_loop import EventLoop, Running, wait_through
from ucaptcha_async.polling import Polling, SolveTimes
from ucaptcha_async.results import Outcome
from ucaptcha_async.transport.api import Api
from ucaptcha_async.transport.exchange import Exchange

from .type_search import TypeNames

if TYPE_CHECKING:
    from ucaptcha_async.callbacks import CallbackReceiver


logger = logging.getLogger("ucaptcha_async")

V = TypeVar("V")

OnUncertain = Literal["raise", "resubmit"]

LAST_WRITE = 10.0
"""Seconds that a cancelled solve still takes, at the most, to write its last line into the journal."""

SUBMITS_AHEAD = 64
"""Submits that are made before they may depart: enough to open connections side by side."""

REMEMBERED_TASKS = 10_000
"""Tasks that are remembered, so that each is counted once, and its secrets are known to who names its id alone."""


class Held(Protocol):
    """What a task at the service holds: `Lease` is one."""

    async def park(self) -> None:
        """Nobody waits for the task any more: its money counts as spent, and anybody may take its row up."""
        ...


class Call(Protocol):
    """A call that is under way, as the session knows it: `Job` is one."""

    number: int
    key: str | None
    task_id: str | None
    secrets: tuple[str, ...]

    @property
    def lease(self) -> Held | None:
        """What its task holds."""
        ...

    @property
    def kind(self) -> str:
        """The kind of the task."""
        ...

    @property
    def state(self) -> str:
        """`queue`, `submit`, `wait` or `ended`."""
        ...

    @property
    def charged(self) -> bool | None:
        """Whether money was spent, as far as is known now."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


@attrs.define(eq=False)
class Tally:
    """What has happened so far."""

    submitted: int = 0
    solved: int = 0
    failed: int = 0
    cancelled: int = 0
    polls: int = 0
    waiting: int = 0
    spent: dict[str, Decimal] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Session:
    """The shared part of a client and of all its views.

    Attributes:
        loop: The event loop that the client was entered in.
        running: The calls that are under way.
        submitting: The submits that are made, and have not departed yet. The others wait while they are small, before
            anything of their request is made, and polls do not have to wait behind all of them.
        open: The tasks at the service that a job here is answerable for: what each holds, by its id.
        asking: Who asks for a task just now, by its id.
        abandoned: Ids of paid tasks that nobody here waits for any more.
        intakes: What stops the reading of inputs, of each stream that is open, with the error that ends it.
        ends: Why calls that are under way end: what their errors say once the client closes or drains.
    """

    api: Api
    account: str
    host: str
    polling: Polling
    times: SolveTimes
    in_flight: InFlightBound
    breaker: Breaker
    journal: Journal | None
    budget: SharedBudget | None
    callbacks: CallbackReceiver | None
    on_uncertain: OnUncertain
    cancel_grace: float
    type_names: TypeNames
    submitting: InFlight
    on_event: Hook | None
    loop: EventLoop = attrs.field(init=False)
    rng: Random = attrs.field(factory=Random)
    tally: Tally = attrs.field(factory=Tally)
    running: set[Call] = attrs.field(factory=set)
    open: dict[str, Held | None] = attrs.field(factory=dict)
    asking: dict[str, Any] = attrs.field(factory=dict)
    abandoned: deque[str] = attrs.field(factory=lambda: deque(maxlen=100_000))
    intakes: set[Callable[[ClientStateError], None]] = attrs.field(factory=set)
    ends: str | None = None
    closed: bool = False
    drained: list[tuple[Any, Any]] | None = None
    _recovered: anyio.Event | None = None
    _idle: anyio.Event | None = None
    _unreachable_since: float | None = None
    _told: set[str] = attrs.field(factory=set)
    _keys: dict[str, list[Any]] = attrs.field(factory=dict)
    _counted: dict[str, None] = attrs.field(factory=dict)
    _secrets: dict[str, tuple[str, ...]] = attrs.field(factory=dict, repr=False)
    _left: OrderedDict[str, float] = attrs.field(factory=OrderedDict)
    _given_up: dict[str, None] = attrs.field(factory=dict)
    _dropped: deque[tuple[Callable[[], None], str | None]] = attrs.field(factory=deque)
    _unparked: deque[Held] = attrs.field(factory=deque)
    _parking: Running | None = None

    def emit(self, kind: type[Event], job: Call | None = None, **details: Any) -> Context | None:
        """Tell the hook, if there is one; what it wants to be kept with the solve."""
        if self.on_event is None:
            return None
        if job is not None:
            of_job = {"task_type": job.kind, "task_id": job.task_id, "key": job.key, "solve_id": job.number}
            details = of_job | details
        event = kind(at=self.loop.time(), **details)
        try:
            said = self.on_event(event)
        except Exception:
            logger.exception("on_event raised; the solve goes on")
            return None
        return said if isinstance(said, Context) else None

    def telling(self, job: Call, exchange: Exchange) -> AbstractContextManager[None]:
        """Tell the hook, if there is one, how the request ends that is made in this block."""
        return _QUIETLY if self.on_event is None else _Telling(self, job, exchange)

    def count_cost(self, kind: str, task_id: str | None, cost: Decimal | None) -> bool:
        """Count what a solved task cost, once, however many waited for it; whether it was counted now."""
        if cost is None or task_id in self._counted:
            return False
        if task_id is not None:
            _remember(self._counted, task_id, None)
        self.tally.spent[kind] = EXACT.add(self.tally.spent.get(kind, Decimal(0)), cost)
        return True

    def unread(self, outcome: Outcome[Any]) -> None:
        """Keep the id of a paid task whose outcome nobody has read."""
        paid = outcome.error is None or outcome.error.charged is not False
        if paid and outcome.task_id is not None:
            self.abandoned.append(outcome.task_id)

    def warn_once(self, what: str, message: str, *arguments: object) -> bool:
        """Log a WARNING the first time that something is seen; whether this was the first time."""
        if what in self._told or len(self._told) > 1_000:
            return False
        self._told.add(what)
        logger.warning(message, *arguments)
        return True

    # --- the service is away, and back --------------------------------------------------------------------------------

    def unreachable(self, error: APIConnectionError, next_step: str) -> None:
        """A request failed on the way: tell the first time, with what happens next."""
        if self._unreachable_since is None:
            self._unreachable_since = self.loop.time()
            logger.warning("the service cannot be reached: %s; %s", error.message, next_step)
            self.emit(ServiceUnreachable, reason=error.message)

    def reached(self) -> None:
        """A request was answered well: polls that were stretched come back, and an outage is over."""
        if self._recovered is not None:
            self._recovered.set()
            self._recovered = None
        self.answered()

    def answered(self) -> None:
        """The service itself answered, be it with a refusal: an outage is over."""
        if self._unreachable_since is not None:
            seconds = self.loop.time() - self._unreachable_since
            self._unreachable_since = None
            logger.warning("the service is reached again, after %.1f s", seconds)
            self.emit(ServiceReached, seconds=seconds)

    async def until_reached(self, seconds: float) -> bool:
        """Wait for a good answer to anybody in this client; whether one came in time."""
        event = self._recovered = self._recovered or anyio.Event()
        with anyio.move_on_after(seconds):
            await event.wait()
        return event.is_set()

    async def until_submits_go_on(self) -> None:
        """Wait until a new submit would not have to wait for those before it."""
        await self.submitting.acquire()
        self.submitting.release()

    def held(self, holds: bool) -> None:
        """Submits are held back because it is not the service that answers, or let go again."""
        if holds:
            logger.warning("answers to createTask are not the service's own: one submit at a time goes out")
        self.emit(SubmitsHeld if holds else SubmitsResumed)

    def distrusted(self) -> None:
        """The service sent bytes that nobody asked for."""
        self.emit(ConnectionsDistrusted)

    # --- tasks that more than one call is about -----------------------------------------------------------------------

    def leave(self, task_id: str, next_poll: float) -> None:
        """Remember when a task that nobody waits for any more may be asked for again."""
        now = self.loop.time()
        while self._left and next(iter(self._left.values())) <= now:
            self._left.popitem(last=False)
        self._left[task_id] = min(next_poll, now + self.polling.interval)
        self._left.move_to_end(task_id)

    def gave_up(self, task_id: str) -> None:
        """A task that has not ended is answered for by nobody here, and answers about it may still come."""
        self.open.pop(task_id, None)
        _remember(self._given_up, task_id, None)

    def ended(self, task_id: str) -> None:
        """A task has ended: from now on the service may give its id to another."""
        self.open.pop(task_id, None)
        self._given_up.pop(task_id, None)

    def is_known(self, task_id: str, first: bool | None) -> bool:
        """Whether an id is that of a task which has not ended here, so that no other task was just made with it.

        Args:
            task_id: The id.
            first: Whether it came with a connection's first answer: that is no late one about a task given up.
        """
        return task_id in self.open or (first is not True and (task_id in self._given_up or task_id in self.asking))

    def accepted(self, task_id: str, job: Call) -> None:
        """The service has a task; what its answers may repeat is kept for those who ask by the id alone."""
        self.open[task_id] = job.lease
        if job.secrets:
            _remember(self._secrets, task_id, job.secrets)

    def secrets_of(self, task_id: str) -> tuple[str, ...]:
        """What no error about a task may show."""
        return self._secrets.get(task_id, ())

    def may_poll_at(self, task_id: str) -> float:
        """When a task may be asked for, after an earlier wait for it was given up."""
        return self._left.pop(task_id, -math.inf)

    async def take_key(self, key: str) -> None:
        """Wait until no other call has the key, so that it finds what the others have done; then `leave_key`."""
        entry = self._keys.setdefault(key, [anyio.Lock(), 0])
        entry[1] += 1
        try:
            await entry[0].acquire()
        except BaseException:
            self._forget_key(key)
            raise

    def leave_key(self, key: str) -> None:
        """Let the next call with the key go on."""
        self._keys[key][0].release()
        self._forget_key(key)

    def _forget_key(self, key: str) -> None:
        self._keys[key][1] -= 1
        if not self._keys[key][1]:
            del self._keys[key]

    # --- what must happen whatever happens ----------------------------------------------------------------------------

    async def write(self, report: Callable[[Journal, str], Awaitable[object]], row: str) -> object:
        """Report to the journal, even while the caller is being cancelled. It breaks no solve."""
        assert self.journal is not None
        with anyio.move_on_after(LAST_WRITE, shield=True):
            try:
                return await report(self.journal, row)
            except (JournalError, ClientStateError) as error:
                logger.warning("%s", error)
                self.emit(JournalFailed, error=error)
        return None

    def drop(self, free_place: Callable[[], None], task_id: str | None) -> None:
        """A job was forgotten, perhaps by the garbage collector, in whatever thread that runs."""
        self._dropped.append((free_place, task_id))
        self.loop.call_later_from_anywhere(self.sweep)

    def sweep(self) -> None:
        """Free the places of forgotten jobs, and keep their ids. Runs in the event loop."""
        while self._dropped:
            free_place, task_id = self._dropped.popleft()
            free_place()
            if task_id is not None:
                self.abandoned.append(task_id)
                held = self.open.get(task_id)
                self.gave_up(task_id)
                if held is not None:
                    self._unparked.append(held)
        if self._unparked and self._parking is None and self.loop.runs_here():
            self._parking = self.loop.spawner(self._parked)(self._park())

    async def _park(self) -> None:
        """Settle what nobody waits for; together, so that the journal writes it in few batches."""
        async with anyio.create_task_group() as tasks:
            while self._unparked:
                tasks.start_soon(self._park_one, self._unparked.popleft())

    @staticmethod
    async def _park_one(held: Held) -> None:
        try:
            await held.park()
        except Exception:
            logger.exception("a task that nobody waits for could not be settled")

    def _parked(self, _: object, error: BaseException | None) -> None:
        self._parking = None
        self._look_if_idle()

    # --- the client's life --------------------------------------------------------------------------------------------

    def check_open(self, task_id: str | None = None) -> None:
        """Raise `ClientStateError` if the client is closed, or used in another event loop."""
        problem = None
        if self.closed:
            problem = "the client is closed: make a new one"
        elif not self.loop.runs_here():
            problem = "the client was entered in another event loop: use it there, or make one for each loop"
        if problem is not None:
            raise ClientStateError(problem, task_id=task_id, charged=False if task_id is None else None)

    def check_submits(self) -> None:
        """Raise `ClientStateError` if no task is submitted any more."""
        if self.ends is not None:
            raise self._no_submits()

    def _no_submits(self) -> ClientStateError:
        return ClientStateError(f"{self.ends}: no further task is submitted")

    def _end_submits(self, why: str) -> None:
        self.ends = why
        for stop in list(self.intakes):
            stop(self._no_submits())

    def note_end(self, job: Call, result: Any) -> None:
        """Keep how a call ended, while the client drains."""
        if self.drained is not None:
            self.drained.append((job, result))

    async def drain(self, seconds: float) -> list[tuple[Any, Any]]:
        """End what is not submitted, and wait for what is, or is on its way, for some seconds at the most."""
        self.drained = []
        self._end_submits("the client is draining")
        for job in list(self.running):
            if job.state == "queue" or (job.state == "submit" and job.charged is False):
                job.stop()
        with anyio.move_on_after(seconds):
            await self._idle_event().wait()
        self.stop("queue", "submit", "wait", "ended")
        await self._until_idle(self.loop.time() + self.cancel_grace + LAST_WRITE)
        ended, self.drained = self.drained, None
        return ended

    async def end(self) -> None:
        """End the calls that are under way, in order: submits are still answered, waits end at once, and each writes
        its last line.
        """
        self.closed = True
        self._end_submits("the client was closed")
        self.stop("queue", "submit", "wait", "ended")
        try:
            await self._until_idle(self.loop.time() + self.cancel_grace + LAST_WRITE)
        finally:
            self.sweep()
            self.abandoned.extend(self.open)
            self._unparked.extend(filter(None, self.open.values()))
            self.open.clear()
            with anyio.move_on_after(LAST_WRITE, shield=True):
                await self._park()
            await self._until_idle(self.loop.time() + LAST_WRITE)

    def stop(self, *states: str) -> None:
        """End the calls that are in one of these states."""
        for job in list(self.running):
            if job.state in states:
                job.stop()

    async def _until_idle(self, deadline: float) -> None:
        """Wait until nothing runs, whatever happens; a cancellation that comes meanwhile is raised at the end."""
        await wait_through(self._idle_event(), deadline)

    def _idle_event(self) -> anyio.Event:
        idle = self._idle = self._idle or anyio.Event()
        self._look_if_idle()
        return idle

    def stopped_running(self, job: Call) -> None:
        """A call has ended."""
        self.running.discard(job)
        self._look_if_idle()

    def _look_if_idle(self) -> None:
        if not self.running and self._parking is None and self._idle is not None:
            self._idle.set()
            self._idle = None


@attrs.frozen(eq=False)
class _Telling(AbstractContextManager[None]):
    session: Session
    job: Call
    exchange: Exchange

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        job, exchange = self.job, self.exchange
        if not exchange.permitted:
            return
        end: dict[str, Any] = {"status": exchange.said, "task_id": job.task_id or exchange.named}
        if error is not None:
            reason = type(error).__name__ if isinstance(error, Exception) else "Cancelled"
            end = {"reason": reason, "error_code": error.error_code if isinstance(error, UCaptchaError) else None}
        endpoint, host = exchange.path.removeprefix("/"), self.session.host
        seconds = 0.0 if exchange.sent_at is None else self.session.loop.time() - exchange.sent_at
        status = exchange.status
        self.session.emit(Requested, job, endpoint=endpoint, host=host, seconds=seconds, http_status=status, **end)


_QUIETLY = nullcontext()


def _remember(tasks: dict[str, V], task_id: str, value: V) -> None:
    """Note something of a task, and forget it of the oldest ones."""
    tasks[task_id] = value
    while len(tasks) > REMEMBERED_TASKS:
        del tasks[next(iter(tasks))]


def noted(error: BaseException, job: Call) -> None:
    """Say on somebody's own exception which task it concerns, and whether that was charged."""
    if isinstance(error, UCaptchaError) or job.charged is False:
        return
    charged = "charged" if job.charged else "perhaps charged"
    error.add_note(f"ucaptcha_async: task {job.task_id or 'of unknown id'} ({charged})")
