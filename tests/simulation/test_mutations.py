"""The checks can fail: each of these faults in the client is caught by the check that is there for it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from ucaptcha_async import Polling
from ucaptcha_async.budget import Budget
from ucaptcha_async.journal import ledger
from ucaptcha_async.pacing import breaker, gcra, in_flight, limiter
from ucaptcha_async.polling import PollClock
from ucaptcha_async.solving import job, lease, prefetch, session, stream, submit
from ucaptcha_async.solving.lease import Fate, Money
from ucaptcha_async.testing import DIALECTS, Error, Html
from ucaptcha_async.transport import api, exchange, pool

from .backends import BACKENDS
from .checks import RULES
from .fair import plan, works
from .plan import Plan, draw
from .world import run_world

MOST = 120
"""Worlds in which a fault must show itself."""

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]
MUTATIONS: dict[str, tuple[Mutation, set[str], Callable[[int], Plan]]] = {}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable()
    yield
    logging.disable(before)


def caught_by(*rules: str, worlds: Callable[[int], Plan] = draw) -> Callable[[Mutation], Mutation]:
    """Declare a fault and the checks that must all catch it, in worlds of all kinds or in those that it takes."""

    def add(mutate: Mutation) -> Mutation:
        MUTATIONS[mutate.__name__] = (mutate, set(rules), worlds)
        return mutate

    return add


def like(**changes: Any) -> Callable[[int], Plan]:
    """Worlds in fair weather, but for the changes."""
    return lambda seed: plan(seed, **changes)


NAMED = attrs.evolve(DIALECTS["ucaptcha"], extras=("taskId",))
"""A service whose answers name their tasks."""


# --- the submit -------------------------------------------------------------------------------------------------------


@caught_by("nothing_sent_again", "nothing_twice")
def resubmits_blindly(patch: Patch) -> None:
    """A submit of unknown fate is sent again."""
    judge = submit.fate_of

    def fate_of(error: Any, asked: Any) -> Fate:
        fate = judge(error, asked)
        return Fate.UNSENT if fate is Fate.UNCERTAIN else fate

    patch.setattr(submit, "fate_of", fate_of)


@caught_by("no_false_alarms")
def raises_false_alarms(patch: Patch) -> None:
    """A submit that was never written counts as sent."""
    patch.setattr(exchange.Exchange, "sent", property(lambda self: True, lambda self, value: None))


@caught_by(
    "claims_hold",
    "nothing_twice",
    worlds=like(
        journal=True, works=works(10, keyed=True, calls=2), faults=((Error("ERROR_NEW_WORD", names_task=True), 0.3),)
    ),
)
def believes_refusals_that_name_a_task(patch: Patch) -> None:
    """An answer that refuses and names a task is a refusal."""
    _judge_otherwise(patch, named=None)


@caught_by("claims_hold", "nothing_lost", worlds=like(faults=((Html(403, processed=True), 0.3),)))
def believes_gateways(patch: Patch) -> None:
    """A page of something in front of the service is the service's refusal."""
    _judge_otherwise(patch, in_protocol=True)


def _judge_otherwise(patch: Patch, **details: Any) -> None:
    judge = submit.fate_of

    def fate_of(error: Any, asked: Any) -> Fate:
        before = {name: getattr(asked, name) for name in details}
        _set(asked, details)
        try:
            return judge(error, asked)
        finally:
            _set(asked, before)

    patch.setattr(submit, "fate_of", fate_of)


def _set(target: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(target, name, value)


@caught_by("giving_up_is_quick")
def clings(patch: Patch) -> None:
    """A cancelled submit waits for its answer as long as it takes."""
    patch.setattr(submit, "_patience", lambda asked, grace: 60.0)


@caught_by("fresh_work_is_done")
def stays_broken(patch: Patch) -> None:
    """An account that was refused once is refused for ever."""
    patch.setattr(breaker.Breaker, "reset", lambda self: None)


# --- the journal and the money ----------------------------------------------------------------------------------------


@caught_by("nothing_lost")
def writes_no_intent(patch: Patch) -> None:
    """Submits are sent before anything is in the journal."""

    async def begin(self: Any, key: Any, context: Any = None) -> None:
        return None

    patch.setattr(lease.Lease, "begin", begin)


@caught_by("nothing_twice")
def ignores_keys(patch: Patch) -> None:
    """The same work is submitted as often as it is asked for."""
    patch.setattr(ledger.Begin, "holds", property(lambda self: None))


@caught_by("nothing_lost")
def hides_uncertainty(patch: Patch) -> None:
    """Nobody is told of a submit whose fate is unknown."""
    patch.setitem(lease._TABLE, Fate.UNCERTAIN, (Money.KEEP, lambda journal, row, end: journal.released(row)))


FORGETFUL = {"retention": 1.0, "polling": Polling(first=40)}


@caught_by("budgets_hold", worlds=like(budget=Decimal("0.02"), in_flight=1, **FORGETFUL))
def refunds_lost_tasks(patch: Patch) -> None:
    """A task that the service does not know any more gives its money back."""
    _, report = lease._TABLE[Fate.LOST]
    patch.setitem(lease._TABLE, Fate.LOST, (Money.RELEASE, report))


@caught_by("nothing_twice", worlds=like(journal=True, works=works(10, keyed=True, calls=2), **FORGETFUL))
def frees_the_keys_of_lost_tasks(patch: Patch) -> None:
    """A task that the service does not know any more is paid for again."""
    money, _ = lease._TABLE[Fate.LOST]
    patch.setitem(lease._TABLE, Fate.LOST, (money, lease._TABLE[Fate.FAILED][1]))


@caught_by("money_agrees")
def counts_what_failed(patch: Patch) -> None:
    """A refunded task counts as spent."""
    close = lease.Lease.close

    async def counted(self: Any, fate: Fate, *end: Any) -> None:
        if fate is Fate.FAILED:
            self.session.count_cost(self.kind, None, Decimal("0.003"))
        await close(self, fate, *end)

    patch.setattr(lease.Lease, "close", counted)


@caught_by("money_agrees", worlds=like(journal=True, works=works(6, how="submit", keyed=True, calls=3)))
def counts_twice(patch: Patch) -> None:
    """Each who waits for a task counts its cost."""
    count = session.Session.count_cost

    def count_cost(self: Any, kind: str, task_id: Any, cost: Any) -> bool:
        return count(self, kind, None, cost)

    patch.setattr(session.Session, "count_cost", count_cost)
    _hide_who_was_first(patch)


@caught_by("money_agrees")
def counts_what_another_counted(patch: Patch) -> None:
    """Each process that waits for a task counts its cost, whatever the journal says."""
    _hide_who_was_first(patch)


def _hide_who_was_first(patch: Patch) -> None:
    write = session.Session.write

    async def first(self: Any, report: Any, row: str) -> None:
        await write(self, report, row)

    patch.setattr(session.Session, "write", first)


@caught_by("budgets_hold")
def overspends(patch: Patch) -> None:
    """The budget refuses nothing."""
    patch.setattr(Budget, "_check", lambda self, *arguments: None)


# --- how requests leave, and whose answers come -----------------------------------------------------------------------


@caught_by("windows_hold")
def ignores_the_limit(patch: Patch) -> None:
    """Requests leave as they come."""

    async def acquire(self: Any) -> None:
        await anyio.lowlevel.checkpoint()

    patch.setattr(limiter.RateLimiter, "acquire", acquire)
    patch.setattr(limiter.RateLimiter, "observe", lambda self, *arguments, **details: None)
    patch.setattr(limiter.RateLimiter, "lost", lambda self: None)


@caught_by("windows_hold")
def asks_for_a_permit_too_early(patch: Patch) -> None:
    """The permit to depart is asked for before there is a connection, and never grows stale."""
    departed = pool.Pool._departed

    async def early(self: Any, asked: Any) -> Any:
        await asked.permit()
        return await departed(self, asked)

    patch.setattr(exchange, "PERMIT_LIFETIME", math.inf)
    patch.setattr(pool.Pool, "_departed", early)


@caught_by("pauses_hold")
def ignores_pauses(patch: Patch) -> None:
    """A 429 slows nobody down."""
    patch.setattr(gcra.GCRA, "pause", lambda self, until: None)


@caught_by("solved_is_solved", worlds=like(library="fast", rates={"extra_later": 0.2, "extra_idle": 0.2}))
def believes_extra_answers(patch: Patch) -> None:
    """What waits on a connection before a request is written is taken for its answer."""

    async def departs(self: Any, connection: Any, asked: Any) -> bool:
        while True:
            await asked.permit()
            if asked.depart():
                return True

    patch.setattr(pool.Pool, "_departs", departs)


@caught_by("solved_is_solved", worlds=like(dialect=NAMED, rates={"extra_crossing": 0.3}))
def believes_answers_that_name_another_task(patch: Patch) -> None:
    """Nobody looks whom an answer names."""
    patch.setattr(api.Api, "_named_another", lambda self, asked, reply: None)


@caught_by("solved_is_solved")
def mixes_answers_up(patch: Patch) -> None:
    """Who waits gets the answer of whoever asks just now, whatever for."""

    async def mixed(self: Any) -> None:
        for other in self.session.asking.values():
            other.watchers = other.watchers or anyio.Event()
            await other.watchers.wait()
            self.answer = other.answer
            return

    patch.setattr(job.Job, "_watch_others", mixed)


# --- the wait ---------------------------------------------------------------------------------------------------------


@caught_by("polls_are_spaced")
def polls_every_second(patch: Patch) -> None:
    """Tasks are asked for every second."""
    pending = PollClock.pending

    def soon(self: Any, received_at: float) -> None:
        pending(self, received_at)
        self.next_poll = received_at + 1

    patch.setattr(PollClock, "pending", soon)


@caught_by("faults_end_no_wait")
def gives_up_at_a_lost_poll(patch: Patch) -> None:
    """The first failed poll ends a solve."""

    def late(self: Any, clock: Any, error: Exception) -> None:
        raise error

    patch.setattr(job.Job, "_late", late)


@caught_by("faults_end_no_wait", worlds=like(dialect=attrs.evolve(NAMED, id_digits=6)))
def writes_ids_as_numbers(patch: Patch) -> None:
    """An id of digits goes back as a number, whatever it was."""
    patch.setattr(api, "wire_id", lambda task_id: int(task_id) if task_id.isdecimal() else task_id)


@caught_by("faults_end_no_wait", worlds=like(dialect=attrs.evolve(NAMED, id_digits=19, integer_ids=True)))
def writes_ids_as_text(patch: Patch) -> None:
    """An id goes back as text, whatever it was."""
    patch.setattr(api, "wire_id", str)


@caught_by(
    "what_was_left_is_taken_up",
    worlds=like(dialect=attrs.evolve(NAMED, id_digits=19, integer_ids=True), works=works(10, cancel_after=6.0)),
)
def forgets_that_an_id_was_a_number(patch: Patch) -> None:
    """An id of digits that is not found is not asked for as a number."""
    patch.setattr(job, "NumericId", str)


@caught_by("nothing_lost", "money_is_explained")
def loses_ids(patch: Patch) -> None:
    """A solve that ran out of time tells nobody the id of the task that was paid for."""
    stopped = job.Job._stopped

    def without_id(self: Any, timeout: float) -> Any:
        error = stopped(self, timeout)
        self._not_answerable()
        error.task_id = self.task_id = None
        self.attempts = ()
        return error

    patch.setattr(job.Job, "_stopped", without_id)


@caught_by("nothing_lost")
def abandons_in_silence(patch: Patch) -> None:
    """Nobody learns the ids of tasks whose solves were cancelled."""
    patch.setattr(session.Session, "abandoned", property(lambda self: deque(), lambda self, value: None))


@caught_by("claims_hold")
def denies_charges(patch: Patch) -> None:
    """An error says that nothing was charged, whatever happened."""
    failed = job.Job._failed

    def denying(self: Any, error: Any) -> None:
        failed(self, error)
        error.charged = False

    patch.setattr(job.Job, "_failed", denying)


@caught_by("everything_ends")
def forgets_deadlines(patch: Patch) -> None:
    """Solves go on after their time."""
    run = job.Job.run

    async def endless(self: Any, way: Any, timeout: float) -> Any:
        return await run(self, way, timeout * 3 + 20)

    patch.setattr(job.Job, "run", endless)


@caught_by("what_was_left_is_taken_up")
def recovers_nothing(patch: Patch) -> None:
    """What a dead process left stays where it is."""

    async def nothing(journal: Any, account: str) -> Any:
        nobody: tuple[Any, ...] = ()
        for entry in nobody:
            yield entry

    patch.setattr(stream, "_open", nothing)


# --- tokens that are ready before they are needed ---------------------------------------------------------------------

STOCKED = {"how": "prefetch", "calls": 20, "ready": 3}


@caught_by("stocks_agree", worlds=like(works=works(2, **STOCKED, timeout=60.0, patience=1.0)))
def loses_tokens(patch: Patch) -> None:
    """A token that comes while nobody waits is forgotten."""
    put = prefetch.Prefetch._put

    def put_for_somebody(self: Any, token: Any) -> None:
        if self._line:
            put(self, token)

    patch.setattr(prefetch.Prefetch, "_put", put_for_somebody)


FAR_APART = {"polling": Polling(schedule=(3.0, 45.0))}


@caught_by("stocks_agree", worlds=like(works=works(2, **STOCKED, timeout=60.0, patience=30.0), **FAR_APART))
def takes_tokens_for_new(patch: Patch) -> None:
    """A token's age counts from when it came."""
    arrived = prefetch.Prefetch._arrived

    def arrives_new(self: Any, solution: Any, made_at: float, lead_time: float) -> bool:
        return arrived(self, solution, anyio.current_time(), lead_time)

    patch.setattr(prefetch.Prefetch, "_arrived", arrives_new)


# --- what is left over ------------------------------------------------------------------------------------------------


@caught_by("nothing_held")
def keeps_places(patch: Patch) -> None:
    """What has ended still counts as in flight."""
    patch.setattr(lease.Lease, "free_place", lambda self: None)


@caught_by("liveness")
def wakes_nobody(patch: Patch) -> None:
    """A freed place goes to nobody who waits."""

    def release(self: Any) -> None:
        self._in_flight -= 1

    patch.setattr(in_flight.InFlight, "release", release)


@caught_by("nothing_held")
def leaves_connections_open(patch: Patch) -> None:
    """A connection that failed is forgotten and not closed."""

    async def close(self: Any, connection: Any) -> None:
        await anyio.lowlevel.checkpoint()

    patch.setattr(pool.Pool, "_close", close)


@caught_by("counters_agree")
def miscounts(patch: Patch) -> None:
    """The counter of solved tasks is off."""
    told = session.Session.emit

    def emit(self: Any, kind: Any, call: Any = None, **details: Any) -> None:
        self.tally.solved += kind.__name__ == "Solved"
        return told(self, kind, call, **details)

    patch.setattr(session.Session, "emit", emit)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_is_caught(name: str, monkeypatch: Patch) -> None:
    """Each fault in the client shows itself within a few worlds, to the checks that are there for it."""
    mutate, expected, worlds = MUTATIONS[name]
    backend = BACKENDS[len(name) % 2]
    mutate(monkeypatch)
    missing = set(expected)
    for seed in range(MOST):
        world = run_world(worlds(seed), backend)
        missing -= {complaint[1:].partition("]")[0] for complaint in world.complaints}
        if not missing:
            break

    assert not missing, f"{seed + 1} worlds did not show {name} to {missing}"


def test_every_check_can_fail() -> None:
    """There is a fault for every check."""
    checks = {rule.__name__ for rule in RULES} | {"liveness"}
    caught = {rule for _, rules, _ in MUTATIONS.values() for rule in rules}

    assert checks == caught
