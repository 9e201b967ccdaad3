"""How long the local service takes to solve: distributions, drawn from a seeded generator."""

from __future__ import annotations

import math
import random
from typing import Protocol

import attrs


class SolveTime(Protocol):
    """Anything that draws a solve time in seconds from a generator."""

    def draw(self, rng: random.Random) -> float:
        """Draw one solve time, in seconds."""
        ...


@attrs.frozen
class Fixed:
    """Every solve takes the same time.

    Attributes:
        seconds: The solve time, in seconds.
    """

    seconds: float = attrs.field(validator=attrs.validators.ge(0))

    def draw(self, rng: random.Random) -> float:
        """Return `seconds`."""
        return self.seconds


@attrs.frozen
class LogNormal:
    """Solve times as they look in practice: never negative, with a long tail.

    Attributes:
        median: Half of the solves take less, in seconds.
        sigma: The spread, as the standard deviation of the logarithm; 0.5 puts 95 % of the solves under 2.3 medians.
    """

    median: float = attrs.field(validator=attrs.validators.gt(0))
    sigma: float = attrs.field(default=0.5, validator=attrs.validators.ge(0))

    def draw(self, rng: random.Random) -> float:
        """Draw one solve time, in seconds."""
        return self.median * math.exp(rng.gauss(0.0, self.sigma))


@attrs.frozen
class Mixture:
    """Groups of solves: some tasks are taken by a machine, some by people.

    Attributes:
        parts: Pairs of a weight and a distribution; the weights need not add up to one.
    """

    parts: tuple[tuple[float, SolveTime], ...] = attrs.field(validator=attrs.validators.min_len(1))

    def draw(self, rng: random.Random) -> float:
        """Choose a group by its weight, then draw from it, in seconds."""
        point = rng.random() * sum(weight for weight, _ in self.parts)
        for weight, part in self.parts:
            point -= weight
            if point < 0:
                return part.draw(rng)
        return self.parts[-1][1].draw(rng)


def parse_solve_time(text: str) -> SolveTime:
    """Read a distribution from text, as the command line gives it.

    `"8"` is always 8 s; `"12~0.5"` a lognormal with median 12 s and sigma 0.5; `"0.5*4~0.3+0.5*30~0.3"` a mixture.

    Raises:
        ValueError: If the text has none of these forms.
    """
    groups = text.split("+")
    if len(groups) == 1 and "*" not in text:
        return _single(text)
    pairs = (group.split("*", 1) for group in groups)
    return Mixture(tuple((float(weight), _single(rest)) for weight, rest in pairs))


def _single(text: str) -> SolveTime:
    median, spread, sigma = text.partition("~")
    return LogNormal(float(median), float(sigma)) if spread else Fixed(float(median))
