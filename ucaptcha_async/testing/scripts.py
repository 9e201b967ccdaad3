"""Which request meets which fault: by a script, or at random from a seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import attrs

from .faults import Amend, Delay, Drop, Encoded, Extra, Fault, Reword, Truncated

ENDPOINTS = ("createTask", "getTaskResult", "getBalance", "feedbackTask")


@attrs.define(eq=False)
class _Script:
    endpoint: str
    steps: list[Fault]
    task_id: str | None
    task_type: str | None
    used: int = 0

    def matches(self, endpoint: str, task_id: str | None, task_type: str | None) -> bool:
        return (
            bool(self.steps)
            and self.endpoint in (endpoint, "*")
            and self.task_id in (None, task_id)
            and self.task_type in (None, task_type)
        )

    def take(self) -> Fault:
        step = self.steps[0]
        self.used += 1
        if step.times is not None and self.used >= step.times:
            self.steps.pop(0)
            self.used = 0
        return step


def _as_pairs(rates: Iterable[tuple[Fault, float]]) -> tuple[tuple[Fault, float], ...]:
    return tuple(rates)


def _check_rates(owner: object, attribute: object, value: tuple[tuple[Fault, float], ...]) -> None:
    if any(rate < 0 for _, rate in value) or sum(rate for _, rate in value) > 1 + 1e-9:
        raise ValueError("rates must not be negative and must add up to at most 1")


@attrs.frozen(kw_only=True)
class FaultRates:
    """Faults at random, from a seed.

    Attributes:
        rates: Pairs of a fault and the share of requests that it meets; the shares add up to at most 1.
        seed: The seed.
        endpoints: The endpoints that are met.
    """

    rates: tuple[tuple[Fault, float], ...] = attrs.field(converter=_as_pairs, validator=_check_rates)
    seed: int = 0
    endpoints: tuple[str, ...] = ENDPOINTS


class Faults:
    """The faults that wait for requests, and a count of those that met one.

    Args:
        rates: Faults at random.
        endpoints: The endpoints that there are.

    Attributes:
        fired: How often each class of fault met a request.
    """

    def __init__(self, rates: FaultRates | None = None, endpoints: Iterable[str] = ENDPOINTS) -> None:
        self.fired: Counter[str] = Counter()
        self._endpoints = tuple(endpoints)
        self._scripts: list[_Script] = []
        self.set_rates(rates)

    def set_rates(self, rates: FaultRates | None) -> None:
        """Set the faults that come at random; None for no more of them."""
        self._rates = rates
        self._rng = random.Random(f"{rates.seed if rates else 0}:faults")

    def script(self, endpoint: str, *faults: Fault, task_id: str | None = None, task_type: str | None = None) -> None:
        """Let the next requests that match meet these faults, one after the other.

        Args:
            endpoint: The endpoint, for example `getTaskResult`, or `*` for any.
            faults: The faults in their order; each is met `times` times.
            task_id: Only requests about this task.
            task_type: Only requests about tasks of this type, by the name that was sent.
        """
        if endpoint not in (*self._endpoints, "*"):
            raise ValueError(f"no endpoint {endpoint!r}; there are {', '.join(self._endpoints)} and *")
        self._scripts.append(_Script(endpoint, list(faults), task_id, task_type))

    def clear(self) -> None:
        """Forget all faults that have not come yet."""
        self._scripts.clear()
        self.set_rates(None)

    @property
    def waiting(self) -> int:
        """How many scripted faults have not come to their end."""
        return sum(len(script.steps) for script in self._scripts)

    def pick(self, endpoint: str, task_id: str | None, task_type: str | None) -> Fault | None:
        """Return the fault that this request meets, if any."""
        if not self._scripts and self._rates is None:
            return None
        fault = self._scripted(endpoint, task_id, task_type) or self._random(endpoint)
        if fault is not None:
            self.fired[_label(fault)] += 1
        return fault

    def _scripted(self, endpoint: str, task_id: str | None, task_type: str | None) -> Fault | None:
        self._scripts = [script for script in self._scripts if script.steps]
        found = (script for script in self._scripts if script.matches(endpoint, task_id, task_type))
        script = next(found, None)
        return script.take() if script is not None else None

    def _random(self, endpoint: str) -> Fault | None:
        if self._rates is None or endpoint not in self._rates.endpoints:
            return None
        point = self._rng.random()
        for fault, rate in self._rates.rates:
            point -= rate
            if point < 0:
                return fault if endpoint in (fault.only or (endpoint,)) else None
        return None


_ALWAYS_PROCESSED = (Amend, Delay, Encoded, Extra, Reword, Truncated)


def _label(fault: Fault) -> str:
    name = type(fault).__name__
    if isinstance(fault, Drop):
        return f"{name}.{'before' if fault.before else 'during' if fault.during else 'after'}"
    return f"{name}.processed" if fault.processed and not isinstance(fault, _ALWAYS_PROCESSED) else name
