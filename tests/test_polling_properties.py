"""Rules of polling that hold whatever happens: any latencies, faults, hints, settings and solve times."""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate, pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import observe
from ucaptcha_async.polling import PollClock, Polling, SolveTimes
from ucaptcha_async.polling.plans import Plan, Sample, cheapest, estimate, groups, make_plan, placed

KIND = "any"
CLOCK_EPSILON = 1e-6  # s, for sums of floats

latencies = st.floats(0, 100)
events = st.one_of(
    st.tuples(st.just("pending"), latencies),
    st.tuples(st.just("fault"), latencies, st.one_of(st.none(), st.floats())),
    st.tuples(st.just("hint"), latencies),
)
solve_times = st.lists(st.floats(0, 1000), max_size=40)
plain = st.builds(
    Polling,
    interval=st.floats(0.1, 100),
    jitter=st.floats(0, 1),
    poll_price=st.floats(0, 100),
    max_spacing=st.floats(0.1, 1000),
    callback_net=st.floats(0.1, 100),
    first=st.one_of(st.none(), st.floats(0, 100)),
)


@st.composite
def scheduled(draw: st.DrawFn) -> Polling:
    interval = draw(st.floats(0.1, 20))
    age, ages = draw(st.floats(0, 60)), []
    for gap in draw(st.lists(st.floats(0, 60), max_size=5)):
        ages.append(age)
        age += interval + gap
    return Polling(interval=interval, schedule=ages, jitter=draw(st.floats(0, 1)))


def taught(known: list[float]) -> SolveTimes:
    times = SolveTimes()
    for solve_time in known:
        observe(times, KIND, solve_time)
    return times


class TestClock:
    @given(
        polling=st.one_of(plain, scheduled()),
        known=solve_times,
        happens=st.lists(st.tuples(events, st.floats(0, 50)), max_size=30),
        net=st.booleans(),
        resumed=st.booleans(),
        start=st.floats(0, 1e6),
        seed=st.integers(0, 1000),
    )
    def test_interval(
        self,
        polling: Polling,
        known: list[float],
        happens: list[tuple[tuple[object, ...], float]],
        net: bool,
        resumed: bool,
        start: float,
        seed: int,
    ) -> None:
        """Two polls never start closer than the interval, and time never runs back, whatever happens between them."""
        clock = PollClock(polling, taught(known), KIND, start, Random(seed), net=net, resumed=resumed)
        begun = []
        assert clock.next_poll >= start - CLOCK_EPSILON
        for (event, latency, *rest), lateness in happens:
            now = clock.next_poll + lateness
            clock.polled(now)
            begun.append(now)
            now += float(latency)  # type: ignore[arg-type]
            if event == "fault":
                clock.faulted(now, rest[0])  # type: ignore[arg-type]
            else:
                clock.pending(now)
            if event == "hint":
                clock.hinted(now)
            assert math.isfinite(clock.next_poll)

        begun.append(clock.next_poll)
        assert all(late - early >= polling.interval - CLOCK_EPSILON for early, late in pairwise(begun))
        assert len(happens) == clock.polls

    @given(faults=st.integers(1, 100), polling=plain, seed=st.integers(0, 1000))
    def test_faults(self, faults: int, polling: Polling, seed: int) -> None:
        """Spacing grows with faults, within its bounds and jitter; the first good answer restores it."""
        clock = PollClock(polling, SolveTimes(), KIND, 0.0, Random(seed))
        bound = max(polling.interval, polling.max_spacing)
        spacings = []
        for _ in range(faults):
            now = clock.next_poll
            clock.polled(now)
            clock.faulted(now)
            spacings.append(clock.next_poll - now)
        now = clock.next_poll
        clock.polled(now)
        clock.pending(now)

        assert all(
            polling.interval - CLOCK_EPSILON <= spacing <= bound * (1 + polling.jitter) + CLOCK_EPSILON
            for spacing in spacings
        )
        assert all(late >= early / (1 + polling.jitter) - CLOCK_EPSILON for early, late in pairwise(spacings))
        assert abs(clock.next_poll - now - polling.interval) <= CLOCK_EPSILON

    @given(polling=plain, known=solve_times, seed=st.integers(0, 1000))
    def test_jitter(self, polling: Polling, known: list[float], seed: int) -> None:
        """Jitter moves the first poll by no more than its share of the interval, and never before acceptance."""
        times = taught(known)
        still = Polling(interval=polling.interval, first=polling.first, poll_price=polling.poll_price, jitter=0)
        first = PollClock(polling, times, KIND, 50.0, Random(seed)).next_poll
        planned = PollClock(still, times, KIND, 50.0, Random(seed)).next_poll

        assert abs(first - planned) <= polling.jitter * polling.interval + CLOCK_EPSILON
        assert first >= 50.0 - CLOCK_EPSILON

    @given(
        solves=st.lists(st.tuples(st.floats(0, 300), st.one_of(st.none(), st.floats())), max_size=30),
        latency=st.floats(0, 10),
        seed=st.integers(0, 1000),
    )
    def test_learns_what_it_saw(self, solves: list[tuple[float, float | None]], latency: float, seed: int) -> None:
        """Whatever a service says of its solve times, what is remembered does not contradict the polls."""
        times, rng = SolveTimes(), Random(seed)
        for solve_time, told in solves:
            clock = PollClock(Polling(), times, KIND, 0.0, rng)
            while True:
                now = clock.next_poll
                clock.polled(now)
                if now >= solve_time:
                    break
                clock.pending(now + latency)
            clock.ready(now + latency, told)

        assert len(times.history(KIND).seen) <= len(solves)
        remembered = times.quantile(KIND, 1.0)
        assert remembered is None or 0 <= remembered <= 400


class TestPlans:
    @given(
        weights=st.lists(st.floats(0, 1), min_size=1, max_size=14).filter(lambda each: sum(each) > 0.1),
        gap=st.integers(1, 6),
        price=st.floats(0, 20),
    )
    @settings(max_examples=200)
    def test_cheapest(self, weights: list[float], gap: int, price: float) -> None:
        """No schedule is cheaper than the one found: all of them are tried, for small cases."""
        total = sum(weights)
        density = [weight / total for weight in weights]
        ended = [min(1.0, total) for total in accumulate(density, initial=0.0)]
        ended[-1] = 1.0
        first, targets = cheapest(density, gap, price)
        assert first >= 1
        assert all(target >= cell + gap for cell, target in enumerate(targets))

        def share(cell: int) -> float:
            return ended[cell] if cell < len(ended) else 1.0

        def step(last: int, poll: int) -> float:
            """The cost from one poll to the next: its price, and the delay of what ends between them."""
            lost = sum((share(cell) + share(cell + 1)) / 2 - share(last) for cell in range(last, poll))
            return price * (1 - share(last)) + lost

        @cache
        def least(last: int, soonest: int) -> float:
            if last >= len(density):
                return 0.0
            return min(step(last, poll) + least(poll, poll + gap) for poll in range(soonest, len(density) + gap + 1))

        found, last, poll = 0.0, 0, first
        while last < len(density):
            found += step(last, poll)
            last, poll = poll, targets[poll] if poll < len(targets) else poll + gap
        assert found <= least(0, 1) + 1e-9 * (1 + price) * len(density)

    @given(
        known=st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(1e-3, 1)), min_size=1, max_size=60),
        interval=st.floats(0.01, 100),
        price=st.floats(0, 3600),
        age=st.floats(0, 1e5),
    )
    def test_plan(self, known: list[tuple[float, float, float]], interval: float, price: float, age: float) -> None:
        """Any plan from any memory is finite, starts after acceptance, and keeps the interval."""
        samples = [Sample(min(one, two), max(one, two), weight) for one, two, weight in known]
        plan = make_plan(samples, Plan(interval, interval), price)
        successor = make_plan([*samples, Sample(1.0, math.inf, 1.0)], plan, price)
        for each in (plan, successor):
            assert 0 < each.first < math.inf
            assert age + interval <= each.after(age) < math.inf
            assert each.late is not None
            assert 0 <= each.late < math.inf

    @given(
        known=st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), min_size=1, max_size=30),
        step=st.floats(0.1, 5),
        cells=st.integers(2, 300),
    )
    def test_estimate(self, known: list[tuple[float, float]], step: float, cells: int) -> None:
        """An estimate is a distribution: nothing below 0, all together 1; samples are placed within their bounds."""
        samples = [Sample(min(pair), max(pair), 1.0) for pair in known]
        points = placed(samples, Plan(5.0, 5.0))
        density = estimate(points, 5.0, step, cells)

        assert all(share >= 0 for share in density)
        assert abs(sum(density) - 1) < 1e-9
        for (low, high, _), (log, _) in zip(samples, points, strict=True):
            assert low - CLOCK_EPSILON <= math.exp(log) <= max(high, 1e-3) + CLOCK_EPSILON

    @given(known=st.lists(st.floats(-5, 8), min_size=1, max_size=60))
    def test_groups(self, known: list[float]) -> None:
        """Groups divide the points among them, in order."""
        points = sorted((log, 1.0) for log in known)

        assert points == [point for group in groups(points) for point in group]

    @given(known=solve_times, shares=st.lists(st.floats(0, 1), min_size=2, max_size=5))
    def test_quantiles(self, known: list[float], shares: list[float]) -> None:
        """Quantiles rise with their share and lie among what was seen."""
        times = taught(known)
        found = [times.quantile(KIND, share) for share in sorted(shares)]
        if known:
            values = [value for value in found if value is not None]
            assert values == sorted(values)
            assert set(values) <= set(known)
        else:
            assert set(found) == {None}
