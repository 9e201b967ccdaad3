"""What a report shows, computed from the lines of an output. Pure, and small however long the output is."""

from __future__ import annotations

import hashlib
import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from statistics import quantiles

import attrs

BINS = 40
"""Bins of a distribution."""

MOMENTS = 160
"""Points of a course of time."""

MOST_TYPES = 7
"""Task types that are told apart; the others are one."""

MOST_CAUSES = 12

OTHERS = "others"

NOTHING = math.nan


@attrs.define(eq=False)
class Columns:
    """The lines of an output as columns: six numbers a line, whatever its token.

    Attributes:
        types: Names of task types, numbered.
        submitted: When the service accepted the task, Unix seconds; NaN if unknown.
        ended: When the end was known, Unix seconds.
        solve_time: Seconds; NaN if unknown.
        cost: USD; 0 if nothing was paid, or nobody knows.
        type: Number of the task type.
        status: Number of the status.
        causes: Failures by cause, and whether they were charged.
        paid: Costs by task type, exactly.
        polls: Polls of solved tasks.
    """

    types: dict[str, int] = attrs.field(factory=dict)
    submitted: array[float] = attrs.field(factory=lambda: array("d"))
    ended: array[float] = attrs.field(factory=lambda: array("d"))
    solve_time: array[float] = attrs.field(factory=lambda: array("d"))
    cost: array[float] = attrs.field(factory=lambda: array("d"))
    type: array[int] = attrs.field(factory=lambda: array("l"))
    status: array[int] = attrs.field(factory=lambda: array("b"))
    causes: list[tuple[str, str] | None] = attrs.field(factory=list)
    paid: list[Decimal] = attrs.field(factory=list)
    polls: array[int] = attrs.field(factory=lambda: array("l"))
    _place: dict[bytes, int] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self.type)

    def add(self, record: Mapping[str, object]) -> None:
        """Take in a line; a later line of the same key replaces the earlier one."""
        key = hashlib.blake2b(str(record.get("key")).encode(errors="replace"), digest_size=8).digest()
        values = self._values(record)
        if key in self._place:
            for column, value in zip(self._all(), values, strict=True):
                column[self._place[key]] = value
            return
        self._place[key] = len(self)
        for column, value in zip(self._all(), values, strict=True):
            column.append(value)

    def _all(self) -> Sequence[list[object]]:
        columns = (self.submitted, self.ended, self.solve_time, self.cost, self.type, self.status)
        return (*columns, self.causes, self.paid, self.polls)  # type: ignore[return-value]

    def _values(self, record: Mapping[str, object]) -> Sequence[object]:
        name = str(record.get("type") or "?")
        cost = _money(record.get("cost"))
        status = STATUSES.index(str(record.get("status")))
        return (
            _moment(record.get("submitted_at")),
            _moment(record.get("ended_at")),
            _number(record.get("solve_time")),
            float(cost),
            self.types.setdefault(name, len(self.types)),
            status,
            None if status == SOLVED else _cause(record.get("error")),
            cost,
            _whole(record.get("polls")) if status == SOLVED else -1,
        )


STATUSES = ("solved", "failed", "uncertain")
SOLVED = 0


@attrs.frozen(kw_only=True)
class Bin:
    """One bar of a distribution: `count` values from `low` up to `high`, `share` of all of this `type`."""

    type: str
    low: float
    high: float
    count: int
    share: float


@attrs.frozen(kw_only=True)
class Spread:
    """How long solves of a type take, seconds."""

    type: str
    count: int
    p10: float
    p50: float
    p90: float


@attrs.frozen(kw_only=True)
class Moment:
    """One step of the course of time; `at` is Unix seconds."""

    at: float
    until: float
    solved: float
    failed: float
    in_flight: float


@attrs.frozen(kw_only=True)
class Spending:
    """What had been spent on a type at a time, USD."""

    at: float
    type: str
    usd: float


@attrs.frozen(kw_only=True)
class Cause:
    """How often something failed."""

    cause: str
    charged: str
    count: int


@attrs.frozen(kw_only=True)
class Facts:
    """All that a report shows.

    Attributes:
        counts: Lines by status.
        spent: USD.
        elapsed: Seconds from the first submit to the last end.
        begin: Unix seconds; `None` if no line has a time.
        polls_per_solve: Polls for each solved task; `None` without one.
        spreads: Solve times by type.
        solve_times: The distribution of solve times by type.
        course: Throughput and tasks in flight over time.
        spending: Money over time, by type.
        causes: Failures by cause.
        waiting: The distribution of the seconds between ready and known.
        wait: Its median and 90th percentile.
    """

    counts: Mapping[str, int]
    spent: Decimal
    elapsed: float
    begin: float | None
    polls_per_solve: float | None
    spreads: Sequence[Spread]
    solve_times: Sequence[Bin]
    course: Sequence[Moment]
    spending: Sequence[Spending]
    causes: Sequence[Cause]
    waiting: Sequence[Bin]
    wait: tuple[float, float] | None

    @property
    def total(self) -> int:
        """Lines."""
        return sum(self.counts.values())


def gather(records: Iterable[Mapping[str, object]]) -> Facts:
    """Read an output."""
    columns = Columns()
    for record in records:
        columns.add(record)
    names = _names(columns)
    begin, end = _span(columns)
    times = _times_by_type(columns, names)
    waits = _waits(columns)
    polls = [n for n in columns.polls if n >= 0]
    return Facts(
        counts={status: columns.status.count(number) for number, status in enumerate(STATUSES)},
        spent=sum(columns.paid, Decimal(0)),
        elapsed=end - begin if begin is not None else 0.0,
        begin=begin,
        polls_per_solve=sum(polls) / len(polls) if polls else None,
        spreads=[_spread(name, values) for name, values in times.items()],
        solve_times=_distribution(times),
        course=_course(columns, begin, end),
        spending=_spending(columns, names, begin, end),
        causes=_causes(columns),
        waiting=_distribution({"": waits}) if waits else [],
        wait=(_quantile(waits, 0.5), _quantile(waits, 0.9)) if waits else None,
    )


def _names(columns: Columns) -> list[str]:
    """The name of each numbered type, `OTHERS` for the rare ones."""
    common = {number for number, _ in Counter(columns.type).most_common(MOST_TYPES)}
    return [name if number in common else OTHERS for name, number in columns.types.items()]


def _span(columns: Columns) -> tuple[float | None, float]:
    known = [t for column in (columns.submitted, columns.ended) for t in column if t == t]
    return (min(known), max(known)) if known else (None, 0.0)


def _times_by_type(columns: Columns, names: Sequence[str]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for number, seconds, status in zip(columns.type, columns.solve_time, columns.status, strict=True):
        # Answers at once (images, Lightning mode) would hide the rest of the distribution behind one bar at zero.
        if status == SOLVED and seconds > 0:
            times.setdefault(names[number], []).append(seconds)
    return dict(sorted(times.items(), key=lambda item: _quantile(item[1], 0.5)))


def _quantile(values: Sequence[float], share: float) -> float:
    if len(values) < 2:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def _spread(name: str, values: Sequence[float]) -> Spread:
    p10, p50, p90 = (_quantile(values, share) for share in (0.1, 0.5, 0.9))
    return Spread(type=name, count=len(values), p10=p10, p50=p50, p90=p90)


def _distribution(values: Mapping[str, Sequence[float]]) -> list[Bin]:
    """Bars of one width for all types; the last takes in what is beyond."""
    everything = [value for some in values.values() for value in some]
    if not everything:
        return []
    step = nice_step(max(_quantile(everything, 0.99), 0.001) / BINS)
    last = max(1, math.ceil(_quantile(everything, 0.99) / step))
    bins: list[Bin] = []
    for name, some in values.items():
        counts = Counter(min(last - 1, max(0, int(value / step))) for value in some)
        bins += [
            Bin(type=name, low=i * step, high=(i + 1) * step, count=counts[i], share=counts[i] / len(some))
            for i in range(last)
        ]
    return bins


def nice_step(least: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _course(columns: Columns, begin: float | None, end: float) -> list[Moment]:
    """Throughput in each step of time, and the mean number of tasks in flight."""
    if begin is None:
        return []
    step = max((end - begin) / MOMENTS, 0.05)
    size = max(1, math.ceil((end - begin) / step))
    solved, failed, flying = ([0.0] * size for _ in range(3))
    for since, until, status in zip(columns.submitted, columns.ended, columns.status, strict=True):
        if until == until:
            (solved if status == SOLVED else failed)[min(size - 1, int((until - begin) / step))] += 1 / step
        if since == since and until >= since:
            _spread_over(flying, (since - begin) / step, (until - begin) / step)
    return [
        Moment(
            at=begin + i * step, until=begin + (i + 1) * step, solved=solved[i], failed=failed[i], in_flight=flying[i]
        )
        for i in range(size)
    ]


def _spread_over(steps: list[float], since: float, until: float) -> None:
    """Add the time from `since` to `until`, in steps, to the steps that it covers."""
    first, last = min(len(steps) - 1, int(since)), min(len(steps) - 1, int(until))
    if first == last:
        steps[first] += until - since
        return
    steps[first] += first + 1 - since
    steps[last] += until - last
    for step in range(first + 1, last):
        steps[step] += 1


def _spending(columns: Columns, names: Sequence[str], begin: float | None, end: float) -> list[Spending]:
    """Money spent until each of some moments, by type."""
    if begin is None or not any(columns.cost):
        return []
    step = max((end - begin) / MOMENTS, 0.05)
    moments = [begin + i * step for i in range(MOMENTS + 1)]
    added: dict[str, list[float]] = {}
    for number, at, usd in zip(columns.type, columns.ended, columns.cost, strict=True):
        if usd and at == at:
            added.setdefault(names[number], [0.0] * len(moments))[min(MOMENTS, bisect_right(moments, at))] += usd
    spending: list[Spending] = []
    for name, amounts in sorted(added.items(), key=lambda item: -sum(item[1])):
        total = 0.0
        for at, usd in zip(moments, amounts, strict=True):
            total += usd
            spending.append(Spending(at=at, type=name, usd=total))
    return spending


def _causes(columns: Columns) -> list[Cause]:
    counts = Counter(cause for cause in columns.causes if cause is not None)
    return [Cause(cause=c, charged=charged, count=n) for (c, charged), n in counts.most_common(MOST_CAUSES)]


def _waits(columns: Columns) -> list[float]:
    """Seconds from the moment at which the service was ready to that at which the client knew."""
    rows = zip(columns.submitted, columns.ended, columns.solve_time, columns.status, strict=True)
    waits = (known - since - took for since, known, took, status in rows if status == SOLVED and took > 0)
    return [max(0.0, wait) for wait in waits if wait == wait]


def _cause(error: object) -> tuple[str, str]:
    said: Mapping[str, object] = error if isinstance(error, dict) else {}
    name = str(said.get("class") or "Unknown").removesuffix("Error")
    code = said.get("code")
    charged = said.get("charged")
    word = "unknown" if not isinstance(charged, bool) else "charged" if charged else "not charged"
    return str(code) if code else name, word


def _moment(value: object) -> float:
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else NOTHING
    except ValueError:
        return NOTHING


def _number(value: object) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else NOTHING  # type: ignore[arg-type]


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _money(value: object) -> Decimal:
    try:
        amount = Decimal(value) if isinstance(value, str) else Decimal(0)
    except InvalidOperation:
        return Decimal(0)
    return amount if amount.is_finite() else Decimal(0)
