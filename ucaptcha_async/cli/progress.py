"""How far many solves have come: counted once, drawn on a terminal or told in plain lines."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Literal

import anyio
import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ucaptcha_async.events import Event, ServiceReached, ServiceUnreachable
from ucaptcha_async.solving.statistics import ClientStatistics

from .output import duration, money, note, one_line, progress_console

Mode = Literal["draw", "lines", "quiet"]

FRAME = 0.2
"""Seconds from one picture to the next."""

MEMORY = 60.0
"""Seconds over which rates are measured."""

RECENT = 10.0
"""Seconds over which the rate is measured when the last ones take longer than usual."""

MOST_KINDS = 8
"""Task types that the display lists; the others are summed up."""


@attrs.frozen(kw_only=True)
class KindRow:
    """One task type in a snapshot. Times in seconds, money in USD."""

    type: str
    solved: int
    failed: int
    median: float | None
    p90: float | None
    spent: Decimal


@attrs.frozen(kw_only=True)
class Snapshot:
    """What is known at one moment.

    Attributes:
        elapsed: Seconds since the start.
        total: Jobs in all, if known.
        solved: Those with a solution.
        failed: Those without one that have ended.
        in_flight: Tasks at the service, or on their way there.
        rate: Requests per second, lately.
        limit: Requests per second that the limit allows.
        spent: USD.
        left: Seconds until all is done, if that can be guessed.
        kinds: The same by task type.
        remarks: More to tell, for example that it is stopping.
    """

    elapsed: float
    total: int | None
    solved: int
    failed: int
    in_flight: int
    rate: float
    limit: float
    spent: Decimal
    left: float | None
    kinds: tuple[KindRow, ...]
    remarks: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        """Jobs that have ended."""
        return self.solved + self.failed

    def line(self) -> str:
        """All of it in one line."""
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [
            f"{duration(self.elapsed)}: {self.done:,}{of} done",
            f"{self.failed:,} failed",
            f"{self.in_flight:,} in flight",
            f"{self.rate:,.0f}/{self.limit:,.0f} requests/s",
            *self._quantiles(),
            f"USD {money(self.spent)}",
            *([] if self.left is None else [f"{duration(self.left)} left"]),
            *self.remarks,
        ]
        return ", ".join(parts)

    def _quantiles(self) -> Iterable[str]:
        known = [row for row in self.kinds if row.median is not None and row.p90 is not None]
        main = max(known, key=lambda row: row.solved, default=None)
        if main is not None:
            yield f"{main.type} p50 {main.median:.1f} s p90 {main.p90:.1f} s"


@attrs.define(eq=False)
class Outage:
    """Whether the service can be reached, as the events of a client tell it."""

    _reason: str | None = None
    _since: float = 0.0

    def hear(self, event: Event) -> None:
        """Take in an event of the client."""
        if isinstance(event, ServiceUnreachable):
            # Without the endpoint's name before it: all of them are away.
            self._reason, self._since = event.reason.partition(": ")[2] or event.reason, event.at
        elif isinstance(event, ServiceReached):
            self._reason = None

    def line(self) -> str | None:
        """What to tell while it lasts: why, and for how long."""
        if self._reason is None:
            return None
        return f"waiting for the service: {self._reason}, {duration(anyio.current_time() - self._since)}"


@attrs.define(eq=False)
class Meter:
    """Counts outcomes, and measures rates.

    Attributes:
        outage: Whether the service can be reached.
        total: Jobs in all, if known.
        ended: Those that need no more work and are not counted below: done by an earlier run, rejected.
        stops_at: When what is in flight is given up (a time of the event loop), if it is stopping.
        remarks: More to tell.
    """

    total: int | None = None
    ended: int = 0
    stops_at: float | None = None
    remarks: tuple[str, ...] = ()
    outage: Outage = attrs.field(factory=Outage)
    _solved: dict[str, int] = attrs.field(factory=dict)
    _failed: dict[str, int] = attrs.field(factory=dict)
    _started: float | None = None
    _samples: deque[tuple[float, int, int]] = attrs.field(factory=deque)
    _tail_since: float | None = None

    def begin(self) -> None:
        """Start the clock."""
        self._started = anyio.current_time()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return 0.0 if self._started is None else anyio.current_time() - self._started

    def count(self, task_type: str, *, ok: bool) -> None:
        """One job has ended."""
        counts = self._solved if ok else self._failed
        counts[task_type] = counts.get(task_type, 0) + 1

    @property
    def solved(self) -> int:
        """Jobs with a solution."""
        return sum(self._solved.values())

    @property
    def failed(self) -> int:
        """Jobs that ended without one."""
        return sum(self._failed.values())

    def snapshot(self, statistics: ClientStatistics) -> Snapshot:
        """What is known now."""
        now = anyio.current_time()
        done = self.solved + self.failed
        self._sample(now, done, statistics.requests)
        limiter = statistics.rate_limit
        return Snapshot(
            elapsed=self.elapsed,
            total=None if self.total is None else max(done, self.total - self.ended),
            solved=self.solved,
            failed=self.failed,
            in_flight=statistics.in_flight,
            rate=self._rate(2, over=5.0),
            limit=limiter.limit / limiter.window,
            spent=sum(statistics.spent.values(), Decimal(0)),
            left=self._left(now, done, statistics),
            kinds=self._kinds(statistics),
            remarks=(*filter(None, [self.outage.line()]), *self.remarks),
        )

    def _sample(self, now: float, done: int, requests: int) -> None:
        if not self._samples:
            self._samples.append((now - self.elapsed, 0, 0))
        self._samples.append((now, done, requests))
        while self._samples[0][0] < now - MEMORY:
            self._samples.popleft()

    def _rate(self, column: Literal[1, 2], over: float) -> float:
        now, then = self._samples[-1], self._samples[0]
        for sample in self._samples:
            if sample[0] > now[0] - over:
                break
            then = sample
        return (now[column] - then[column]) / (now[0] - then[0]) if now[0] > then[0] else 0.0

    def _left(self, now: float, done: int, statistics: ClientStatistics) -> float | None:
        """Seconds until all is done, if that can be guessed."""
        in_flight = statistics.in_flight
        todo = None if self.total is None else max(0, self.total - self.ended - done)
        if self.stops_at is not None:  # nothing more is submitted
            todo = in_flight if todo is None else min(todo, in_flight)
        if todo is None or todo > in_flight:
            self._tail_since = None
        elif self._tail_since is None:
            self._tail_since = now
        guess = None if todo is None else self._guess(now, todo, in_flight, _longest(statistics))
        if self.stops_at is None:
            return guess
        until_stop = max(0.0, self.stops_at - now)
        return until_stop if guess is None else min(guess, until_stop)

    def _guess(self, now: float, todo: int, in_flight: int, longest: float) -> float | None:
        """What waits to be submitted goes at the rate of late; then the slowest of the last ones takes its time."""
        if not todo:
            return 0.0
        if self._tail_since is None:
            rate = self._rate(1, over=MEMORY)
            return (todo - in_flight) / rate + max(longest, in_flight / rate) if rate else None
        if self._tail_since + longest > now:
            return self._tail_since + longest - now
        rate = self._rate(1, over=RECENT)  # slower than usual: no guess, unless some still come
        return todo / rate if rate else None

    def _kinds(self, statistics: ClientStatistics) -> tuple[KindRow, ...]:
        names = {**self._solved, **self._failed}
        rows = [
            KindRow(
                type=name,
                solved=self._solved.get(name, 0),
                failed=self._failed.get(name, 0),
                median=statistics.solve_times.get(name, {}).get(0.5),
                p90=statistics.solve_times.get(name, {}).get(0.9),
                spent=statistics.spent.get(name, Decimal(0)),
            )
            for name in names
        ]
        return tuple(sorted(rows, key=lambda row: (-row.solved - row.failed, row.type)))


def _longest(statistics: ClientStatistics) -> float:
    """Seconds that all but a few solves take, of whatever type; 0 if nothing is known."""
    return max((max(times.values(), default=0.0) for times in statistics.solve_times.values()), default=0.0)


def choose_mode(*, quiet: bool, every: float = 5.0) -> tuple[Mode, Console, float]:
    """How to show progress on standard error: drawn on a terminal, plain lines elsewhere.

    Returns:
        The mode, where to write, and how many seconds lie between two plain lines.
    """
    console = progress_console()
    mode: Mode = "quiet" if quiet else "draw" if console.is_terminal and not console.is_dumb_terminal else "lines"
    return mode, console, every


def showing(
    look: Callable[[], Snapshot], mode: Mode, console: Console, every: float
) -> AbstractAsyncContextManager[None]:
    """Show what `look` sees for the length of the block."""
    return {"draw": _drawing, "lines": _telling, "quiet": _keeping_quiet}[mode](look, console, every)


@asynccontextmanager
async def _drawing(look: Callable[[], Snapshot], console: Console, every: float) -> AsyncIterator[None]:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        async with anyio.create_task_group() as group:
            group.start_soon(_repeat, lambda: live.update(picture(look(), console.width), refresh=True), FRAME)
            yield
            group.cancel_scope.cancel()


@asynccontextmanager
async def waiting(tell: Callable[[], str], outage: Outage) -> AsyncIterator[None]:
    """Show on a terminal, for the length of the block, that something is waited for: what `tell` says, and how long.

    While the service cannot be reached, that is shown instead.
    """
    mode, console, _ = choose_mode(quiet=False)
    if mode != "draw":
        yield
        return
    started = anyio.current_time()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        async with anyio.create_task_group() as group:

            def show() -> None:
                words = one_line(outage.line() or f"{tell()}, {duration(anyio.current_time() - started)}")
                live.update(Text(words, style="cyan", no_wrap=True, overflow="ellipsis"), refresh=True)

            show()
            group.start_soon(_repeat, show, FRAME)
            yield
            group.cancel_scope.cancel()


@asynccontextmanager
async def _telling(look: Callable[[], Snapshot], console: Console, every: float) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(_repeat, lambda: note(look().line()), every)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def _keeping_quiet(look: Callable[[], Snapshot], console: Console, every: float) -> AsyncIterator[None]:
    yield


async def _repeat(show: Callable[[], None], every: float) -> None:
    while True:
        await anyio.sleep(every)
        show()


def picture(snapshot: Snapshot, width: int = 80) -> RenderableType:
    """The snapshot as it is drawn on a terminal."""
    parts: list[RenderableType] = [_bar(snapshot, width), _counts(snapshot)]
    if snapshot.kinds:
        parts.append(_kinds(snapshot.kinds))
    parts += [Text(remark, style="yellow") for remark in snapshot.remarks]
    return Group(*parts)


def _bar(snapshot: Snapshot, width: int) -> RenderableType:
    total = snapshot.total or None
    grid = Table.grid(padding=(0, 1))
    words = [f"{snapshot.done:,}" + ("" if total is None else f"/{total:,}"), duration(snapshot.elapsed)]
    if snapshot.left is not None:
        words.append(f"{duration(snapshot.left)} left")
    bar = ProgressBar(total=total, completed=snapshot.done, width=max(10, min(40, width - 40)), pulse=total is None)
    grid.add_row(bar, *words)
    return grid


def _counts(snapshot: Snapshot) -> Text:
    text = Text()
    for number, word, style in (
        (f"{snapshot.solved:,}", "solved", "green"),
        (f"{snapshot.failed:,}", "failed", "red" if snapshot.failed else "dim"),
        (f"{snapshot.in_flight:,}", "in flight", "cyan"),
        (f"{snapshot.rate:,.0f}", f"of {snapshot.limit:,.0f} requests/s", "cyan"),
        (f"USD {money(snapshot.spent)}", "spent", "magenta"),
    ):
        text.append(number, style).append(f" {word}  ")
    return text


def _kinds(rows: tuple[KindRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("type", no_wrap=True, overflow="ellipsis")
    for name in ("solved", "failed", "p50", "p90", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:MOST_KINDS]:
        table.add_row(
            row.type, f"{row.solved:,}", f"{row.failed:,}", _seconds(row.median), _seconds(row.p90), money(row.spent)
        )
    rest = rows[MOST_KINDS:]
    if rest:
        solved, failed = sum(row.solved for row in rest), sum(row.failed for row in rest)
        spent = sum((row.spent for row in rest), Decimal(0))
        table.add_row(f"{len(rest)} more", f"{solved:,}", f"{failed:,}", "", "", money(spent))
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
