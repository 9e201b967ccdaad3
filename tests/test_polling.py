"""When to poll: the settings, the state of one solve, and what is learned from solve times. All simulated, by seeds."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Iterator
from datetime import timedelta
from itertools import accumulate, pairwise
from random import Random
from statistics import mean
from typing import Any

import pytest

from benchmarks import polling as simulation
from benchmarks.polling import DISTRIBUTIONS, Distribution, Group
from tests.helpers import observe
from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.polling import PollClock, Polling, SolveTimes
from ucaptcha_async.polling.plans import CELLS, Plan, Sample, make_plan

KIND = simulation.KIND
EXACT = Polling(jitter=0.0)
TWELVE, TWENTY_FIVE, TWO_GROUPS = DISTRIBUTIONS


def clock(polling: Polling = EXACT, times: SolveTimes | None = None, **options: Any) -> PollClock:
    """The clock of a task accepted at 1,000 s."""
    return PollClock(polling, times or SolveTimes(), KIND, 1000.0, Random(1), **options)


def taught(solve_times: list[float], memory: int = 100) -> SolveTimes:
    times = SolveTimes(memory)
    for solve_time in solve_times:
        observe(times, KIND, solve_time)
    return times


def draws(distribution: Distribution, count: int, seed: int) -> list[float]:
    rng = Random(seed)
    return [distribution.draw(rng) for _ in range(count)]


def ages(polling: Polling, times: SolveTimes | None = None, polls: int = 6) -> list[float]:
    """The ages at which a solve that stays pending is polled, with answers in no time."""
    ticking, seen = clock(polling, times), []
    for _ in range(polls):
        seen.append(ticking.next_poll - 1000.0)
        ticking.polled(ticking.next_poll)
        ticking.pending(1000.0 + seen[-1])
    return seen


class TestSettings:
    def test_defaults(self) -> None:
        """The interval is what the service asks for, and nothing is fixed."""
        polling = Polling()

        assert (5.0, None, None) == (polling.interval, polling.first, polling.schedule)

    def test_durations(self) -> None:
        """Durations are given as numbers or as timedeltas."""
        polling = Polling(interval=timedelta(seconds=7), first=timedelta(minutes=1), max_spacing=90)

        assert (7.0, 60.0, 90.0) == (polling.interval, polling.first, polling.max_spacing)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("interval", 0),
            ("interval", -5),
            ("interval", math.nan),
            ("interval", math.inf),
            ("interval", "5"),
            ("interval", True),
            ("first", -1),
            ("first", math.inf),
            ("schedule", 5),
            ("schedule", "5, 10"),
            ("schedule", [5, -1]),
            ("schedule", [5, 9]),
            ("schedule", [10, 5]),
            ("jitter", -0.1),
            ("jitter", 1.1),
            ("jitter", True),
            ("jitter", "much"),
            ("poll_price", -1),
            ("poll_price", 1e300),
            ("max_spacing", 0),
            ("callback_net", 0),
            ("memory", 2),
            ("memory", 10.5),
        ],
    )
    def test_wrong(self, field: str, value: Any) -> None:
        """A setting out of its range is refused, by its name."""
        with pytest.raises(ConfigurationError, match=field) as caught:
            Polling(**{field: value})

        assert field == caught.value.field  # type: ignore[attr-defined]

    def test_first_and_schedule(self) -> None:
        """A fixed first poll and a fixed schedule exclude each other."""
        with pytest.raises(ConfigurationError, match="exclude"):
            Polling(first=3, schedule=[5, 10])

    def test_tolerance(self) -> None:
        """The rounding of decimal fractions does not make a schedule too dense."""
        assert (0.1, 0.2, 0.3) == Polling(interval=0.1, schedule=[0.1, 0.2, 0.3]).schedule


class TestFixed:
    def test_every_interval(self) -> None:
        """Before anything is known a task is polled every interval, from the first on."""
        assert [5, 10, 15, 20, 25, 30] == ages(EXACT)

    def test_first(self) -> None:
        """A fixed first poll counts; the later ones follow at the interval until more is known."""
        assert [2, 7, 12, 17, 22, 27] == ages(Polling(jitter=0, first=2))

    def test_first_then_learned(self) -> None:
        """After a fixed first poll the later ones are learned: here the gap between two groups of solve times."""
        seen = ages(Polling(jitter=0, first=6), taught(draws(TWO_GROUPS, 200, 1)))

        assert seen[0] == 6
        assert max(late - early for early, late in pairwise(seen)) > 10

    def test_schedule(self) -> None:
        """A fixed schedule is kept, and goes on at the interval, whatever was learned."""
        times = taught([40.0] * 20)

        assert [3, 10, 30, 35, 40, 45] == ages(Polling(jitter=0, schedule=[3, 10, 30]), times)

    def test_empty_schedule(self) -> None:
        """An empty schedule is the interval alone: the way to switch learning off."""
        assert [5, 10, 15, 20, 25, 30] == ages(Polling(jitter=0, schedule=()), taught([40.0] * 20))

    def test_jittered_schedule(self) -> None:
        """Jitter neither skips an age of a schedule nor polls one twice."""
        polling = Polling(schedule=[5, 10, 15, 40, 45])
        for seed in range(50):
            ticking = PollClock(polling, SolveTimes(), KIND, 0.0, Random(seed))
            for age in (5, 10, 15, 40, 45):
                assert ticking.next_poll == pytest.approx(age, abs=0.51)
                ticking.polled(ticking.next_poll)
                ticking.pending(ticking.next_poll - 4.9)

    def test_late_polls(self) -> None:
        """Polls that were held up are not made up for: the schedule is taken up where it stands."""
        ticking = clock(Polling(jitter=0, schedule=[5, 10, 15, 40]))
        ticking.polled(1014.0)
        ticking.pending(1014.1)

        assert 1040 == ticking.next_poll


class TestClock:
    def test_counts(self) -> None:
        """The clock counts polls and those that failed."""
        ticking = clock()
        ticking.polled(1005.0)
        ticking.pending(1005.1)
        ticking.polled(1010.0)
        ticking.faulted(1010.1)

        assert (2, 1) == (ticking.polls, ticking.faults)

    def test_slow_answers(self) -> None:
        """The interval counts from start to start: an answer that took longer is followed by a poll at once."""
        ticking = clock()
        ticking.polled(1005.0)
        ticking.pending(1012.0)

        assert 1010 == ticking.next_poll

    def test_while_asking(self) -> None:
        """While a poll is under way the next is an interval off."""
        ticking = clock()
        ticking.polled(1005.0)

        assert 1010 == ticking.next_poll

    def test_one_fault(self) -> None:
        """A failed poll is only a late poll."""
        ticking = clock()
        ticking.polled(1005.0)
        ticking.faulted(1005.2)

        assert 1010 == ticking.next_poll

    def test_repeated_faults(self) -> None:
        """Repeated faults stretch the spacing, up to a bound; the first good answer restores it."""
        ticking, spacings = clock(Polling(jitter=0, max_spacing=60)), []
        for _ in range(6):
            now = ticking.next_poll
            ticking.polled(now)
            ticking.faulted(now + 0.1)
            spacings.append(ticking.next_poll - now)
        now = ticking.next_poll
        ticking.polled(now)
        ticking.pending(now + 0.1)

        assert [5, 10, 20, 40, 60, 60] == spacings
        assert now + 5 == ticking.next_poll

    def test_endless_faults(self) -> None:
        """Any number of faults in a row is borne."""
        ticking = clock()
        for _ in range(3000):
            ticking.polled(ticking.next_poll)
            ticking.faulted(ticking.next_poll)

        assert 3000 == ticking.faults
        assert math.isfinite(ticking.next_poll)

    def test_long_interval(self) -> None:
        """An interval above `max_spacing` stays the least spacing."""
        ticking = clock(Polling(jitter=0, interval=100))
        ticking.polled(1100.0)
        ticking.faulted(1100.1)

        assert 1200 == ticking.next_poll

    @pytest.mark.parametrize(
        ("retry_after", "due"),
        [(None, 1010), (1, 1010), (12, 1018), (30, 1026), (1e9, 1026), (-3, 1010), (math.nan, 1010), (math.inf, 1026)],
    )
    def test_retry_after(self, retry_after: float | None, due: float) -> None:
        """`Retry-After` is the least wait from the answer on, up to four intervals; nonsense is ignored."""
        ticking = clock()
        ticking.polled(1005.0)
        ticking.faulted(1006.0, retry_after)

        assert due == ticking.next_poll

    def test_jitter_of_faults(self) -> None:
        """After an outage a burst of solves does not come back in step, and no earlier than without jitter."""
        due = set()
        for seed in range(100):
            ticking = PollClock(Polling(), SolveTimes(), KIND, 0.0, Random(seed))
            ticking.polled(5.0)
            ticking.faulted(5.1)
            due.add(ticking.next_poll)

        assert len(due) == 100
        assert min(due) >= 10
        assert max(due) <= 10.5

    def test_jitter_of_first(self) -> None:
        """The first polls of a burst of submits are spread evenly around their time, and the next ones keep that."""
        polling, firsts, seconds = Polling(jitter=0.2), [], []
        for seed in range(400):
            ticking = PollClock(polling, SolveTimes(), KIND, 0.0, Random(seed))
            firsts.append(ticking.next_poll)
            ticking.polled(ticking.next_poll)
            ticking.pending(ticking.next_poll - 4.9)
            seconds.append(ticking.next_poll)

        assert min(firsts) >= 4
        assert max(firsts) <= 6
        assert sum(firsts) / 400 == pytest.approx(5, abs=0.1)
        assert [first + 5 for first in firsts] == pytest.approx(seconds)

    def test_taken_up_again(self) -> None:
        """A task that was accepted long ago is polled at once, then at the interval."""
        ticking = clock(times=taught([12.0] * 10))
        ticking.polled(1300.0)
        ticking.pending(1300.1)

        assert ticking.next_poll == 1305

    def test_resumed(self) -> None:
        """A task of unknown age is polled at once, then every interval, and teaches nothing."""
        times = taught([30.0] * 10)
        ticking = clock(times=times, resumed=True)
        first = ticking.next_poll
        ticking.polled(1000.0)
        ticking.pending(1000.1)
        second = ticking.next_poll
        ticking.polled(1005.0)
        ticking.ready(1005.1, 3.0)

        assert (1000, 1005) == (first, second)
        assert 10 == len(times.history(KIND).seen)

    def test_net(self) -> None:
        """Where results are pushed, polls are a slow net."""
        ticking = clock(net=True)
        first = ticking.next_poll
        ticking.polled(1030.0)
        ticking.pending(1030.1)

        assert (1030, 1060) == (first, ticking.next_poll)

    def test_net_after_the_latest(self) -> None:
        """The net begins when nearly all solves are over, if that is known to be later."""
        first = clock(net=True, times=taught([100.0] * 50)).next_poll

        assert 1100 < first < 1300

    def test_hint(self) -> None:
        """A hint that the task is ready is followed at once, and then at the interval."""
        ticking = clock(net=True)
        ticking.hinted(1012.0)
        first = ticking.next_poll
        ticking.polled(1012.0)
        ticking.pending(1012.1)

        assert (1012, 1017) == (first, ticking.next_poll)

    def test_hint_after_poll(self) -> None:
        """Not even a hint makes two polls closer than the interval."""
        ticking = clock(net=True)
        ticking.polled(1030.0)
        ticking.hinted(1031.0)

        assert 1035 == ticking.next_poll

    def test_repr(self) -> None:
        """The representation shows the state, not the memory behind it."""
        assert "polls=0" in repr(clock())
        assert "SolveTimes" not in repr(clock())
        assert len(repr(clock())) < 250


class TestMemory:
    def test_told(self) -> None:
        """What the service says of a solve's time is remembered."""
        times = SolveTimes()
        ticking = clock(times=times)
        ticking.polled(1005.0)
        ticking.pending(1005.1)
        ticking.polled(1010.0)
        ticking.ready(1010.1, 7.5)

        assert (1, 7.5) == (len(times.history(KIND).seen), times.quantile(KIND, 0.5))

    def test_untold(self) -> None:
        """Without the service's word a solve lies between its last two polls: the middle counts."""
        times = SolveTimes()
        ticking = clock(times=times)
        ticking.polled(1005.0)
        ticking.pending(1005.0)
        ticking.polled(1010.0)
        ticking.ready(1010.0)

        assert times.quantile(KIND, 0.5) == 7.5

    @pytest.mark.parametrize("solve_time", [0.5, 30.0, 7500.0, -4.0, math.nan, math.inf])
    def test_contradiction(self, solve_time: float) -> None:
        """A time that contradicts the polls (another unit, another clock) is not believed."""
        times = SolveTimes()
        ticking = clock(times=times)
        ticking.polled(1005.0)
        ticking.pending(1005.0)
        ticking.polled(1010.0)
        ticking.ready(1010.0, solve_time)

        assert times.quantile(KIND, 0.5) == 7.5

    def test_taught_once(self) -> None:
        """One solve teaches once."""
        times = SolveTimes()
        ticking = clock(times=times)
        ticking.polled(1005.0)
        ticking.ready(1005.1, 3.0)
        ticking.ready(1005.1, 3.0)

        assert 1 == len(times.history(KIND).seen)

    def test_ended(self) -> None:
        """A solve without a solution teaches nothing, and makes room for the next."""
        times = SolveTimes(memory=4)
        first, second = clock(times=times), clock(times=times)
        first.ended()
        first.ready(1005.0, 3.0)
        third = clock(times=times)
        second.ready(1005.0, 4.0)
        third.ready(1005.0, 5.0)

        assert (1, 5.0) == (len(times.history(KIND).seen), times.quantile(KIND, 0.5))

    def test_dropped(self) -> None:
        """A clock that is dropped without a word makes room, too."""
        times = SolveTimes(memory=4)
        dropped = clock(times=times)
        del dropped
        gc.collect()
        clock_of_next = clock(times=times)
        clock_of_next.ready(1005.0, 5.0)

        assert 1 == len(times.history(KIND).seen)

    @pytest.mark.parametrize("solve_time", [-1.0, math.nan, math.inf])
    def test_absurd(self, solve_time: float) -> None:
        """An absurd solve time is not remembered."""
        times = taught([solve_time])

        assert (0, None, ()) == (len(times.history(KIND).seen), times.quantile(KIND, 0.5), times.types())

    def test_unknown_type(self) -> None:
        """Nothing is known of a type that was never seen, and asking does not change that."""
        times = SolveTimes()

        assert (0, None, ()) == (len(times.history("never").seen), times.quantile("never", 0.5), times.types())

    def test_quantiles(self) -> None:
        """Quantiles are those of the remembered times."""
        times = taught([float(second) for second in range(1, 11)], memory=10_000)

        assert [1.0, 6.0, 10.0, 10.0] == [times.quantile(KIND, q) for q in (0, 0.5, 0.99, 1)]

    def test_bounded(self) -> None:
        """Memory is bounded, per type and in the number of types; the least recently used type is forgotten."""
        times = SolveTimes(memory=10, kinds=2)
        for _ in range(25):
            observe(times, "a", 3.0)
        observe(times, "b", 3.0)
        observe(times, "a", 3.0)
        observe(times, "c", 3.0)

        assert {"a", "c"} == set(times.types())
        assert [3.0, None, 3.0] == [times.quantile(kind, 0.5) for kind in "abc"]
        assert 10 == len(times.history("a").seen)

    def test_forgotten_under_way(self) -> None:
        """A solve whose type was forgotten meanwhile ends as any other."""
        times = SolveTimes(kinds=1)
        ticking = clock(times=times)
        observe(times, "other", 3.0)
        ticking.polled(1005.0)
        ticking.pending(1005.1)
        ticking.polled(1010.0)
        ticking.ready(1010.1, 8.0)

        assert ("other",) == times.types()

    def test_types_apart(self) -> None:
        """Types are learned apart."""
        times = taught([30.0] * 20)
        observe(times, "quick", 1.0)

        assert PollClock(EXACT, times, KIND, 0.0, Random(1)).next_poll > 15
        assert PollClock(EXACT, times, "quick", 0.0, Random(1)).next_poll == 5

    def test_many_settings(self) -> None:
        """Clients with other settings share a memory, not its plans."""
        times = taught(draws(TWELVE, 100, 1))
        firsts = {price: ages(Polling(jitter=0, poll_price=price), times)[0] for price in (0.1, 0.5, 1, 2, 4, 8)}

        assert sorted(firsts.values()) == list(firsts.values())
        assert len(set(firsts.values())) == 6
        assert firsts[0.1] == ages(Polling(jitter=0, poll_price=0.1), times)[0]


class Yardstick:
    """The expected cost of any schedule on a known distribution, by integration, and that of the optimum."""

    STEP = 0.05

    def __init__(self, distribution: Distribution, polling: Polling) -> None:
        self.polling = polling
        self.distribution = distribution
        steps = [distribution.ended(index * self.STEP) * self.STEP for index in range(int(300 / self.STEP))]
        self.lost = list(accumulate(steps, initial=0.0))
        self.best = simulation.optimum(distribution, polling)
        self.optimum = self.cost([*self.best.ages, *(self.best.ages[-1] + 5 * more for more in range(1, 20))])

    def cost(self, polls: list[float]) -> float:
        """Mean delay plus the price of the polls at these ages."""
        total = 0.0
        for last, poll in pairwise([0.0, *polls]):
            ended = self.distribution.ended(last)
            total += self.polling.poll_price * (1 - ended)
            total += self.lost[round(poll / self.STEP)] - self.lost[round(last / self.STEP)] - ended * (poll - last)
        assert self.distribution.ended(polls[-1]) > 0.9999
        return total

    def over(self, times: SolveTimes) -> float:
        """By how much what was learned costs more than the optimum, as a share."""
        plan = times.history(KIND).plan(self.polling.interval, self.polling.poll_price)
        polls = [plan.first]
        while polls[-1] < 200:
            polls.append(plan.after(polls[-1]))
        return self.cost(polls) / self.optimum - 1


@functools.cache
def yardstick(distribution: Distribution, price: float = Polling().poll_price) -> Yardstick:
    return Yardstick(distribution, Polling(poll_price=price))


class TestLearning:
    def test_optimum(self) -> None:
        """The yardstick is right: what was worked out before for these distributions comes out again."""
        two = yardstick(TWO_GROUPS, 0.5).best.ages

        assert yardstick(TWELVE, 0.5).best.ages[0] == pytest.approx(8.9, abs=0.3)
        assert yardstick(TWENTY_FIVE, 0.5).best.ages[0] == pytest.approx(18.4, abs=0.5)
        assert two[:2] == pytest.approx((5.2, 10.2), abs=0.3)
        assert two[2] - two[1] > 10

    def test_yardstick(self) -> None:
        """Its expected cost is what a simulation finds: 3.25 polls, 2.51 s late for a poll every 5 s, median 12 s."""
        assert yardstick(TWELVE, 0.5).over(SolveTimes()) == pytest.approx(0.085, abs=0.005)

    def test_targets(self) -> None:
        """Median 12 s, after 200 solves: at most 2.5 polls a solve, known at most 2.7 s late on average."""
        rng, results = Random(1), []
        for _ in range(10):
            times = taught([TWELVE.draw(rng) for _ in range(200)])
            results += simulation.measured(times, [TWELVE.draw(rng) for _ in range(400)], Polling(), rng)

        assert mean(polls for polls, _ in results) <= 2.5
        assert mean(delay for _, delay in results) <= 2.7

    @pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: each.name)
    @pytest.mark.parametrize(("count", "above"), [(200, 0.025), (60, 0.025), (20, 0.03)])
    def test_near_optimum(self, distribution: Distribution, count: int, above: float) -> None:
        """A schedule from 20 to 200 solves is near the optimum, and hardly ever as dear as a fixed one."""
        costs = [yardstick(distribution).over(taught(draws(distribution, count, seed))) for seed in range(40)]

        # Few solves say less of two groups than of one.
        assert mean(costs) <= above * (1.6 if distribution is TWO_GROUPS else 1)
        assert sum(cost >= yardstick(distribution).over(SolveTimes()) for cost in costs) <= 1  # of 40

    @pytest.mark.parametrize(("distribution", "above"), [(TWELVE, 0.055), (TWENTY_FIVE, 0.07)], ids=["12 s", "25 s"])
    def test_five_solves(self, distribution: Distribution, above: float) -> None:
        """Five solves already give a schedule near the optimum, and a better one than every interval."""
        costs = [yardstick(distribution).over(taught(draws(distribution, 5, seed))) for seed in range(60)]

        assert mean(costs) <= above
        assert mean(costs) < yardstick(distribution).over(SolveTimes()) * 0.7

    def test_two_groups(self) -> None:
        """Two groups of solve times make a gap in the middle."""
        seen = ages(EXACT, taught(draws(TWO_GROUPS, 200, 3)))
        gaps = [late - early for early, late in pairwise(seen)]

        assert seen[0] < 7
        assert max(gaps) > 10
        assert gaps[-1] == pytest.approx(5)

    @pytest.mark.parametrize(
        ("distribution", "above"),
        [(TWELVE, 0.04), (TWENTY_FIVE, 0.04), (TWO_GROUPS, 0.08)],
        ids=["12 s", "25 s", "two groups"],
    )
    def test_untold(self, distribution: Distribution, above: float) -> None:
        """A service that says nothing of solve times is learned from the polls alone."""
        costs = []
        for seed in range(5):
            times = SolveTimes()
            simulation.learn(times, draws(distribution, 200, seed), Polling(), told=False, rng=Random(seed))
            costs.append(yardstick(distribution).over(times))

        assert mean(costs) <= above

    def test_quick_solves(self) -> None:
        """Quick solves are polled before the first interval is over."""
        seen = ages(EXACT, taught(draws(Distribution("quick", (Group(1.0, 1.5, 0.3),)), 50, 1)))

        assert 1.5 < seen[0] < 4
        assert seen[1] - seen[0] >= 5

    @pytest.mark.parametrize(
        ("before", "after", "solves"),
        [(TWELVE, TWENTY_FIVE, 40), (TWENTY_FIVE, TWELVE, 20), (TWELVE, TWO_GROUPS, 40), (TWO_GROUPS, TWELVE, 30)],
        ids=["slower", "quicker", "splits", "unites"],
    )
    def test_change_of_regime(self, before: Distribution, after: Distribution, solves: int) -> None:
        """A change of solve times is followed within a few tens of solves."""
        costs = []
        for seed in range(8):
            times = taught(draws(before, 200, seed))
            yardstick(before).over(times)
            for solve_time in draws(after, solves, seed):
                observe(times, KIND, solve_time)
                cost = yardstick(after).over(times)
            costs.append(cost)

        assert mean(costs) <= 0.08

    def test_after_a_burst(self) -> None:
        """The end of a burst, when only slow ones finish, does not make all solves look slow."""
        times, polling = SolveTimes(), Polling()
        for seed in range(3):
            play(burst(TWELVE, 1000, seed), times, polling)

        assert yardstick(TWELVE).over(times) <= 0.04

    def test_within_a_crowd(self) -> None:
        """With hundreds always in flight, of which quick ones are known first, the schedule stays near the optimum."""
        times, polling = SolveTimes(), Polling()
        rng = Random(7)
        play([(moment * 0.05, TWELVE.draw(rng)) for moment in range(2000)], times, polling)

        assert yardstick(TWELVE).over(times) <= 0.04

    def test_outlier(self) -> None:
        """One very slow solve does not open a gap without polls."""
        seen = ages(EXACT, taught([*draws(TWELVE, 60, 1), 250.0]), polls=8)

        assert all(late - early < 12 for early, late in pairwise(seen))

    def test_stuck(self) -> None:
        """Solves that never end do not spoil what is known of the others."""
        times, polling = SolveTimes(), Polling()
        stuck = [PollClock(polling, times, KIND, 0.0, Random(seed)) for seed in range(10)]
        for ticking in stuck:
            ticking.polled(280.0)
            ticking.pending(280.1)
        for solve_time in draws(TWELVE, 100, 1):
            observe(times, KIND, solve_time)
            yardstick(TWELVE).over(times)

        assert yardstick(TWELVE).over(times) <= 0.04

    @pytest.mark.parametrize("longest", [0.0, 1e-9, 1.0, 300.0, 1e5, 1e9])
    def test_bounded_work(self, longest: float) -> None:
        """A plan has a bounded number of steps, however long solves take."""
        plan = make_plan([Sample(longest, longest, 1.0)] * 100, Plan(5.0, 5.0), 0.5)

        assert len(plan._targets) <= CELLS
        assert math.isfinite(plan.first)
        assert plan.after(plan.first) >= plan.first + 5

    def test_recomputed_seldom(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A plan is computed anew for each of the first solves, and then only when a share of the memory is new."""
        made = []

        def counted(samples: list[Sample], before: Plan, price: float) -> Plan:
            made.append(len(samples))
            return make_plan(samples, before, price)

        monkeypatch.setattr("ucaptcha_async.polling.history.make_plan", counted)
        times = SolveTimes()
        for solve_time in draws(TWELVE, 300, 1):
            observe(times, KIND, solve_time)
            for _ in range(3):
                times.history(KIND).plan(5.0, 0.5)

        assert made[:8] == [3, 4, 5, 6, 7, 8, 9, 10]
        assert 40 < len(made) < 100

    def test_short_interval(self) -> None:
        """Where the interval is short against the solves, polls are spaced by what they cost."""
        slow = Distribution("slow", (Group(1.0, 60.0, 0.3),))
        seen = ages(Polling(jitter=0, interval=0.1), taught(draws(slow, 100, 1)), polls=8)

        assert 30 < seen[0] < 60
        assert all(1 < late - early < 10 for early, late in pairwise(seen))


def burst(distribution: Distribution, count: int, seed: int) -> list[tuple[float, float]]:
    """Solves begun at 200 a second: (begin, solve time)."""
    return [(index / 200, solve_time) for index, solve_time in enumerate(draws(distribution, count, seed))]


def play(solves: list[tuple[float, float]], times: SolveTimes, polling: Polling) -> None:
    """Solve many at once, in the order in which things happen."""
    rng = Random(1)
    begins = iter(solves)
    waiting: list[tuple[float, int, PollClock, float]] = []
    for now, solve_time, ticking in events(begins, waiting):
        if ticking is None:
            new = PollClock(polling, times, KIND, now, rng)
            waiting.append((new.next_poll, len(waiting), new, solve_time))
            continue
        ticking.polled(now)
        if now - ticking.accepted_at >= solve_time:
            ticking.ready(now, solve_time)
        else:
            ticking.pending(now)
            waiting.append((ticking.next_poll, len(waiting), ticking, solve_time))


def events(
    begins: Iterator[tuple[float, float]], waiting: list[tuple[float, int, PollClock, float]]
) -> Iterator[tuple[float, float, PollClock | None]]:
    """Begins and polls by time."""
    begin = next(begins, None)
    while begin or waiting:
        first = min(waiting) if waiting else None
        if begin and (first is None or begin[0] <= first[0]):
            yield (*begin, None)
            begin = next(begins, None)
        elif first:
            waiting.remove(first)
            yield first[0], first[3], first[2]


class TestBenchmark:
    def test_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The benchmark gives the same figures for the same seed, in the shape that is reported."""
        monkeypatch.setattr(simulation, "SOLVES", 60)
        monkeypatch.setattr(simulation, "MEMORIES", 2)
        monkeypatch.setattr(simulation, "LEARNED", (5,))
        monkeypatch.setattr(simulation, "UNTOLD", ())
        monkeypatch.setattr(simulation, "optimum", lambda distribution, polling: yardstick(distribution).best)
        results = simulation.run(3)

        assert results == simulation.run(3)
        assert results != simulation.run(4)
        assert [each.name for each in DISTRIBUTIONS] == [each["name"] for each in results["distributions"]]
        assert simulation.table(results).count("learned, 5 solves") == 3
