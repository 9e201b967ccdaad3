"""The arithmetic of a stock that follows demand: pure, against sums written apart."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucaptcha_async.solving.stock import MEMORY, SHORTEST, WASTE, Demand, RecentMean, level, quantile

RATES = st.floats(0.001, 20)
TIMES = st.floats(0.5, 120)
SHARES = st.floats(0.01, 0.999)
KNOWN = [(0, 0.95, 0), (13.6, 0.95, 20), (68, 0.95, 82), (1e5, 0.5, 1e5)]


def cumulative(mean: float, k: int) -> float:
    """P(N <= k) for a Poisson N, term by term."""
    if mean == 0:
        return 1.0
    return math.fsum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(k + 1))


@given(st.floats(0, 800), SHARES)
def test_quantile_is_the_least_that_suffices(mean: float, share: float) -> None:
    """P(N <= k) reaches the share, and P(N <= k - 1) does not, but for rounding."""
    k = quantile(mean, share)

    assert cumulative(mean, k) >= share - 1e-9
    assert k == 0 or cumulative(mean, k - 1) < share + 1e-9


@pytest.mark.parametrize(("mean", "share", "expected"), KNOWN)
def test_quantile_of_known_cases(mean: float, share: float, expected: float) -> None:
    """Values from a table of the distribution; a large mean does not underflow."""
    assert expected == quantile(mean, share)


@given(RATES, TIMES, TIMES, SHARES, st.integers(1, 100))
def test_level_serves_what_was_asked_or_meets_a_bound(
    rate: float, lead_time: float, usable: float, share: float, ready: int
) -> None:
    """P(fewer gets than the level within a lead time) reaches the share, unless tokens would age or exceed `ready`."""
    found = level(rate, lead_time, usable, share, ready)
    served = 0.0 if found == 0 else cumulative(rate * lead_time, found - 1)
    one_more_ages = cumulative(rate * (lead_time + usable), found)

    assert served >= share - 1e-9 or one_more_ages > WASTE - 1e-9 or found >= ready + rate * lead_time
    assert found <= ready + math.ceil(rate * lead_time)


@given(RATES, TIMES, TIMES, SHARES)
def test_level_lets_little_age(rate: float, lead_time: float, usable: float, share: float) -> None:
    """The level-th get from now on comes before the token ages out, but for the share that may be wasted."""
    found = level(rate, lead_time, usable, share, 10**6)

    assert found == 0 or cumulative(rate * (lead_time + usable), found - 1) <= WASTE + 1e-9


@given(RATES, TIMES, SHARES, SHARES)
def test_level_rises_with_the_service_level(rate: float, lead_time: float, one: float, other: float) -> None:
    """Who asks for more gets no less."""
    low, high = sorted([one, other])

    assert level(rate, lead_time, 80, low, 50) <= level(rate, lead_time, 80, high, 50)


def test_no_demand_no_stock() -> None:
    """What nobody asks for is not bought."""
    assert 0 == level(0.0, 13.6, 80, 0.95, 10)


def arrivals(rng: Random, rate: float, begin: float, end: float) -> list[float]:
    times: list[float] = []
    now = begin
    while (now := now + rng.expovariate(rate)) < end:
        times.append(now)
    return times


def observed(times: list[float]) -> Demand:
    demand = Demand(0.0)
    for time in times:
        demand.add(time)
    return demand


@given(st.lists(st.floats(0, 1_000), max_size=60), st.floats(0, 500), st.floats(0.001, 60))
def test_rate_is_bounded_by_the_shortest_span(times: list[float], later: float, shortest: float) -> None:
    """Never negative, and never more than all calls within the shortest span: a burst is no endless rate."""
    demand = observed(sorted(times))
    rate = demand.rate(max(times, default=0.0) + later, shortest)

    assert 0 <= rate <= len(times) / max(shortest, SHORTEST)
    assert demand.last == (max(times) if times else None)


@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0])
def test_steady_demand_is_known_well(rate: float) -> None:
    """After ten minutes the mean error over a hundred runs is near the least that so many calls allow."""
    errors = []
    for seed in range(100):
        demand = observed(arrivals(Random(seed), rate, 0, 600))
        errors.append(demand.rate(600, 13.6) / rate - 1)
    deviation = math.sqrt(sum(error**2 for error in errors) / len(errors))

    assert deviation < 1.5 / math.sqrt(600 * rate)
    assert abs(sum(errors) / len(errors)) < 0.05


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.1), (0.1, 1.0), (5.0, 0.5)])
def test_a_step_is_followed(before: float, after: float) -> None:
    """Within two minutes of a step the estimate is nearer to the new rate than to the old, and then near to it."""
    for seed in range(20):
        rng = Random(seed)
        demand = observed(arrivals(rng, before, 0, 600) + arrivals(rng, after, 600, 900))
        early = observed([time for time in demand._times if time < 720]).rate(720, 13.6)

        assert abs(math.log(early / after)) < abs(math.log(early / before))
        assert demand.rate(900, 13.6) == pytest.approx(after, rel=0.75)


def test_silence_is_heard() -> None:
    """The estimate falls while nothing comes."""
    demand = observed([float(second) for second in range(600)])

    assert demand.rate(600, 13.6) == pytest.approx(1, rel=0.1)
    assert demand.rate(660, 13.6) < 0.2
    assert 0 == demand.rate(10_000, 13.6)


def test_memory_is_bounded() -> None:
    """Of endless demand only the last calls are kept, and the estimate stays right."""
    demand = Demand(0.0)
    for number in range(5 * MEMORY):
        demand.add(number / 100)

    assert len(demand._times) < 2 * MEMORY
    assert demand.rate(5 * MEMORY / 100, 13.6) == pytest.approx(100, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 300)), min_size=1, max_size=50))
def test_a_recent_mean_is_a_mean(observations: list[tuple[float, float]]) -> None:
    """It lies within what was believed and observed."""
    lead_time, now = RecentMean(15.0), 0.0
    for gap, seconds in observations:
        now += gap
        lead_time.observe(now, seconds)

    known = [15.0, *(seconds for _, seconds in observations)]
    assert min(known) - 1e-9 <= lead_time.mean <= max(known) + 1e-9


def test_a_recent_mean_follows() -> None:
    """What came long ago counts less."""
    lead_time = RecentMean(15.0)
    for second in range(1_200):
        lead_time.observe(second, 10.0 if second < 600 else 40.0)

    assert lead_time.mean == pytest.approx(36, abs=1)
