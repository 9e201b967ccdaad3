"""How many tokens to hold, from demand and lead time. Pure: no clock, no I/O, no event loop.

This is the base-stock policy of inventory theory. Every `get` orders a replacement, so that what is in stock plus what
is under way, less those who wait, stays at one level. A `get` is served at once if fewer `get`s than that level came
within the last lead time. With Poisson demand their number is Poisson distributed with mean `rate * lead time`, however
the lead times themselves are distributed (Palm's theorem).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import combinations

import attrs

MEMORY = 10_000
"""Times of `get` calls that are remembered, at the most."""

CHANGED = 12.0
"""Likelihood ratio (twice its logarithm) from which two spans of time count as of different demand.

By chance alone, one comparison in about 2,000 exceeds it.
"""

SHORTEST = 1.0
"""Seconds of the shortest span of time that is looked at: a few calls in a row are no rate."""

WASTE = 0.15
"""The most that may be expected to age out unused, as a share of what is bought."""

FADING = 300.0
"""Seconds after which an observed duration counts for 1/e of a new one."""

PRIOR = 3.0
"""Observations that what is believed at first counts for."""


def quantile(mean: float, share: float) -> int:
    """The least k with P(N <= k) >= `share`, for N with a Poisson distribution.

    Args:
        mean: The distribution's mean.
        share: A probability below 1.
    """
    if mean <= 0:
        return 0
    k = int(mean)
    term = math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))  # P(N = k)
    below, tail, part = 0.0, k, term
    while tail and part > 1e-18:
        part *= tail / mean
        tail -= 1
        below += part
    # Here `below` is P(N < k): walk down while k is not needed, or up until it is enough.
    while k and below >= share:
        k -= 1
        term *= (k + 1) / mean
        below -= term
    while below + term < share and term > 0:
        below += term
        k += 1
        term *= mean / k
    return k


def level(rate: float, lead_time: float, usable: float, service_level: float, ready: int) -> int:
    """How many tokens to have in stock and under way together.

    It is the least level that serves the share `service_level` of demand at once, unless that is more than `ready` in
    stock on average, or so many that more than the share `WASTE` would age out.

    Args:
        rate: Demand, in tokens per second.
        lead_time: Mean seconds from the start of a solve to the token in stock.
        usable: Mean seconds that a token can be handed out, from when it comes into the stock.
        service_level: The share of demand to serve at once, below 1.
        ready: The most tokens in stock, on average.
    """
    demand = rate * lead_time
    # A token that is ordered now is used by the level-th `get` from now on.
    in_time = quantile(rate * (lead_time + usable), WASTE)
    return min(quantile(demand, service_level) + 1, in_time, ready + math.ceil(demand))


@attrs.define(eq=False)
class Demand:
    """The times of `get` calls, and the rate that follows from them.

    The rate is that of the longest span of time up to now in which demand did not change, as far as one can tell: long
    spans give a steady estimate, and a change ends them.

    Args:
        began: When the observation began, in seconds of any monotonic clock.
    """

    began: float
    _times: list[float] = attrs.field(factory=list, init=False)

    @property
    def last(self) -> float | None:
        """When the last `get` came; `None` before the first."""
        return self._times[-1] if self._times else None

    def add(self, now: float) -> None:
        """A `get` comes."""
        self._times.append(now)
        if len(self._times) >= 2 * MEMORY:
            self.began = self._times[MEMORY - 1]
            del self._times[:MEMORY]

    def rate(self, now: float, shortest: float) -> float:
        """Demand in tokens per second.

        Args:
            now: The time.
            shortest: Seconds of the shortest span to look at; best one lead time. At least `SHORTEST`.
        """
        spans = self._spans(now, max(shortest, SHORTEST))
        counts = [len(self._times) - bisect_left(self._times, now - span) for span in spans]
        known = len(spans)
        for newer, whole in combinations(range(len(spans)), 2):
            if whole < known and _changed(
                counts[newer], spans[newer], counts[whole] - counts[newer], spans[whole] - spans[newer]
            ):
                known = whole
        return counts[known - 1] / spans[known - 1]

    def _spans(self, now: float, shortest: float) -> list[float]:
        """Spans up to now, each twice the one before, and the whole observation."""
        spans, observed = [shortest], now - self.began
        while spans[-1] * 2 < observed:
            spans.append(spans[-1] * 2)
        return [*spans, observed] if observed > shortest else spans


def _changed(count: int, span: float, earlier_count: int, earlier_span: float) -> bool:
    """Whether two counts of a Poisson process are unlikely to come from one rate (the likelihood-ratio test)."""
    rate = (count + earlier_count) / (span + earlier_span)
    ratio = sum(
        number * math.log(number / (rate * seconds))
        for number, seconds in ((count, span), (earlier_count, earlier_span))
        if number
    )
    return 2 * ratio > CHANGED


@attrs.define(eq=False)
class RecentMean:
    """The mean of what was observed of late, in seconds: what came long ago counts less.

    Args:
        mean: What is believed before anything is observed, seconds.
    """

    mean: float
    _weight: float = attrs.field(default=PRIOR, init=False)
    _at: float | None = attrs.field(default=None, init=False)

    def observe(self, now: float, seconds: float) -> None:
        """A duration is known."""
        if self._at is not None:
            self._weight *= math.exp(-max(0.0, now - self._at) / FADING)
        self._at = now
        self._weight += 1
        self.mean += (seconds - self.mean) / self._weight
