"""From a handful of solve times to the cheapest times to ask: an estimate, and a dynamic programme over it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import attrs

# The estimate. Chosen by simulating ten distributions (one and two groups, narrow, wide, uniform, exponential) with 3
# to 100 observations each, for the least mean cost above the optimum.
ENOUGH = 3  # observations, below which a fixed interval costs less than what can be learned
SPREAD = 0.5  # standard deviation of log solve times that is expected before any is known, with the weight of one
SHAPED = 10.0  # observations in a group up to which its shape is a bell rather than its own
APART = 0.2  # two groups of solve times: the variance within them is at most this share of the whole
UNKNOWN = (0.2, 12.0, 0.25)  # what has not been seen yet: from, to (intervals), weight (observations)
# Quantiles of logistic distributions of variance 1: like the normal one, with heavier tails.
BELL = tuple(math.sqrt(3) / math.pi * math.log((part + 0.5) / (59.5 - part)) for part in range(60))
KERNEL = tuple(math.sqrt(3) / math.pi * math.log((part + 0.5) / (14.5 - part)) for part in range(15))
EVEN = tuple(part / 20 - 1 for part in range(41))
SOONEST = 0.15  # of the age at which a solve was found ready, if only that is known: no sooner was it ready
BLURS = 3
GOLDEN = 0.6180339887498949
SHORTEST = 1e-3  # s, so that a solve time of 0 has a logarithm

# The plan. Its computation may not hold up an event loop for more than about 2 ms.
FINEST = 20  # cells per interval, at the most
CELLS = 600


class Sample(NamedTuple):
    """One solve: it took more than `low` and at most `high` seconds (infinite: it is pending), or both if equal."""

    low: float
    high: float
    weight: float


@attrs.frozen
class Plan:
    """When to poll next, given the age at which the last poll started; ages in seconds since acceptance.

    Attributes:
        interval: The least time from one poll to the next.
        first: The age of the first poll.
        late: The age that about one solve in a hundred exceeds, if anything is known.
    """

    interval: float
    first: float
    late: float | None = None
    _step: float = math.inf
    _targets: Sequence[float] = ()
    _sums: Sequence[float] = (0.0, 1.0)

    def after(self, age: float) -> float:
        """The age of the poll that follows one at `age`: never less than `age + interval`."""
        cell = round(age / self._step)
        soonest = age + self.interval
        return max(self._targets[cell], soonest) if cell < len(self._targets) else soonest

    def between(self, low: float, high: float, share: float) -> float:
        """The solve time that a share of the solves between two times does not exceed."""
        # A wide gap before a success would hide a group of quick solves all over it.
        low = max(low, SOONEST * high) if high < math.inf else low
        if not self._targets:
            return low + share * (high - low)
        below, above = self._level(low), self._level(high)
        cell = bisect_right(self._sums, below + share * (above - below))
        return min(high, max(low, cell * self._step))

    def _level(self, age: float) -> float:
        place = age / self._step
        if place >= len(self._sums) - 1:
            return self._sums[-1]
        cell = int(place)
        return self._sums[cell] + (place - cell) * (self._sums[cell + 1] - self._sums[cell])


def make_plan(samples: list[Sample], before: Plan, price: float) -> Plan:
    """The cheapest plan for solves like these, at `price` seconds a poll, where `before` was the plan so far."""
    interval = before.interval
    longest = max(1.5 * max(high for _, high, _ in samples if high < math.inf), UNKNOWN[1] * interval)
    fineness = min(FINEST, int(CELLS * interval / longest))
    step = interval / fineness if fineness else longest / CELLS
    density = estimate(placed(samples, before), interval, step, min(CELLS, math.ceil(longest / step)))
    first, targets = cheapest(density, max(1, fineness), price / step)
    if fineness:
        # A poll as soon as allowed keeps its distance from the last one rather than its cell.
        targets = [target if target > cell + fineness else 0 for cell, target in enumerate(targets)]
    sums = list(accumulate(density, initial=0.0))
    late = bisect_right(sums, 0.99) * step
    return Plan(interval, first * step, late, step, [target * step for target in targets], sums)


def placed(samples: list[Sample], before: Plan) -> list[tuple[float, float]]:
    """The samples as (log of seconds, weight), those known to lie between two times where they are likely to be.

    That is by what was known before: each new plan is one more step of an expectation-maximisation.
    """
    points = []
    for turn, (low, high, weight) in enumerate(samples):
        # Multiples of the golden ratio spread like samples evenly, and the same way each time.
        time = before.between(low, high, turn * GOLDEN % 1) if low < high else high
        points.append((math.log(max(time, SHORTEST)), weight))
    return points


def estimate(points: list[tuple[float, float]], interval: float, step: float, cells: int) -> list[float]:
    """A smooth distribution from few points: per group a bell in log time that gives way to the points' own shape."""
    density = [0.0] * cells
    total = sum(weight for _, weight in points)
    # Faded points count for less: this is how many equal ones would be as certain.
    unit = sum(weight * weight for _, weight in points) / total
    for group in groups(sorted(points)):
        held = sum(weight for _, weight in group)
        count = held / unit
        mean = sum(log * weight for log, weight in group) / held
        variance = sum((log - mean) ** 2 * weight for log, weight in group) / unit
        width = math.sqrt((SPREAD**2 + variance) / max(1.0, count))
        shaped = SHAPED / (SHAPED + count)
        pour(density, math.exp(mean) / step, factors(BELL, width * math.sqrt(1 + 1 / count)), held * shaped)
        kernel = factors(KERNEL, 0.9 * width * count**-0.2)
        for log, weight in group:
            pour(density, math.exp(log) / step, kernel, weight * (1 - shaped))
    low, high, weight = UNKNOWN
    middle = interval * math.sqrt(low * high) / step
    pour(density, middle, factors(EVEN, math.log(high / low) / 2), weight * unit)
    return smooth(density)


def factors(quantiles: Sequence[float], width: float) -> list[float]:
    """Quantiles of a distribution of logarithms, as factors."""
    return [math.exp(quantile * width) for quantile in quantiles]


def pour(density: list[float], centre: float, around: list[float], weight: float) -> None:
    """Add a weight to a density in equal parts around a cell."""
    last, share = len(density) - 1, weight / len(around)
    for factor in around:
        cell = int(centre * factor)
        density[min(cell, last)] += share


def groups(points: list[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Split sorted points wherever that leaves little of their variance."""
    total = sum(weight for _, weight in points)
    moment = sum(log * weight for log, weight in points)
    whole_variance = sum((log - moment / total) ** 2 * weight for log, weight in points)
    held = part = gain = 0.0
    split = 0
    for index, (log, weight) in enumerate(points[:-1], 1):
        held += weight
        part += log * weight
        between = (part / held - moment / total) ** 2 * held * total / (total - held)
        if between > gain:
            gain, split = between, index
    # Few points may look like two groups by chance.
    if len(points) > ENOUGH and whole_variance - gain < whole_variance * min(APART, len(points) / 50):
        yield from groups(points[:split])
        yield from groups(points[split:])
    else:
        yield points


def smooth(density: list[float]) -> list[float]:
    """Blur over the neighbouring cells, and make the sum 1."""
    for _ in range(BLURS):
        padded = [density[0], *density, density[-1]]
        density = [(a + 2 * b + c) / 4 for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]
    total = sum(density)
    return [share / total for share in density]


def cheapest(density: list[float], gap: int, price: float) -> tuple[int, list[int]]:
    """Minimise E[delay] + price * E[polls] over all schedules whose polls are at least `gap` cells apart.

    With F the distribution, A its integral, and W(t) the cost from a pending poll at t on, times the chance of that,

        W(t) = price (1 - F(t)) + min over u >= t + gap of  A(u) - A(t) - F(t) (u - t) + W(u)

    so that u minimises A(u) + W(u) - F(t) u: a line of slope F(t) against the points (u, A(u) + W(u)). Slope and least
    u both fall with t, so one pass over the lower convex hull of the points finds every minimum.

    Args:
        density: The share of solves per cell.
        gap: The least distance of two polls, in cells.
        price: What one poll costs, in cells of delay.

    Returns:
        The cell of the first poll, and for a pending poll at each cell that of the next.
    """
    cells = len(density)
    risen = [min(1.0, total) for total in accumulate(density, initial=0.0)] + [1.0] * gap
    risen[cells] = 1.0
    area = accumulate(((a + b) / 2 for a, b in pairwise(risen)), initial=0.0)
    points = list(area)  # A(u) + W(u): W is added as it becomes known, and is 0 where everything has ended
    targets = [0] * cells
    hull: deque[int] = deque()
    for last in range(cells - 1, -1, -1):
        push(hull, points, last + gap)
        best = targets[last] = lowest(hull, points, risen[last])
        # A(t) cancels out, as it is in W(t) with a minus.
        points[last] = price * (1 - risen[last]) + points[best] - risen[last] * (best - last)
    for soon in range(gap - 1, 0, -1):
        push(hull, points, soon)
    return lowest(hull, points, 0.0), targets


def push(hull: deque[int], points: list[float], new: int) -> None:
    """Add the leftmost point to a lower convex hull that is kept from right to left."""
    while len(hull) > 1:
        far, near = hull[-2], hull[-1]
        if (points[near] - points[new]) * (far - new) < (points[far] - points[new]) * (near - new):
            break
        hull.pop()
    hull.append(new)


def lowest(hull: deque[int], points: list[float], slope: float) -> int:
    """The point lowest against a line of this slope. Slopes must fall from call to call: what lies right of it goes."""
    while len(hull) > 1 and points[hull[1]] - slope * hull[1] <= points[hull[0]] - slope * hull[0]:
        hull.popleft()
    return hull[0]
