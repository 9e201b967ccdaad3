"""Worlds by name: what once went wrong. A seed means another world when the drawing changes; these stay."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs
import pytest

from ucaptcha_async.testing import DIALECTS, Amend, Delay, Error, RateLimit

from .backends import BACKENDS, Backend
from .fair import plan, works
from .world import run_world

SEEDS = range(4)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable()
    yield
    logging.disable(before)


REGRESSIONS: dict[str, tuple[dict[str, Any], str]] = {
    # Requests that had leave to depart queued for a lane, and then left at once.
    "few lanes before a slow service": (
        {"works": works(30), "connections": 1, "limit": 20, "faults": ((Delay(12), 0.1),)},
        "service_Delay",
    ),
    "slow connects": ({"works": works(30), "limit": 5, "window": 2.0, "rates": {"slow_connect": 0.3}}, "slow_connect"),
    "a pause while requests wait for a lane": (
        {"works": works(30), "connections": 2, "faults": ((RateLimit(headers=False, retry_after=7), 0.1),)},
        "event_Throttled",
    ),
    # Each waiter of one task polled it, and counted its cost.
    "many users of the same work": (
        {"works": works(6, how="submit", keyed=True, calls=3), "journal": True},
        "claim_held_of_another",
    ),
    # A refusal that had been read was called uncertain, if the user gave up while its connection was closed.
    "giving up while connections are closed": (
        {
            "works": tuple(attrs.evolve(work, cancel_step=step % 12 + 1) for step, work in enumerate(works(48))),
            "cancel_grace": 0.0,
            "rates": {"closing_answer": 0.8},
            "faults": ((Error("ERROR_NO_SLOT_AVAILABLE"), 0.5),),
        },
        "cancelled_as_it_closes",
    ),
    # A poll after a wait that was given up during a poll came at once.
    "short waits": ({"works": works(10, how="submit", patience=1.5)}, "waited_again"),
    # A refused poll gave the money back, freed the key, and said "not charged".
    "an account that is refused to polls": (
        {
            "works": works(10, keyed=True, calls=2),
            "journal": True,
            "faults": ((Error("ERROR_KEY_DOES_NOT_EXIST"), 0.2),),
        },
        "ended_error_AuthenticationError",
    ),
    "a code that nobody knows": ({"faults": ((Error("SOMETHING_NEW", status=200), 0.3),)}, "ended_error_ServiceError"),
    # An error after an attempt of unknown fate said "not charged", and nobody was told of the attempt.
    "resubmits": (
        {
            "works": works(10, attempts=2),
            "on_uncertain": "resubmit",
            "failure_rate": 0.5,
            "rates": {"lost_answer": 0.4},
        },
        "event_Uncertain",
    ),
    # A submit that was refused counted as of unknown fate when its solve was cancelled.
    "given up after a refusal": (
        {"works": works(20, cancel_after=0.6), "faults": ((Error("ERROR_NO_SLOT_AVAILABLE"), 0.9),)},
        "ended_cancelled",
    ),
    "given up before a refusal": (
        {"works": works(20, cancel_step=4), "faults": ((Error("ERROR_NO_SLOT_AVAILABLE"), 0.9),)},
        "ended_cancelled",
    ),
    # Outcomes on their way to a reader who had left were lost.
    "a stream that is left": ({"works": works(20, how="many"), "leave_after": 3, "in_flight": 5}, "stream_left"),
    "a stream that is left when many end": (
        {"works": works(20, how="many", timeout=9.0), "leave_after": 2},
        "ended_dropped",
    ),
    # Waiting for room in the budget began the timeout anew, and forgot what had been sent.
    "a budget that is used up": (
        {
            "works": works(20, how="many", timeout=15.0),
            "budget": Decimal("0.03"),
            "on_uncertain": "resubmit",
            "rates": {"lost_answer": 0.3},
        },
        "ended_error_BudgetExceededError",
    ),
    # A solution that came at once, without an id, while its solve was being cancelled.
    "answers without an id": (
        {
            "works": works(20, kind="ImageToTextTask", cancel_step=4),
            "faults": ((Amend(without=("taskId",)), 0.5),),
        },
        "service_Amend",
    ),
    # A request in the pool of an injected client was sent after its solve had been cancelled.
    "given up in somebody else's pool": (
        {
            "works": works(20, cancel_after=0.4),
            "library": "httpx2",
            "injected": True,
            "connections": 1,
            "delays": (0.1, 0.2),
        },
        "world_httpx2_injected",
    ),
    # Another task's failure, told again on a kept connection, ended the wait.
    "another task's failure": (
        {
            "works": works(30),
            "connections": 1,
            "failure_rate": 0.7,
            "rates": {"extra_crossing": 0.4},
            "dialect": attrs.evolve(DIALECTS["ucaptcha"], extras=("taskId",)),
        },
        "extra_crossing_arrived",
    ),
    # A connection that the service closes after each answer.
    "closing answers": ({"rates": {"closing_answer": 1.0}}, "closing_answer"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(REGRESSIONS))
def test_regression(name: str, backend: Backend) -> None:
    """What went wrong once does not go wrong again; and the worlds still have in them what it takes."""
    changes, needs = REGRESSIONS[name]
    worlds = [run_world(plan(seed, **changes), backend) for seed in SEEDS]

    assert [] == [complaint for world in worlds for complaint in world.complaints]
    assert sum(world.fired[needs] for world in worlds) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_answers_cost_nothing(backend: Backend) -> None:
    """Where the service closes the connection after each answer, no request fails for it."""
    for seed in SEEDS:
        world = run_world(plan(seed, rates={"closing_answer": 1.0}), backend)

        assert 0 == world.fired["event_Retried"]
