"""The checks can fail: each of these faults in the client is caught by the check that is there for it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any

import anyio.lowlevel
import pytest
from ucaptcha_async.transport.old_exchange import Sending

from ucaptcha_async import budget
from ucaptcha_async.errors import UCaptchaError
from ucaptcha_async.journal import ledger
from ucaptcha_async.pacing import breaker
from ucaptcha_async.pacing import gcra as clock
from ucaptcha_async.pacing import limiter as limits
from ucaptcha_async.polling import clock as polling
from ucaptcha_async.solving import job as solving
from ucaptcha_async.solving import recovery
from ucaptcha_async.solving import session as engine
from ucaptcha_async.solving import submit as submitting
from ucaptcha_async.transport import lanes

from .backends import BACKENDS
from .checks import RULES
from .world import run_world

MOST = 120
"""Worlds in which a fault must show itself."""

Patch = pytest.MonkeyPatch
MUTATIONS: dict[str, tuple[Callable[[Patch], None], set[str]]] = {}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable()
    yield
    logging.disable(before)


def caught_by(*rules: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Declare a fault, and the checks that must all catch it."""

    def add(mutate: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTATIONS[mutate.__name__] = (mutate, set(rules))
        return mutate

    return add


@caught_by("nothing_sent_again", "nothing_twice")
def resubmits_blindly(patch: Patch) -> None:
    """A submit of unknown fate is sent again."""
    judge = submitting.fate_of

    def fate_of(error: Any, sending: Any) -> submitting.Fate:
        fate = judge(error, sending)
        return submitting.Fate.REFUSED_FOR_NOW if fate is submitting.Fate.UNKNOWN else fate

    patch.setattr(submitting, "fate_of", fate_of)


@caught_by("polls_are_spaced")
def polls_every_second(patch: Patch) -> None:
    """Tasks are asked for every second."""
    pending = polling.PollClock.pending

    def soon(self: Any, received_at: float) -> None:
        pending(self, received_at)
        self.next_poll = received_at + 1

    patch.setattr(polling.PollClock, "pending", soon)


@caught_by("windows_hold")
def ignores_the_limit(patch: Patch) -> None:
    """Requests leave as they come."""

    async def acquire(self: Any) -> None:
        await anyio.lowlevel.checkpoint()

    patch.setattr(limits.RateLimiter, "acquire", acquire)
    patch.setattr(limits.RateLimiter, "observe", lambda self, *arguments, **details: None)
    patch.setattr(limits.RateLimiter, "lost", lambda self: None)


@caught_by("windows_hold")
def asks_for_leave_too_early(patch: Patch) -> None:
    """Leave to depart is asked for before there is a connection."""

    async def departing(self: Any, url: Any, max_idle: float, leave: Any) -> Any:
        await leave()
        return await self._kept(max_idle) or await self._new(url)

    patch.setattr(lanes.Lanes, "_departing", departing)


@caught_by("pauses_hold")
def ignores_pauses(patch: Patch) -> None:
    """A 429 slows nobody down."""
    patch.setattr(clock.Pace, "pause", lambda self, until: None)


@caught_by("nothing_lost", "money_is_explained")
def loses_ids(patch: Patch) -> None:
    """Errors do not carry the id of the task that was paid for."""
    end = solving._out_of_time

    def without_id(walk: Any, timeout: float) -> Any:
        error = end(walk, timeout)
        error.task_id = None
        walk.attempts.clear()
        return error

    patch.setattr(solving, "_out_of_time", without_id)


@caught_by("nothing_lost")
def abandons_in_silence(patch: Patch) -> None:
    """Nobody learns the ids of tasks whose solves were cancelled."""
    patch.setattr(engine.Engine, "abandoned", property(lambda self: [], lambda self, value: None), raising=False)


@caught_by("nothing_lost")
def hides_uncertainty(patch: Patch) -> None:
    """Nobody is told of a submit whose fate is unknown."""

    async def uncertain(self: Any) -> None:
        self.keep()
        await self._end(lambda journal, row: journal.released(row))

    patch.setattr(engine.Ticket, "uncertain", uncertain)


@caught_by("nothing_lost")
def writes_no_intent(patch: Patch) -> None:
    """Submits are sent before anything is in the journal."""

    async def begin(self: Any) -> None:
        return None

    patch.setattr(engine.Ticket, "begin", begin)


@caught_by("nothing_twice")
def ignores_keys(patch: Patch) -> None:
    """The same work is submitted as often as it is asked for."""
    patch.setattr(ledger.Begin, "holds", property(lambda self: None))


@caught_by("no_false_alarms")
def raises_false_alarms(patch: Patch) -> None:
    """A submit that was refused is called uncertain."""
    patch.setattr(submitting, "Sending", _kept_sending(Sending))


def _kept_sending(kind: Any) -> Any:
    class Kept(kind):  # type: ignore[misc]
        @property
        def sent(self) -> bool:
            return True

    return Kept


@caught_by("money_agrees")
def counts_what_failed(patch: Patch) -> None:
    """A refunded task counts as spent."""
    failed = engine.Ticket.failed

    async def counted(self: Any, task_id: Any, error_code: Any) -> None:
        self.engine.tally.spent["x"] = self.engine.tally.spent.get("x", Decimal(0)) + Decimal("0.003")
        await failed(self, task_id, error_code)

    patch.setattr(engine.Ticket, "failed", counted)


@caught_by("money_agrees")
def counts_twice(patch: Patch) -> None:
    """Each who waits for a task counts its cost."""
    end = engine.Ticket._end

    async def first(self: Any, write: Any) -> None:
        await end(self, write)

    patch.setattr(engine.Ticket, "_end", first)


@caught_by("solved_is_solved")
def mixes_answers_up(patch: Patch) -> None:
    """Who waits gets the answer of whoever asked first, whatever for."""
    watched = engine.Engine.watched

    async def mixed(self: Any, task_id: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        return await watched(self, "any", ask)

    patch.setattr(engine.Engine, "watched", mixed)


@caught_by("claims_hold")
def denies_charges(patch: Patch) -> None:
    """An error after an attempt of unknown fate says that nothing was charged."""
    within = solving.within

    async def denying(*arguments: Any) -> Any:
        try:
            return await within(*arguments)
        except UCaptchaError as error:
            error.charged = False
            raise

    patch.setattr(solving, "within", denying)
    patch.setattr("ucaptcha_async.client.within", denying)


@caught_by("budgets_hold")
def overspends(patch: Patch) -> None:
    """The budget refuses nothing."""
    patch.setattr(budget.Budget, "_check", lambda self, *arguments: None)


@caught_by("everything_ends")
def forgets_deadlines(patch: Patch) -> None:
    """Solves go on after their time."""
    within = solving.within

    async def endless(engine_: Any, walk: Any, timeout: float, call: Any) -> Any:
        return await within(engine_, walk, timeout * 3 + 20, call)

    patch.setattr(solving, "within", endless)
    patch.setattr("ucaptcha_async.client.within", endless)


@caught_by("giving_up_is_quick")
def clings(patch: Patch) -> None:
    """A cancelled submit waits for its answer as long as it takes."""
    shelter = submitting.sheltered

    async def sheltered(call: Any, sending: Any, grace: float) -> None:
        await shelter(call, sending, 60.0)

    patch.setattr(submitting, "sheltered", sheltered)


@caught_by("faults_end_no_wait")
def gives_up_at_a_lost_poll(patch: Patch) -> None:
    """The first failed poll ends a solve."""
    patch.setattr(solving, "is_fault", lambda error: False)


@caught_by("nothing_held")
def keeps_places(patch: Patch) -> None:
    """What has ended still counts as in flight."""
    patch.setattr(engine.Ticket, "release_place", lambda self: None)


@caught_by("liveness")
def wakes_nobody(patch: Patch) -> None:
    """A freed place goes to nobody who waits."""

    def release(self: Any) -> None:
        self._in_flight -= 1

    patch.setattr(limits.InFlight, "release", release)


@caught_by("nothing_held")
def leaves_connections_open(patch: Patch) -> None:
    """A lane that failed is forgotten and not closed."""

    async def close(self: Any, lane: Any) -> None:
        await anyio.lowlevel.checkpoint()

    patch.setattr(lanes.Lanes, "_close", close)


@caught_by("what_was_left_is_taken_up")
def recovers_nothing(patch: Patch) -> None:
    """What a dead process left stays where it is."""

    async def nothing(journal: Any, account: str) -> Any:
        nobody: tuple[Any, ...] = ()
        for entry in nobody:
            yield entry

    patch.setattr(recovery, "_open", nothing)


@caught_by("fresh_work_is_done")
def stays_broken(patch: Patch) -> None:
    """An account that was refused once is refused for ever."""
    patch.setattr(breaker.Breaker, "reset", lambda self: None)


@caught_by("counters_agree")
def miscounts(patch: Patch) -> None:
    """The counter of solved tasks is off."""
    told = engine.Engine.emit

    def emit(self: Any, kind: Any, walk: Any, **details: Any) -> None:
        self.tally.solved += kind.__name__ == "Solved"
        told(self, kind, walk, **details)

    patch.setattr(engine.Engine, "emit", emit)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_is_caught(name: str, monkeypatch: Patch) -> None:
    """Each fault in the client shows itself within a few worlds, to the checks that are there for it."""
    mutate, expected = MUTATIONS[name]
    backend = BACKENDS[len(name) % 2]
    mutate(monkeypatch)
    missing = set(expected)
    for seed in range(MOST):
        world = run_world(seed, backend)
        missing -= {complaint[1:].partition("]")[0] for complaint in world.complaints}
        if not missing:
            break

    assert not missing, f"{seed + 1} worlds did not show {name} to {missing}"


def test_every_check_can_fail() -> None:
    """There is a fault for every check."""
    checks = {rule.__name__ for rule in RULES} | {"liveness"}
    caught = {rule for _, rules in MUTATIONS.values() for rule in rules}

    assert checks == caught
