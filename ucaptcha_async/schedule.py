"""What is known of solve times, and the cheapest times to ask: the learner, its estimate and its dynamic programme."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from statistics import NormalDist
from typing import NamedTuple
from weakref import WeakSet

import attrs

from .checks import whole

# The estimate. Chosen by simulating ten distributions (one and two groups, narrow, wide, uniform, exponential) with 3
# to 100 observations each, for the least mean cost above the optimum.
ENOUGH = 3  # observations, below which a fixed interval costs less than what can be learned
SPREAD = 0.5  # standard deviation of log solve times that is expected before any is known, with the weight of one
SHAPED = 10.0  # observations in a group up to which its shape is lognormal rather than its own
APART = 0.2  # two groups of solve times: the variance within them is at most this share of the whole
UNKNOWN = (0.2, 12.0, 0.25)  # what has not been seen yet: from, to (intervals), weight (observations)
BELL = tuple(NormalDist().inv_cdf((part + 0.5) / 60) for part in range(60))
KERNEL = tuple(NormalDist().inv_cdf((part + 0.5) / 9) for part in range(9))
EVEN = tuple(part / 20 - 1 for part in range(41))
BLURS = 3
GOLDEN = 0.6180339887498949
SHORTEST = 1e-3  # s, so that a solve time of 0 has a logarithm

# The plan. Its computation may not hold up an event loop for more than about 2 ms.
FINEST = 20  # cells per interval
CELLS = 360

# The memory.
WATCHED = 0.25  # share that may be watched at a time
FADING = 8  # halvings of the weight over the whole memory
TURNOVER = 0.05  # share of the memory that must be new before a plan is computed again
SETTINGS = 4  # plans kept per task type, for clients that share a memory and differ in their settings


class Sample(NamedTuple):
    """One solve: it took more than `low` and at most `high` seconds, or exactly `high` if they are equal."""

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
        if not self._targets:
            return low + share * (high - low)
        below, above = self._level(low), self._level(high)
        cell = bisect_right(self._sums, below + share * (above - below))
        return min(high, max(low, cell * self._step))

    def _level(self, age: float) -> float:
        place = age / self._step
        cell = int(place)
        if cell >= len(self._sums) - 1:
            return self._sums[-1]
        return self._sums[cell] + (place - cell) * (self._sums[cell + 1] - self._sums[cell])


def _whole(_: object, field: attrs.Attribute[int], value: int) -> None:
    whole(field.name, value)


@attrs.define(eq=False)
class SolveTimes:
    """A bounded, fading memory of how long solves take, per task type.

    Of many solves in flight at once only some are watched, chosen when they are accepted. Whoever remembers the latest
    to *finish* instead believes, at the end of a burst, that only slow ones exist.

    Args:
        memory: Observations kept per task type; half the weight lies on the newest eighth.
        kinds: Task types kept; the least recently used is forgotten.
    """

    memory: int = attrs.field(default=200, validator=_whole)
    kinds: int = attrs.field(default=256, validator=_whole)
    _histories: OrderedDict[str, History] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def observe(self, task_type: str, solve_time: float, exact: bool = True, *, after: float = 0.0) -> None:
        """Remember one solve.

        Args:
            task_type: The task's type.
            solve_time: Seconds from acceptance to the solution.
            exact: `False` if `solve_time` is only when it was *found* to be ready.
            after: For `exact=False`, the last age at which it was still pending.
        """
        history = self.history(task_type)
        history.add(history.enter(None), solve_time if exact else after, solve_time)

    def history(self, task_type: str) -> History:
        """The memory of one task type, made if there is none."""
        history = self._histories.get(task_type)
        if history is None:
            history = self._histories[task_type] = History(self.memory)
            if len(self._histories) > self.kinds:
                self._histories.popitem(last=False)
        else:
            self._histories.move_to_end(task_type)
        return history

    def quantile(self, task_type: str, q: float) -> float | None:
        """The solve time (seconds) that a share `q` of the remembered solves did not exceed, or None."""
        history = self._histories.get(task_type)
        return history.quantile(q) if history else None

    def count(self, task_type: str) -> int:
        """How many solves of the type are remembered."""
        history = self._histories.get(task_type)
        return len(history.seen) if history else 0

    def types(self) -> tuple[str, ...]:
        """The task types of which something is remembered."""
        return tuple(name for name, history in self._histories.items() if history.seen)


@attrs.define(eq=False)
class History:
    """The memory of one task type: what was seen, who is being watched, and the plans made from it."""

    memory: int
    seen: deque[tuple[int, float, float]] = attrs.field(init=False)
    watched: WeakSet[object] = attrs.field(factory=WeakSet, init=False)
    _entered: int = attrs.field(default=0, init=False)
    _added: int = attrs.field(default=0, init=False)
    _plans: dict[tuple[float, float], tuple[int, Plan]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.seen = deque(maxlen=self.memory)

    def enter(self, watcher: object | None) -> int:
        """Number a solve in the order of acceptance; 0 if it is not to be watched, as enough of them are."""
        if watcher is not None:
            if len(self.watched) >= max(1.0, self.memory * WATCHED):
                return 0
            self.watched.add(watcher)
        self._entered += 1
        return self._entered

    def add(self, number: int, low: float, high: float) -> None:
        """Remember that the solve of this number took more than `low` and at most `high` seconds."""
        if math.isfinite(low) and math.isfinite(high) and high >= 0:
            self.seen.append((number, min(max(low, 0.0), high), high))
            self._added += 1

    def plan(self, interval: float, price: float) -> Plan:
        """The cheapest times to poll, computed again whenever enough is new."""
        made, plan = self._plans.get((interval, price)) or (0, Plan(interval, interval))
        if len(self.seen) >= ENOUGH and self._added - made > len(self.seen) * TURNOVER:
            plan = make_plan(self.samples(), plan, price)
            self._plans[interval, price] = self._added, plan
            if len(self._plans) > SETTINGS:
                del self._plans[next(iter(self._plans))]
        return plan

    def samples(self) -> list[Sample]:
        """What is remembered, older ones with less weight."""
        # Older by acceptance, not by finishing: in a burst the slow ones finish last.
        fade = 0.5 ** (FADING / self.memory)
        newest = max((number for number, _, _ in self.seen), default=0)
        return [Sample(low, high, fade ** (newest - number)) for number, low, high in self.seen]

    def quantile(self, q: float) -> float | None:
        """The weighted quantile of what is remembered, in seconds."""
        if not self.seen:
            return None
        ranked = sorted(((low + high) / 2, weight) for low, high, weight in self.samples())
        sums = list(accumulate(weight for _, weight in ranked))
        return ranked[min(bisect_right(sums, q * sums[-1]), len(ranked) - 1)][0]


def make_plan(samples: list[Sample], before: Plan, price: float) -> Plan:
    """The cheapest plan for solves like these, at `price` seconds a poll, where `before` was the plan so far."""
    interval = before.interval
    longest = max(2 * max(sample.high for sample in samples), UNKNOWN[1] * interval)
    step = interval / max(1, min(FINEST, int(CELLS * interval / longest)))
    density = estimate(placed(samples, before), interval, step, min(CELLS, math.ceil(longest / step)))
    first, targets = cheapest(density, round(interval / step), price / step)
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
    """A smooth distribution from few points: per group a lognormal that gives way to the points' own shape."""
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
        The first poll, and for a pending poll at each cell the next; 0 where that is as soon as allowed.
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
        best = lowest(hull, points, risen[last])
        targets[last] = best if best > last + gap else 0
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
