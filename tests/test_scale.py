"""What binds a fleet: the formulae, the simulation in virtual time that confirms them, and the page that shows both."""

from __future__ import annotations

import inspect
from random import Random

import attrs
import pytest

from benchmarks import scale
from benchmarks.capacity import (
    FULL,
    LIMIT,
    LINGER,
    PLACES_POLL,
    WINDOW,
    Costs,
    Fleet,
    Work,
    binding,
    bounds,
    calls,
    needs,
    rate,
    visits,
)
from benchmarks.virtual_fleet import Batches, Found, Scenario, simulate
from ucaptcha_async.pacing.gcra import GCRA

WORK = Work(solve_time=12.0, delay=2.9, polls=2.0, latency=0.1, price=0.001)
COSTS = Costs(
    cpu_ms=1.0,
    solve_kb=10.0,
    process_mb=50.0,
    limiter_us=20.0,
    places_us=(20.0, 1.0),
    journal_us=(40.0, 20.0),
    budget_us=(40.0, 10.0),
)

# --- formulae ---------------------------------------------------------------------------------------------------------


def test_a_solve() -> None:
    """Requests are the submit and the polls; a place is held until the solution is in hand."""
    assert WORK.requests == 3
    assert WORK.held == pytest.approx(15)


def test_rates_are_those_of_the_limiters() -> None:
    """What an address carries is what the limiters' own arithmetic allows."""
    limiter = pytest.importorskip("ucaptcha_async.redis.limiter")

    assert rate(shared=False) == pytest.approx(1 / GCRA(LIMIT, WINDOW).interval)
    assert rate(shared=True) == pytest.approx(1 / limiter.SharedPace(LIMIT, WINDOW).interval)
    assert 0.98 * LIMIT / WINDOW < rate(shared=True) < rate(shared=False) < LIMIT / WINDOW


def test_constants_are_those_of_redis() -> None:
    """The batches' pause, and the pace of visits to the places, are the library's own."""
    redis = pytest.importorskip("ucaptcha_async.redis")
    from ucaptcha_async.redis import in_flight

    for shared in (redis.RedisJournal, redis.RedisBudget):
        assert inspect.signature(shared).parameters["linger"].default == LINGER
    assert PLACES_POLL == pytest.approx((in_flight._POLL, in_flight._POLL / 50))


@pytest.mark.parametrize("orders", [0.1, 1.0, 6.0, 30.0, 300.0])
def test_visits(orders: float) -> None:
    """The formula for visits is what the rule of batches makes of orders at random."""
    rng, batches, now = Random(1), Batches(), 0.0
    for _ in range(20_000):
        now += rng.expovariate(orders)
        batches.order(now)

    assert batches.visits / now == pytest.approx(visits(orders), rel=0.03)
    assert visits(orders) <= min(orders, 1 / LINGER)


def test_nothing_to_order() -> None:
    """An idle process does not visit."""
    assert visits(0.0) == 0.0


def test_bounds() -> None:
    """Each bound by hand, for a fleet of two processes on one machine."""
    fleet = Fleet(name="", processes=2, places=300, memory_gb=1.0)
    allowed = bounds(fleet, WORK, COSTS)

    assert allowed["address"] == pytest.approx(rate(shared=True) / 3)
    assert allowed["in flight"] == pytest.approx(300 / 15)
    assert allowed["CPU"] == pytest.approx(FULL * 2 / 0.001)
    assert allowed["memory"] == pytest.approx((1e6 - 2 * 50e3) / 10 / 15)
    assert allowed["Redis, limiters"] == pytest.approx(FULL / (3 * 20e-6))
    assert calls(allowed["Redis, account"], 2, WORK, COSTS).account_cores == pytest.approx(FULL)
    assert binding(allowed) == ("in flight", pytest.approx(20))


def test_one_process_needs_no_redis() -> None:
    """Alone, nothing is shared, and the limiter is the faster one."""
    allowed = bounds(Fleet(name=""), WORK, COSTS)

    assert allowed["address"] == pytest.approx(rate(shared=False) / 3)
    assert not [name for name in allowed if "Redis" in name]


def test_what_is_not_shared_needs_no_redis() -> None:
    """Processes with an address each need no common limiter, and with a share each nothing common at all."""
    alone = Fleet(name="", machines=4, addresses=4)

    assert "Redis, limiters" not in bounds(alone, WORK, COSTS)
    assert "Redis, account" in bounds(alone, WORK, COSTS)
    assert "Redis, account" not in bounds(attrs.evolve(alone, common=False), WORK, COSTS)


def test_needs() -> None:
    """What is needed for so many in flight is enough for it, and one address less is not."""
    need = needs(100_000, WORK, COSTS)
    enough = Fleet(name="", machines=100, addresses=need.addresses, places=100_000)
    less = attrs.evolve(enough, addresses=need.addresses - 1)

    assert need.solves * WORK.held == pytest.approx(100_000)
    assert bounds(enough, WORK, COSTS)["address"] >= need.solves > bounds(less, WORK, COSTS)["address"]
    assert need.usd_an_hour == pytest.approx(3600 * need.requests / 3 * 0.001)
    assert need.memory_gb == pytest.approx(1.0)


def test_steps_tell_a_story() -> None:
    """From step to step something else binds: one thing never is the reason for all."""
    results = scale.load()
    work, costs = Work(**results["work"]), scale.costs_of(results)
    names = {binding(bounds(fleet, work, costs))[0] for fleet in scale.STEPS}

    assert names >= {"address", "in flight", "Redis, limiters", "Redis, account"}
    assert scale.STEPS[0].all_processes == 1
    assert max(fleet.machines for fleet in scale.STEPS) == 1_000


# --- simulation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work() -> Work:
    """A solve as the polling's own arithmetic expects it, which was computed when the costs were measured."""
    return Work(**scale.load()["work"])


def kept_promises(scenario: Scenario, found: Found) -> None:
    """Never over a limit, never too often, and all that is paid is delivered."""
    assert found.most_in_window <= scenario.limit
    assert found.most_in_flight <= scenario.places
    assert found.closest_polls > 5 - 1e-6
    assert found.undelivered == 0
    assert found.usd == pytest.approx(found.ended * 0.00145)


def test_places_bind(work: Work) -> None:
    """2,000 in flight over 10 processes on one address: solves and requests are what the formulae say."""
    scenario = Scenario(processes=10, addresses=1, places=2_000)
    found, said = simulate(scenario), scale.predicted(scenario, work)

    kept_promises(scenario, found)
    assert found.in_flight > 0.999 * scenario.places
    assert found.solves == pytest.approx(said["solves"], rel=0.05)
    assert found.requests == pytest.approx(said["requests"], rel=0.05)
    # Ten processes have learned ten plans, which cost the same, but differ in how they share it out.
    assert found.polls == pytest.approx(work.polls, rel=0.08)
    assert found.delay == pytest.approx(work.delay, rel=0.08)
    assert found.journal_calls == pytest.approx(said["journal_calls"], rel=0.05)
    assert found.budget_calls == pytest.approx(said["budget_calls"], rel=0.05)


def test_an_address_binds(work: Work) -> None:
    """Where the address allows less, it is used whole, and the formula is on the safe side: late polls are fewer."""
    scenario = Scenario(processes=10, addresses=1, places=1_000, limit=1_500)
    found, said = simulate(scenario), scale.predicted(scenario, work)

    kept_promises(scenario, found)
    assert found.requests == pytest.approx(said["requests"], rel=0.01)
    assert found.polls < work.polls
    assert said["solves"] < found.solves
    assert found.solves == pytest.approx(found.requests / (1 + found.polls), rel=0.05)


def test_what_a_solve_is_expected_to_be(work: Work) -> None:
    """What is stored is what the polling's arithmetic gives now, within what few memories can tell."""
    scenario = next(iter(scale.SCENARIOS.values()))
    now = scale.expected(scenario.median, scenario.sigma, memories=8)

    assert now.solve_time == pytest.approx(work.solve_time)
    assert now.delay + 0.65 * now.polls == pytest.approx(work.delay + 0.65 * work.polls, rel=0.05)


def test_seeds() -> None:
    """The same seed gives the same world."""
    scenario = Scenario(processes=3, addresses=2, places=60, warm=15.0, measured=10.0)
    first, again, other = (
        attrs.evolve(simulate(each), cpu_seconds=0, memory_mb=0)
        for each in (scenario, scenario, attrs.evolve(scenario, seed=2))
    )

    assert first == again != other


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page() -> None:
    """Every table of the page is what the formulae, and the last simulation, give."""
    page = scale.PAGE.read_text()

    assert scale.written(page, scale.load()) == page


@pytest.mark.parametrize("name", scale.SCENARIOS)
def test_what_was_simulated(name: str) -> None:
    """What the page shows of the large simulation confirms the formulae, and was within its bounds."""
    results = scale.load()
    one = results["simulation"][name]
    scenario, found = Scenario(**one["scenario"]), Found(**one["found"])
    said = scale.predicted(scenario, Work(**results["work"]))

    assert scenario == scale.SCENARIOS[name]
    kept_promises(scenario, found)
    assert found.in_flight > 0.999 * scenario.places
    assert found.requests == pytest.approx(said["requests"], rel=0.03)
    assert found.solves >= 0.97 * said["solves"]
    assert found.cpu_seconds < 300
    assert found.memory_mb < 2_048


def test_largest_simulation() -> None:
    """It is one of 100,000 in flight over 100 processes, where the places bind."""
    name = next(iter(scale.SCENARIOS))
    scenario = scale.SCENARIOS[name]
    results = scale.load()
    found, work = Found(**results["simulation"][name]["found"]), Work(**results["work"])

    assert (scenario.places, scenario.processes) == (100_000, 100)
    assert found.most_in_flight > 0.99 * scenario.places
    assert found.solves == pytest.approx(scenario.places / work.held, rel=0.03)
    assert found.busiest_address < 1.06 * found.requests / scenario.addresses < rate(shared=False)


def test_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says what a number of tasks in flight takes."""
    scale.plan(100_000)

    assert '"addresses": ' in capsys.readouterr().out
