"""What must hold of the limits whatever happens: arbitrary arrivals, cancellations, stalls, pauses and headers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from email.utils import formatdate

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ucaptcha_async.pacing import InFlight, RateLimiter
from ucaptcha_async.pacing.gcra import GCRA
from ucaptcha_async.pacing.quota import Quota, Reading

from .test_limits import UNIX, most_in_a_window, stall

pytestmark = pytest.mark.virtual_time

thorough = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
limits = st.one_of(st.integers(1, 8), st.sampled_from([50, 99, 100, 101, 199, 200, 201, 350]))
windows = st.sampled_from([0.01, 0.3, 1.0, 10.0, 60.0])
clocks = st.sampled_from([0.0, 1.0, 86_400.3, 1e6 + 1 / 3, 1e9 + 1 / 7])
# In units of what is dangerous: intervals and windows, a hair more and a hair less than a whole number of them.
hairs = st.sampled_from([0.0, 1e-9, -1e-9, 1e-6, -1e-6])
gaps = st.one_of(
    st.just(0.0),
    st.tuples(st.sampled_from(["interval", "window"]), st.integers(0, 3), hairs),
    st.tuples(st.just("window"), st.floats(0, 1.1), hairs),
)


def length(gap: float | tuple[str, float, float], pace: GCRA) -> float:
    """A drawn gap in seconds."""
    if isinstance(gap, float):
        return gap
    unit, times, hair = gap
    return max(0.0, getattr(pace, unit) * times + hair)


@given(
    limit=limits,
    window=windows,
    start=clocks,
    crowds=st.lists(st.tuples(gaps, st.integers(1, 40), st.booleans()), min_size=1, max_size=30),
    lateness=st.lists(st.floats(0, 0.05), min_size=1, max_size=5),
)
@settings(thorough, max_examples=300)
def test_any_arrivals_keep_the_limit_and_waste_nothing(
    limit: int, window: float, start: float, crowds: list[tuple[float, int, bool]], lateness: list[float]
) -> None:
    """Crowds at the worst moments, an event loop that wakes early or late: the limit holds, and nothing is wasted."""
    pace = GCRA(limit, window)
    now, times, late = start, [], itertools.cycle(lateness)
    for gap, crowd, punctual in crowds:
        now += length(gap, pace)
        for _ in range(crowd):
            arrived = now
            while (due := pace.ready_at(now)) > now:
                now = due - 1e-9 if punctual else due + next(late) * window
            if punctual and times:
                must_wait = max(times[-1] + pace.interval, times[-limit] + window * 1.001 if len(times) >= limit else 0)
                assert now <= max(arrived, must_wait) + 1e-6
            assert pace.ready_at(now) == now
            pace.depart(now)
            times.append(now)

    assert most_in_a_window(times, window) <= limit
    assert pace.departures.total == len(times)


@given(limit=st.integers(1, 400), window=windows, start=clocks, pauses=st.lists(st.floats(0, 1.5), max_size=4))
@thorough
def test_pauses_hold_and_release(limit: int, window: float, start: float, pauses: list[float]) -> None:
    """Nothing leaves in a pause, one leaves at its end, and the rest follow without a burst."""
    pace = GCRA(limit, window)
    now = start
    for pause in pauses:
        pace.pause(until := now + pause * window)
        now = max(now, pace.ready_at(now))
        assert now >= until - 1e-6
        pace.depart(now)
        assert pause == 0 or pace.ready_at(now) >= now + pace.interval - 1e-6
        now = max(now, pace.ready_at(now))


@attrs.frozen
class Visitor:
    """One who asks the limiter, after a while, with some patience."""

    gap: float
    patience: float


visitors = st.lists(
    st.builds(
        Visitor,
        gap=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.1, 0.333, 1.0, 2.5]),
        patience=st.sampled_from([math.inf, math.inf, 0.0, 0.05, 0.1, 1.0]),
    ),
    min_size=1,
    max_size=60,
)


@given(
    limit=st.sampled_from([1, 2, 3, 10, 40, 250]),
    visits=visitors,
    pauses=st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.1, 1)), max_size=3),
    stalls=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.5)), max_size=3),
)
@thorough
async def test_any_visitors_are_served_in_order(
    limit: int, visits: list[Visitor], pauses: list[tuple[float, float]], stalls: list[tuple[float, float]]
) -> None:
    """Whoever waits long enough goes, in the order of arrival, within the limit, not in a pause; none is left."""
    limiter = RateLimiter(limit, window=1)
    went: list[tuple[int, float]] = []
    paused: list[tuple[float, float]] = []

    async def visit(number: int, patience: float) -> None:
        with anyio.move_on_after(patience):
            await limiter.acquire()
            went.append((number, anyio.current_time()))
            limiter.lost()

    async def pause() -> None:
        for gap, length in pauses:
            await anyio.sleep(gap)
            now = anyio.current_time()
            limiter.observe(429, {"retry-after": str(length)}, sent_at=now, received_at=now)
            if not paused or now >= paused[-1][1]:
                paused.append((now, now + length))

    async def hold_up() -> None:
        for gap, length in stalls:
            await anyio.sleep(gap)
            stall(length)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pause)
        tasks.start_soon(hold_up)
        for number, visitor in enumerate(visits):
            await anyio.sleep(visitor.gap)
            tasks.start_soon(visit, number, visitor.patience)
            await checkpoint()
    numbers, times = [number for number, _ in went], [time for _, time in went]
    statistics = limiter.statistics()
    event(f"gave up: {len(visits) - len(went) > 0}")

    assert {number for number, visitor in enumerate(visits) if visitor.patience == math.inf} <= set(numbers)
    assert stalls or numbers == sorted(numbers)
    assert most_in_a_window(times, 1.0) <= limit
    assert not any(begin + 1e-6 < time < end - 1e-6 for time in times for begin, end in paused)
    assert (statistics.departed, statistics.waiting) == (len(went), 0)
    assert statistics.in_transit == -statistics.throttled == -len(pauses)


@given(limit=st.sampled_from([1, 2, 5, 100]), visits=visitors)
@thorough
async def test_no_time_is_lost_by_those_who_give_up(limit: int, visits: list[Visitor]) -> None:
    """While somebody waits, no departure comes later than the pace demands, however many have given up before."""
    limiter = RateLimiter(limit, window=1)
    pace = GCRA(limit, 1.0)
    went: list[tuple[float, float]] = []

    async def visit(patience: float) -> None:
        arrived = anyio.current_time()
        with anyio.move_on_after(patience):
            await limiter.acquire()
            went.append((arrived, anyio.current_time()))

    async with anyio.create_task_group() as tasks:
        for visitor in visits:
            await anyio.sleep(visitor.gap)
            tasks.start_soon(visit, visitor.patience)

    went.sort(key=lambda times: times[1])
    for number, (arrived, left) in enumerate(went):
        before = went[number - 1][1] + pace.interval if number else 0.0
        window = went[number - limit][1] + 1.001 if number >= limit else 0.0
        assert left <= max(arrived, before, window) + pace.patience + 1e-6


header_values = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.sampled_from(["0", "-1", "nan", "inf", "1e308", "9" * 400, "0.5", "00", "+7", "1_0", "٣", "10, 10", " 5 "]),
    st.integers(-5, 1_200).map(str),
    st.floats(UNIX - 30, UNIX + 60).map(str),
    st.integers(-40, 80).map(lambda ahead: formatdate(UNIX + ahead, usegmt=True)),
)
names = ["date", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"]
answers = st.fixed_dictionaries(dict.fromkeys(names, header_values))


@given(
    heard=st.lists(
        st.tuples(answers, st.sampled_from([200, 200, 429, 503]), st.floats(0, 3), st.floats(0, 40)), max_size=25
    )
)
@settings(thorough, max_examples=300)
async def test_no_header_stops_the_client_for_good(
    heard: list[tuple[Mapping[str, str | None], int, float, float]],
) -> None:
    """Whatever the headers say, in whatever order, the next request waits no longer than a window."""
    limiter = RateLimiter(1_000, window=10)
    for headers, status, gap, age in heard:
        await anyio.sleep(gap)
        present = {name: text for name, text in headers.items() if text is not None}
        now = anyio.current_time()
        limiter.observe(status, present, sent_at=now - age, received_at=now)
        if gap > 1:
            with anyio.fail_after(10.1):
                await limiter.acquire()

    with anyio.fail_after(10.1):
        await limiter.acquire()
    assert math.isfinite(limiter.statistics().others)


@given(
    delays=st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)), min_size=20, max_size=60),
    offset=st.floats(1, 2e9),
    cached=st.sampled_from([0.0, 0.3, 0.9]),
)
@thorough
def test_the_services_clock_is_never_thought_ahead(
    delays: list[tuple[float, float]], offset: float, cached: float
) -> None:
    """What the service dates is never expected earlier than it comes, and after some answers not much later."""
    quota = Quota(GCRA(100, 10.0))
    now = 0.0
    for there, back in delays:
        sent_at, now = now, now + there + back
        served = sent_at + there + offset
        shown = math.floor(served - cached) + cached if cached else served
        date = formatdate(max(shown, 0), usegmt=True)
        quota.hear(Reading.of({"date": date}), sent_at, now)
        now += 0.1
    expected = quota._clock.local(now + offset)

    assert -0.01 <= expected - now <= 2.0 + 0.4


places = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 0.5]),
        st.sampled_from([math.inf, 0.0, 0.1, 0.7]),
        st.sampled_from([0.0, 0.1, 1.0]),
    ),
    max_size=60,
)


@given(limit=st.sampled_from([None, 1, 2, 5]), visits=places)
@thorough
async def test_places_are_never_lost(limit: int | None, visits: list[tuple[float, float, float]]) -> None:
    """With any arrivals and cancellations the bound holds, the order is kept, and in the end all places are free."""
    bound = InFlight(limit)
    held, most, order = 0, 0, []

    async def visit(number: int, patience: float, stay: float) -> None:
        nonlocal held, most
        with anyio.move_on_after(patience):
            await bound.acquire()
            order.append(number)
            held += 1
            most = max(most, held)
            try:
                await anyio.sleep(stay)
            finally:
                held -= 1
                bound.release()

    async with anyio.create_task_group() as tasks:
        for number, (gap, patience, stay) in enumerate(visits):
            await anyio.sleep(gap)
            tasks.start_soon(visit, number, patience, stay)
            await checkpoint()

    assert limit is None or most <= limit
    assert {number for number, (_, patience, _) in enumerate(visits) if patience == math.inf} <= set(order)
    assert (bound.statistics().in_flight, bound.statistics().waiting) == (0, 0)
