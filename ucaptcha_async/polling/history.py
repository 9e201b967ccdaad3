"""What is remembered of solve times, per task type, and the plans made from it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from itertools import accumulate
from weakref import WeakKeyDictionary

import attrs

from .plans import ENOUGH, Plan, Sample, make_plan

WATCHED = 0.25  # share of the memory that may be watched at a time
FADING = 8  # halvings of the weight over the whole memory
TURNOVER = 0.04  # share of the memory that must be new before a plan is computed again
SETTINGS = 4  # plans kept per task type, for clients that share a memory and differ in their settings


@attrs.define(eq=False)
class SolveTimes:
    """A bounded, fading memory of how long solves take, per task type.

    Of many solves in flight at once only some are watched, chosen when they are accepted. Whoever remembers the latest
    to *finish* instead believes, at the end of a burst, that only slow ones exist.

    Args:
        memory: Observations kept per task type; half the weight lies on the newest eighth.
        kinds: Task types kept; the least recently used is forgotten.
    """

    memory: int = 100
    kinds: int = 64
    _histories: OrderedDict[str, History] = attrs.field(factory=OrderedDict, init=False, repr=False)

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

    def types(self) -> tuple[str, ...]:
        """The task types of which something is remembered."""
        return tuple(name for name, history in self._histories.items() if history.seen)


@attrs.define(eq=False)
class History:
    """The memory of one task type: what was seen, who is being watched, and the plans made from it."""

    memory: int
    seen: deque[tuple[int, float, float]] = attrs.field(init=False)
    # Weak, so that a solve that is given up needs no farewell.
    _watched: WeakKeyDictionary[object, tuple[int, float]] = attrs.field(factory=WeakKeyDictionary, init=False)
    _entered: int = attrs.field(default=0, init=False)
    _added: int = attrs.field(default=0, init=False)
    _plans: dict[tuple[float, float], tuple[int, Plan]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.seen = deque(maxlen=self.memory)

    def watch(self, watcher: object) -> bool:
        """Whether to watch a solve that was just accepted: not if enough of them are."""
        if len(self._watched) >= max(1.0, self.memory * WATCHED):
            return False
        self._entered += 1
        self._watched[watcher] = self._entered, 0.0
        return True

    def pending(self, watcher: object, age: float) -> None:
        """A watched solve is still pending at this age."""
        self._watched[watcher] = self._watched[watcher][0], age

    def leave(self, watcher: object) -> None:
        """Stop watching a solve of which nothing is learned."""
        self._watched.pop(watcher, None)

    def ready(self, watcher: object, low: float, high: float) -> None:
        """A watched solve took more than `low` and at most `high` seconds. It is remembered unless that is absurd."""
        number, _ = self._watched.pop(watcher)
        if math.isfinite(low) and math.isfinite(high) and high >= 0:
            self.seen.append((number, min(max(low, 0.0), high), high))
            self._added += 1

    def plan(self, interval: float, price: float) -> Plan:
        """The cheapest times to poll, computed again whenever enough is new."""
        made, plan = self._plans.get((interval, price)) or (0, Plan(interval, interval))
        if len(self.seen) >= ENOUGH and self._added - made > len(self.seen) * TURNOVER:
            plan = make_plan(self.samples(pending=made > 0), plan, price)
            self._plans[interval, price] = self._added, plan
            if len(self._plans) > SETTINGS:
                del self._plans[next(iter(self._plans))]
        return plan

    def samples(self, pending: bool = False) -> list[Sample]:
        """What is remembered, older ones with less weight; on request with the solves that are being watched."""
        rows = [*self.seen]
        if pending:
            # Of the newest the quick ones are known first, and would count for all.
            longest = max(high for _, _, high in self.seen)
            rows += [(number, age, math.inf) for number, age in self._watched.values() if 0 < age < longest]
        # By acceptance, not by finishing: in a burst the slow ones finish last.
        rows.sort()
        fade = 0.5 ** (FADING / self.memory)
        # The newest fade only when all of them are known.
        return [
            Sample(low, high, fade ** max(0, newer))
            for newer, (_, low, high) in zip(range(len(self.seen) - 1, -len(rows), -1), rows, strict=False)
        ]

    def quantile(self, q: float) -> float | None:
        """The weighted quantile of what is remembered, in seconds."""
        if not self.seen:
            return None
        ranked = sorted(((low + high) / 2, weight) for low, high, weight in self.samples())
        sums = list(accumulate(weight for _, weight in ranked))
        return ranked[min(bisect_right(sums, q * sums[-1]), len(ranked) - 1)][0]
