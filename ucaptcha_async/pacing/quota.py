"""What the service says of its own limit: its headers, its clock, and what others who share the address use.

Pure state, no event loop. Local times are seconds on one monotonic clock, passed in; the service's are Unix time.

Source: docs/api/overview (`X-RateLimit-Limit`, `X-RateLimit-Remaining`, `X-RateLimit-Reset`, HTTP 429).
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs

from .gcra import GCRA, not_before

_LIMITS = frozenset({"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"})

DRIFT = 1e-4
"""Seconds by which two clocks may drift apart in a second."""

_USUAL_DATE = re.compile(
    r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([1-9][0-9]{3}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
"""The one form in which servers send dates today (RFC 9110)."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@attrs.define
class Reading:
    """What the headers of one answer say, as far as they make sense."""

    date: float | None
    limit: int | None
    remaining: int | None
    reset: float | None
    retry_after: float | None
    retry_date: float | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Reading:
        """Read headers with lower-case names."""
        if _LIMITS.isdisjoint(headers):
            return _dated(headers.get("date"))
        limit, remaining = _whole(headers.get("x-ratelimit-limit")), _whole(headers.get("x-ratelimit-remaining"))
        if limit is not None and remaining is not None and remaining > limit:
            limit = remaining = None
        retry = headers.get("retry-after")
        return cls(
            date=_date(headers.get("date")),
            limit=limit or None,
            remaining=remaining,
            reset=_number(headers.get("x-ratelimit-reset")),
            retry_after=_number(retry),
            retry_date=_date(retry),
        )

    @property
    def wait(self) -> float | None:
        """Seconds that the answer asks to wait, however it says so: a date is meant by the clock of its own `Date`."""
        if self.retry_after is not None or self.retry_date is None:
            return self.retry_after
        return max(0.0, self.retry_date - (time.time() if self.date is None else self.date))


@functools.lru_cache(maxsize=8)  # the same second's date comes with a thousand answers, and most say nothing else
def _dated(text: str | None) -> Reading:
    return Reading(date=_date(text), limit=None, remaining=None, reset=None, retry_after=None, retry_date=None)


@functools.lru_cache(maxsize=64)  # most answers say the same as the one before
def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else -1.0
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


@functools.lru_cache(maxsize=64)
def _whole(text: str | None) -> int | None:
    try:
        value = int(text) if text else -1
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


@functools.lru_cache(maxsize=8)
def _date(text: str | None) -> float | None:
    if not text:
        return None
    usual = _USUAL_DATE.fullmatch(text)
    if usual is None:
        return _odd_date(text)
    day, month, year, hour, minute, second = usual.groups()
    try:
        date = datetime(int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    except ValueError:  # a leap second, perhaps
        return _odd_date(text)
    return date.timestamp()


def _odd_date(text: str) -> float | None:
    """A date in another form."""
    from email.utils import mktime_tz, parsedate_tz  # few programs need the email package

    parts = parsedate_tz(text)
    try:
        return float(mktime_tz(parts)) if parts else None
    except (ValueError, OverflowError):
        return None


@attrs.define(eq=False)
class ServerClock:
    """How far the service's clock is ahead of ours, as bounds that many answers narrow."""

    _low: float = attrs.field(default=-math.inf, init=False)
    _high: float = attrs.field(default=math.inf, init=False)
    _heard_at: float = attrs.field(default=-math.inf, init=False)

    def hear(self, date: float, sent_at: float, received_at: float, grain: float = 2.0) -> None:
        """Hear the `Date` of an answer: the service's clock showed it between `sent_at` and `received_at`.

        It is cut to whole seconds, and many servers renew it only once a second, at any point of the second: so it may
        be `grain` seconds old.
        """
        low, high = date - received_at, date + grain - sent_at
        passed, self._heard_at = received_at - self._heard_at, received_at
        if passed > 0:
            self._low -= DRIFT * passed
            self._high += DRIFT * passed
        if low > self._low:
            self._low = low
        if high < self._high:
            self._high = high
        if self._low > self._high:  # a clock was set, or this is another server
            self._low, self._high = low, high

    def hear_passed(self, date: float, received_at: float) -> None:
        """Hear that the service's clock had passed `date` when it gave an answer."""
        if date - received_at <= self._high:
            self._low = max(self._low, date - received_at)

    def local(self, date: float) -> float:
        """The latest moment, on our clock, at which the service's clock shows `date`; infinite if nothing is known."""
        return date - self._low

    @property
    def doubt(self) -> float:
        """How much earlier than `local` says it may be, in seconds."""
        return self._high - self._low


@attrs.define(eq=False)
class Trend:
    """The level of a noisy count and the speed of its fall, by a filter that forgets within `memory` seconds."""

    memory: float
    level: float = attrs.field(default=0.0, init=False)
    fall: float = attrs.field(default=0.0, init=False)
    latest: float = attrs.field(default=0.0, init=False)
    _at: float = attrs.field(default=-math.inf, init=False)

    def restart(self, level: float, now: float) -> None:
        """The count starts from a new level, its speed stays what it was, unless that is long ago."""
        self.fall *= math.exp(-max(0.0, now - self._at) / (10 * self.memory))
        self.level, self.latest, self._at = level, level, now

    def follow(self, level: float, now: float) -> None:
        """Take in a new reading."""
        passed = max(0.0, now - self._at)
        kept = math.exp(-passed / self.memory)
        expected = self.level - self.fall * passed
        miss = level - expected
        self.level, self.latest, self._at = expected + (1 - kept * kept) * miss, level, now
        if passed:
            self.fall -= (1 - kept) ** 2 / passed * miss

    def at(self, now: float) -> float:
        """The level at `now`: the lower of the filter's and the latest reading, carried on."""
        return min(self.level, self.latest) - max(0.0, self.fall) * max(0.0, now - self._at)


@attrs.define(eq=False)
class Quota:
    """What the service says is left of its own limit, for all who share the address, and how fast we may use it.

    The service counts in windows that end at a time it tells. Others' use shows as what is missing beyond our own
    departures. As long as they leave room for our full speed, nothing is held back. Otherwise what is left, less what
    they are expected to take, is spread over the rest of the window; at least half of what is left is ours to take, or
    whoever asks least politely would get everything.

    Args:
        pace: Our own pace, which says how fast we would go, and when our requests left.
    """

    pace: GCRA
    _clock: ServerClock = attrs.field(factory=ServerClock, init=False)
    # What was left, plus our departures until then: the same all through a window while we are alone.
    _ours: Trend = attrs.field(init=False)
    _ours_at_first: float = attrs.field(default=0.0, init=False)
    # The service's window: what it grants, how long it is, and its end, on the service's clock and on ours.
    _granted: int = attrs.field(init=False)
    _length: float = attrs.field(init=False)
    _reset: float = attrs.field(default=-math.inf, init=False)
    #: When the service's window ends, on our clock and at the latest.
    ends_at: float = attrs.field(default=-math.inf, init=False)
    _guessed: bool = attrs.field(default=True, init=False)
    _sent_at: float = attrs.field(default=-math.inf, init=False)
    _mark: float = attrs.field(default=-math.inf, init=False)
    _rate: float = attrs.field(default=math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self._granted, self._length = self.pace.limit, self.pace.window
        self._ours = Trend(self.pace.horizon / 10)

    @property
    def others(self) -> float:
        """What others who share the address use, in requests a second, as far as it can be told."""
        return max(0.0, self._ours.fall)

    def hear(self, reading: Reading, sent_at: float, received_at: float) -> None:
        """Take in an answer to a request that was sent at `sent_at`."""
        if reading.date is not None:
            self._clock.hear(reading.date, sent_at, received_at)
        if reading.reset is None or reading.remaining is None:
            return
        overtaken = sent_at < self._sent_at <= received_at  # by the answer to a later request
        ends_at = self._end(reading, received_at)
        if overtaken or ends_at is None:
            return
        ours = reading.remaining + self.pace.departures.until(sent_at)
        if self._guessed or abs(reading.reset - self._reset) > min(1.0, self._length / 4):
            self._open(reading.reset, received_at)
            self._ours_at_first = ours
            self._ours.restart(ours, sent_at)
        else:
            self._ours.follow(ours, sent_at)
        self._granted = reading.limit or self.pace.limit
        self._sent_at, self.ends_at = sent_at, ends_at

    def _open(self, reset: float, now: float) -> None:
        """The first answer from another window: the last one has ended, and the two ends tell how long one is."""
        before, self._reset = self._reset, reset
        ended_at = self.ends_at - self._length if self._guessed else self.ends_at
        self._guessed = False
        if reset > before > 0 and abs(now - ended_at) < self._length / 2:
            self._clock.hear_passed(before, now)
            self._length = min(reset - before, self.pace.horizon)

    def resumes_at(self, reading: Reading, received_at: float) -> float | None:
        """When to try again after a refusal, as far as the answer says so."""
        end = None if reading.remaining else self._end(reading, received_at)
        if end is None and reading.retry_after:
            end = received_at + reading.retry_after
        if end is None and reading.retry_date is not None:
            end = self._clock.local(reading.retry_date)
        return None if end is None or not received_at < end < math.inf else min(end, received_at + self.pace.horizon)

    def ready_at(self, now: float) -> float:
        """When the next departure may happen as far as the service is concerned: `now`, or a later time."""
        self._rate = rate = self.rate(now)
        if rate == math.inf:
            return now
        due = min(self._mark, now) + 1 / rate if rate > 0 else math.inf
        return not_before(now, min(due, self.ends_at))

    def depart(self, now: float) -> None:
        """Count one departure, at the speed that `ready_at` found at the same `now`."""
        rate = self._rate
        if self._mark > now:
            self._mark = now
        if rate > 0:
            self._mark += 1 / rate
        late = now - self._length / 200  # so much a late event loop may catch up on
        if self._mark < late:
            self._mark = late

    def spacing(self, now: float) -> float:
        """Seconds between two departures that the service has room for; infinite if none is left in its window."""
        rate = self.rate(now)
        return 1 / rate if rate == math.inf or rate * (self.ends_at - now) >= 1 else math.inf

    def rate(self, now: float) -> float:
        """How fast we may go now, in departures a second; infinitely fast if nothing holds us back."""
        if not self._guessed and now >= self.ends_at:
            self._turn(now)
        left = self.ends_at - now
        if not 0 < left <= self.pace.horizon * 1.001:
            return math.inf
        ours, others = self._ours.at(now), self.others
        available = ours - self.pace.departures.total
        full = 1 / self.pace.interval
        spare = max(0.99, self._granted - full * self._length)
        if self._ours_at_first - ours + others * left > spare:
            spare = 0.0
        if available + spare >= (full + others) * left:
            return math.inf
        return max(available - others * left, available / 2, 0.0) / left

    def _end(self, reading: Reading, received_at: float) -> float | None:
        """When the window ends, on our clock and at the latest; `None` if the answer does not say, or nonsense."""
        end = math.inf if reading.reset is None else self._clock.local(reading.reset)
        if not 0 < end - received_at <= 2 * self.pace.horizon:
            return None
        return min(end, received_at + self.pace.horizon)

    def _turn(self, now: float) -> None:
        """The window has ended: until the service says otherwise, the next one is like it."""
        if now - self.ends_at >= self._length:
            return
        self._guessed = True
        self.ends_at += self._length
        self._ours_at_first = float(self._granted + self.pace.departures.total)
        self._ours.restart(self._ours_at_first, now)
