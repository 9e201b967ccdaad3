"""Polls and delay: the learned schedule against a fixed one and against the computed optimum. A simulation, no network.

    python -m benchmarks.polling [SEED]

Three distributions of solve times are known exactly, so the best schedule for them can be computed. Each row polls the
same solves; the delay is from the moment a task is ready to the start of the poll that finds it so. Cost is the mean
delay plus `poll_price` seconds for each poll.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from random import Random
from statistics import NormalDist, mean
from typing import Any, NamedTuple

from ucaptcha_async.polling import PollClock, Polling, SolveTimes

SOLVES = 4_000  # measured per row
MEMORIES = 20  # learned anew that often per row, as a memory of five solves may be lucky
LEARNED = (5, 20, 200, 1_000)  # solves seen before the measured ones
UNTOLD = (20, 200)  # the same, by a service that does not say how long a solve took
STEP = 0.1  # s, of the optimum's grid
HORIZON = 160.0  # s, beyond which none of the distributions has a share worth counting
WIDEST = 40.0  # s, the longest gap that the optimum may choose
KIND = "simulated"


class Group(NamedTuple):
    """A lognormal group of solve times: its share of all, its median in seconds, the deviation of its logarithm."""

    share: float
    median: float
    sigma: float


class Distribution(NamedTuple):
    """How long solves take: one or more groups."""

    name: str
    groups: tuple[Group, ...]

    def draw(self, rng: Random) -> float:
        """One solve time, in seconds."""
        group = rng.choices(self.groups, [group.share for group in self.groups])[0]
        return group.median * math.exp(rng.gauss(0, group.sigma))

    def ended(self, age: float) -> float:
        """The share of solves that have ended by this age."""
        if age <= 0:
            return 0.0
        return sum(share * NormalDist().cdf(math.log(age / median) / sigma) for share, median, sigma in self.groups)


DISTRIBUTIONS = (
    Distribution("lognormal, median 12 s, sigma 0.5", (Group(1.0, 12.0, 0.5),)),
    Distribution("lognormal, median 25 s, sigma 0.35", (Group(1.0, 25.0, 0.35),)),
    Distribution("two groups, medians 4 s and 30 s", (Group(0.5, 4.0, 0.3), Group(0.5, 30.0, 0.2))),
)


class Schedule(NamedTuple):
    """Ages at which a solve is polled, then every `interval`."""

    ages: tuple[float, ...]
    interval: float

    def polls(self, solve_time: float) -> tuple[int, float]:
        """How many polls a solve takes, and how long after it was ready the last of them starts."""
        index = bisect_left(self.ages, solve_time)
        if index < len(self.ages):
            return index + 1, self.ages[index] - solve_time
        more = math.ceil((solve_time - self.ages[-1]) / self.interval)
        return index + more, self.ages[-1] + more * self.interval - solve_time


def optimum(distribution: Distribution, polling: Polling) -> Schedule:
    """The best schedule there is for a known distribution, by trying every gap from every age.

    Written apart from the library's: plain backward induction on the expected cost of a solve that is still pending.
    """
    cells = round(HORIZON / STEP)
    least, widest = round(polling.interval / STEP), round(WIDEST / STEP)
    ended = [distribution.ended(cell * STEP) for cell in range(cells + widest + 1)]
    lost = [0.0]  # the integral of `ended`: what is lost by not asking
    for before, after in pairwise(ended):
        lost.append(lost[-1] + (before + after) / 2 * STEP)
    cost = [0.0] * len(ended)
    following = [cell + least for cell in range(len(ended))]

    def best(cell: int, soonest: int) -> tuple[float, int]:
        return min(
            (lost[later] - lost[cell] - ended[cell] * (later - cell) * STEP + cost[later], later)
            for later in range(soonest, cell + widest)
        )

    for cell in range(cells - 1, 0, -1):
        waiting, following[cell] = best(cell, cell + least)
        cost[cell] = waiting + polling.poll_price * (1 - ended[cell])
    ages = [best(0, 1)[1]]
    while ages[-1] < cells:
        ages.append(following[ages[-1]])
    return Schedule(tuple(age * STEP for age in ages), polling.interval)


def learn(times: SolveTimes, solve_times: list[float], polling: Polling, told: bool, rng: Random) -> None:
    """Let a memory see solves, one after the other, with or without the service's own word on how long each took."""
    for solve_time in solve_times:
        clock = PollClock(polling, times, KIND, 0.0, rng)
        _, delay = poll(clock, solve_time)
        clock.ready(solve_time + delay, solve_time if told else None)


def poll(clock: PollClock, solve_time: float) -> tuple[int, float]:
    """Poll a solve until it is ready, with answers in no time; how many polls it took, and how late the last was."""
    while True:
        now = clock.next_poll
        clock.polled(now)
        if now - clock.accepted_at >= solve_time:
            return clock.polls, now - clock.accepted_at - solve_time
        clock.pending(now)


def measured(times: SolveTimes, solve_times: list[float], polling: Polling, rng: Random) -> list[tuple[int, float]]:
    """Poll solves with a memory that learns no more: (polls, delay) of each."""
    results = []
    for solve_time in solve_times:
        clock = PollClock(polling, times, KIND, 0.0, rng)
        results.append(poll(clock, solve_time))
        clock.ended()
    return results


def row(name: str, results: list[tuple[int, float]], price: float) -> dict[str, Any]:
    """What is reported of one way to poll."""
    polls, delay = mean(polls for polls, _ in results), mean(delay for _, delay in results)
    p95 = sorted(delay for _, delay in results)[int(0.95 * len(results))]
    return {"polling": name, "polls": polls, "mean_delay": delay, "p95_delay": p95, "cost": delay + price * polls}


def compare(distribution: Distribution, polling: Polling, best: Schedule, rng: Random) -> list[dict[str, Any]]:
    """All rows of one distribution, each over the same solves."""
    price = polling.poll_price
    solves = [distribution.draw(rng) for _ in range(SOLVES)]
    every = Schedule((polling.interval,), polling.interval)
    rows = [row(f"every {polling.interval:g} s", [every.polls(solve_time) for solve_time in solves], price)]
    for told, counts in ((True, LEARNED), (False, UNTOLD)):
        for count, results in zip(counts, lessons(distribution, solves, counts, told, polling, rng), strict=True):
            rows.append(row(f"learned, {count:,} solves{'' if told else ', no solveTime'}", results, price))
    rows.append(row("optimum", [best.polls(solve_time) for solve_time in solves], price))
    for each in rows:
        each["over_optimum"] = each["cost"] / rows[-1]["cost"] - 1
    return rows


def lessons(
    distribution: Distribution, solves: list[float], counts: tuple[int, ...], told: bool, polling: Polling, rng: Random
) -> list[list[tuple[int, float]]]:
    """Poll the solves with memories of rising counts of others; each memory takes its share of them."""
    results: list[list[tuple[int, float]]] = [[] for _ in counts]
    for memory in range(MEMORIES):
        times = SolveTimes(polling.memory)
        for index, (before, count) in enumerate(pairwise((0, *counts))):
            learn(times, [distribution.draw(rng) for _ in range(count - before)], polling, told, rng)
            results[index] += measured(times, solves[memory::MEMORIES], polling, rng)
    return results


def run(seed: int = 1, polling: Polling | None = None) -> dict[str, Any]:
    """All results, ready for JSON. Times in seconds; the same seed gives the same results."""
    polling = polling or Polling()
    results = []
    for distribution in DISTRIBUTIONS:
        best = optimum(distribution, polling)
        rows = compare(distribution, polling, best, Random(f"{seed} {distribution.name}"))
        ages = [round(age, 1) for age in best.ages[:6]]
        results.append({"name": distribution.name, "optimum": ages, "rows": rows})
    settings = {"interval": polling.interval, "poll_price": polling.poll_price, "solves": SOLVES}
    return {"seed": seed, **settings, "distributions": results}


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("polls", "polls a solve", "{:.2f}".format),
    ("mean_delay", "mean delay, s", "{:.2f}".format),
    ("p95_delay", "p95 delay, s", "{:.2f}".format),
    ("cost", "cost, s", "{:.3f}".format),
    ("over_optimum", "over optimum", "{:+.1%}".format),
)


def table(results: dict[str, Any]) -> str:
    """The results as text, one table per distribution."""
    lines = []
    for distribution in results["distributions"]:
        lines.append(f"{distribution['name']} (optimum: {', '.join(map(str, distribution['optimum']))}, …)")
        lines.append("".join([" " * 34, *(f"{title:>15}" for _, title, _ in COLUMNS)]))
        for each in distribution["rows"]:
            cells = (f"{show(each[key]):>15}" for key, _, show in COLUMNS)
            lines.append("".join([f"{each['polling']:<34}", *cells]))
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1)))
