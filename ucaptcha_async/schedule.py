"""What is known of solve times, and the cheapest times to ask: the learner and its dynamic programme."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from weakref import WeakSet

import attrs

from .checks import whole

# One observation stands for a spread of times around it: (multiple of its bandwidth in log time, share of its weight).
# The outer pairs are the heavy tail that few observations cannot show.
KERNEL = ((-1.5, 0.1), (-0.9, 0.15), (-0.4, 0.16), (0.0, 0.16), (0.4, 0.16), (0.9, 0.15), (1.5, 0.09), (3.0, 0.03))
FINEST = 20  # cells per interval
CELLS = 240  # cells in a plan, so that its computation never holds up an event loop
ROUNDS = 6  # of expectation-maximisation, where solve times are only known to lie between two polls
SHORTEST = 1e-3  # s, so that a solve time of 0 has a logarithm
WATCHED = 0.25  # share of the memory that may be watched at a time


def _whole(_: object, field: attrs.Attribute[int], value: int) -> None:
    whole(field.name, value)


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

    def after(self, age: float) -> float:
        """The age of the poll that follows one at `age`: never less than `age + interval`."""
        cell = round(age / self._step)
        soonest = age + self.interval
        return max(self._targets[cell], soonest) if cell < len(self._targets) else soonest


@attrs.define(eq=False)
class SolveTimes:
    """A bounded, fading memory of how long solves take, per task type.

    Of many solves in flight at once only some are watched, chosen when they are accepted. Whoever takes the latest to
    *finish* instead believes, at the end of a burst, that only the slowest exist.

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
    """The memory of one task type: observations, those being watched, and the plans made from them."""

    memory: int
    seen: deque[tuple[int, float, float]] = attrs.field(init=False)
    watched: WeakSet[object] = attrs.field(factory=WeakSet, init=False)
    entered: int = attrs.field(default=0, init=False)
    news: int = attrs.field(default=0, init=False)
    plans: dict[tuple[float, float], Plan] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.seen = deque(maxlen=self.memory)

    def enter(self, watcher: object | None) -> int:
        """Number a solve that may be watched, or answer 0 if enough of them are."""
        if watcher is not None:
            if len(self.watched) >= max(1, self.memory * WATCHED):
                return 0
            self.watched.add(watcher)
        self.entered += 1
        return self.entered

    def add(self, number: int, low: float, high: float) -> None:
        """Remember that the solve of this number took more than `low` and at most `high` seconds."""
        if not (math.isfinite(low) and math.isfinite(high)) or high < 0:
            return
        high = max(high, SHORTEST)
        self.seen.append((number, min(max(low, 0.0), high), high))
        self.news += 1

    def plan(self, interval: float, price: float) -> Plan:
        """The cheapest times to poll, computed again whenever enough is new."""
        if self.news > len(self.seen) // 10:
            self.plans.clear()
            self.news = 0
        plan = self.plans.get((interval, price))
        if plan is None:
            plan = Plan(interval, interval) if not self.seen else make_plan(self.samples(), interval, price)
            self.plans[interval, price] = plan
        return plan

    def samples(self) -> list[tuple[float, float, float]]:
        """What is remembered as (low, high, weight): the weight halves with each eighth of the memory."""
        # By order of acceptance, not of finishing: in a burst the slow ones finish last.
        fade = 0.5 ** (8 / self.memory)
        newest = max(number for number, _, _ in self.seen)
        return [(low, high, fade ** (newest - number)) for number, low, high in self.seen]

    def quantile(self, q: float) -> float | None:
        """The weighted quantile of the remembered times."""
        if not self.seen:
            return None
        ranked = sorted(((low + high) / 2, weight) for low, high, weight in self.samples())
        goal = q * sum(weight for _, weight in ranked)
        sums = accumulate(weight for _, weight in ranked)
        return next((time for (time, _), total in zip(ranked, sums, strict=True) if total >= goal), ranked[-1][0])


def make_plan(samples: list[tuple[float, float, float]], interval: float, price: float) -> Plan:
    """The cheapest plan for solves like these: (low, high, weight) each."""
    longest = 1.5 * max(high for _, high, _ in samples)
    step = interval / max(1, min(FINEST, int(CELLS * interval / longest)))
    density = estimate(samples, step, min(CELLS, math.ceil(longest / step) + 1))
    first, targets = cheapest(density, round(interval / step), price / step)
    sums = accumulate(density)
    late = next(cell for cell, total in enumerate(sums, 1) if total >= 0.99 or cell == len(density))
    return Plan(interval, first * step, late * step, step, [target * step for target in targets])


def estimate(samples: list[tuple[float, float, float]], step: float, cells: int) -> list[float]:
    """The share of solves that end in each cell of `step` seconds."""
    known = [0.0] * cells
    for time, width, weight in spread(samples):
        for offset, share in KERNEL:
            cell = int(time * math.exp(offset * width) / step)
            known[min(cell, cells - 1)] += weight * share
    between = [
        (min(int(low / step), cells - 1), min(int(high / step), cells - 1) + 1, weight)
        for low, high, weight in samples
        if low < high
    ]
    density = smooth(known)
    floor = sum(weight for _, _, weight in samples) * 1e-3 / cells
    density = [share + floor for share in density]
    for _ in range(ROUNDS if between else 0):
        density = [a + b for a, b in zip(smooth(known), divide(density, between), strict=True)]
    total = sum(density)
    return [share / total for share in density]


def spread(samples: list[tuple[float, float, float]]) -> Iterator[tuple[float, float, float]]:
    """The exact samples with a bandwidth in log time each: half the distance between its neighbours on either side."""
    exact = sorted((math.log(high), weight) for low, high, weight in samples if low == high)
    reach = math.isqrt(len(exact)) + 1
    for index, (log, weight) in enumerate(exact):
        below, above = exact[max(0, index - reach)][0], exact[min(len(exact) - 1, index + reach)][0]
        yield math.exp(log), max(0.05, (above - below) / 2), weight


def divide(density: list[float], between: list[tuple[int, int, float]]) -> list[float]:
    """Divide the samples known only to lie between two cells as the density is: one step of maximisation."""
    sums = list(accumulate(density, initial=0.0))
    changes = [0.0] * (len(density) + 1)
    for low, high, weight in between:
        mass = sums[high] - sums[low]
        if mass > 0:
            changes[low] += weight / mass
            changes[high] -= weight / mass
    return [share * factor for share, factor in zip(density, accumulate(changes), strict=False)]


def smooth(density: list[float]) -> list[float]:
    """Blur over the neighbouring cells."""
    padded = [density[0], *density, density[-1]]
    return [(a + 2 * b + c) / 4 for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]


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
    area = list(accumulate(((a + b) / 2 for a, b in pairwise(risen)), initial=0.0))
    points = list(area)  # A(u) + W(u); W is 0 where everything has ended
    targets = [0] * cells
    hull: deque[int] = deque()
    for last in range(cells - 1, -1, -1):
        push(hull, points, last + gap)
        best = lowest(hull, points, risen[last])
        targets[last] = best if best > last + gap else 0
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
