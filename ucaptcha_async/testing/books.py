"""The books of the local service: every request, charge and refund, so that a test can ask what happened."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal

import attrs

TOLERANCE = 1e-9
"""Seconds that sums of floating-point times may be off."""


@attrs.frozen
class RequestRecord:
    """One request that reached the service.

    Attributes:
        at: When it was read completely, on the clock of the event loop, in seconds.
        endpoint: The last part of the path, for example `createTask`.
        status: The HTTP status of the answer; 0 if the connection was cut without one.
        task_id: The id that it asked for or was given, if any.
        key: A fingerprint of the API key, never the key.
    """

    at: float
    endpoint: str
    status: int
    task_id: str | None
    key: str | None


@attrs.frozen
class Entry:
    """A charge or a refund.

    Attributes:
        at: When it was made, on the clock of the event loop, in seconds.
        task_id: The task that it belongs to.
        amount: The sum, in USD.
    """

    at: float
    task_id: str
    amount: Decimal


@attrs.frozen
class CallbackRecord:
    """One callback that was sent, or lost on purpose.

    Attributes:
        at: When, on the clock of the event loop, in seconds.
        task_id: The task that it was about.
        outcome: `delivered`, `failed` (no answer, or one that is not 2xx) or `lost` (not sent, as asked for).
    """

    at: float
    task_id: str
    outcome: str


@attrs.define(eq=False, kw_only=True)
class TaskRecord:
    """One task that the service accepted.

    Attributes:
        id: Its id, as the client knows it (numbers as text).
        type: `task.type` as it was sent.
        key: A fingerprint of the API key that paid for it.
        created_at: When it was accepted, on the clock of the event loop, in seconds.
        ready_at: When it is solved, or has failed.
        cost: The charge, in USD.
        error_code: Why it fails, or None if it is solved.
        website_url: `task.websiteURL`, to find one's own task again.
        website_key: `task.websiteKey`.
        selection_mode: `selectionMode` as it was sent.
        provider: `provider` as it was sent.
        immediate: Whether `createTask` itself gave the solution.
        refunded: Whether the charge was given back.
        polls: When it was asked for, on the clock of the event loop.
        first_delivered_at: When its outcome was first sent to the client.
        feedback: The `result` objects of `feedbackTask`.
    """

    id: str
    type: str
    key: str
    created_at: float
    ready_at: float
    cost: Decimal
    error_code: str | None = None
    website_url: str | None = None
    website_key: str | None = None
    selection_mode: str | None = None
    provider: str | None = None
    immediate: bool = False
    refunded: bool = False
    polls: list[float] = attrs.field(factory=list)
    first_delivered_at: float | None = None
    feedback: list[dict[str, object]] = attrs.field(factory=list)
    solution: dict[str, object] = attrs.field(factory=dict, repr=False)
    answer: str = attrs.field(default="token", repr=False)

    @property
    def code(self) -> str:
        """The one string that stands for the solution in callbacks."""
        return str(self.solution.get(self.answer, ""))

    def as_json(self) -> dict[str, object]:
        """Return all but the solution, as plain values."""
        fields = attrs.asdict(self, recurse=False, filter=attrs.filters.exclude("solution", "answer"))
        return {**fields, "cost": str(self.cost)}


class Books:
    """What the service saw and what it charged.

    All times are seconds on the clock of the event loop (`anyio.current_time()`), money is in USD. API keys and
    solutions are not in it.

    Attributes:
        requests: Every request in order of arrival; empty if the service was made with `books_detail=False`.
        tasks: Every accepted task by its id.
        charges: Every charge; empty if the service was made with `books_detail=False`.
        callbacks: Every callback that was sent or lost.
        charged: The sum of all charges.
        request_counts: The number of requests by endpoint.
        status_counts: The number of requests by HTTP status of the answer.
    """

    def __init__(self, *, detail: bool = True, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._detail = detail
        self._clock = clock
        self._times = array("d")
        self._times_by_key: dict[str, array[float]] = {}
        self._failing: list[tuple[float, int, TaskRecord]] = []
        self._refunds: list[Entry] = []
        self._refunded = Decimal(0)
        self._credit: dict[str, Decimal] = {}
        self._poll_gap: float | None = None
        self.requests: list[RequestRecord] = []
        self.tasks: dict[str, TaskRecord] = {}
        self.charges: list[Entry] = []
        self.callbacks: list[CallbackRecord] = []
        self.charged = Decimal(0)
        self.request_counts: Counter[str] = Counter()
        self.status_counts: Counter[int] = Counter()

    # What the service writes

    def note_request(self, at: float, endpoint: str, status: int, task_id: str | None, key: str | None) -> None:
        """Enter one request."""
        self._times.append(at)
        self.request_counts[endpoint] += 1
        self.status_counts[status] += 1
        if key is not None:
            self._times_by_key.setdefault(key, array("d")).append(at)
        if self._detail:
            self.requests.append(RequestRecord(at, endpoint, status, task_id, key))

    def note_task(self, task: TaskRecord) -> None:
        """Enter an accepted task and its charge."""
        self.tasks[task.id] = task
        self.charged += task.cost
        if self._detail:
            self.charges.append(Entry(task.created_at, task.id, task.cost))
        if task.error_code is not None:
            heapq.heappush(self._failing, (task.ready_at, len(self.tasks), task))

    def note_poll(self, task: TaskRecord, at: float) -> None:
        """Enter a poll of a task."""
        if task.polls:
            gap = at - task.polls[-1]
            self._poll_gap = gap if self._poll_gap is None else min(gap, self._poll_gap)
        task.polls.append(at)

    def settle(self) -> None:
        """Refund what has failed by now."""
        now = self._clock()
        while self._failing and self._failing[0][0] <= now:
            at, _, task = heapq.heappop(self._failing)
            self._refund(task, at)

    def _refund(self, task: TaskRecord, at: float) -> None:
        task.refunded = True
        self._refunded += task.cost
        self._refunds.append(Entry(at, task.id, task.cost))
        self._credit[task.key] = self._credit.get(task.key, Decimal(0)) + task.cost

    def take_credit(self, key: str) -> Decimal:
        """Return what was refunded to a key since the last call."""
        self.settle()
        return self._credit.pop(key, Decimal(0)) if self._credit else Decimal(0)

    # What a test reads

    @property
    def refunds(self) -> list[Entry]:
        """Every refund."""
        self.settle()
        return self._refunds

    @property
    def refunded(self) -> Decimal:
        """The sum of all refunds."""
        self.settle()
        return self._refunded

    @property
    def spent(self) -> Decimal:
        """Charges minus refunds."""
        return self.charged - self.refunded

    @property
    def total_requests(self) -> int:
        """The number of requests, whatever their answer."""
        return len(self._times)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The ids of all tasks that were accepted, and so charged."""
        return tuple(self.tasks)

    @property
    def delivered(self) -> tuple[str, ...]:
        """The ids of the tasks whose outcome was sent to the client."""
        return tuple(task.id for task in self.tasks.values() if task.first_delivered_at is not None)

    @property
    def paid_not_delivered(self) -> tuple[str, ...]:
        """The ids of the tasks that are paid for and whose solution was never sent to the client."""
        self.settle()
        tasks = self.tasks.values()
        return tuple(task.id for task in tasks if task.first_delivered_at is None and not task.refunded)

    def worst_window(self, window: float = 10.0, *, key: str | None = None) -> int:
        """Count the most requests in any window of `window` seconds, wherever it starts; its end is not in it.

        Args:
            window: The length of the window, in seconds.
            key: The fingerprint of an API key, to count only its requests.
        """
        return most_in_window(self._times if key is None else self._times_by_key.get(key, ()), window)

    def smallest_poll_gap(self) -> float | None:
        """Return the shortest time between two polls of one task, in seconds; None if none was polled twice."""
        return self._poll_gap

    def as_json(self, *, full: bool = False) -> dict[str, object]:
        """Return the books as plain values; money is text.

        Args:
            full: Add the lists of requests, tasks, charges, refunds and callbacks.
        """
        summary: dict[str, object] = {
            "requests": self.total_requests,
            "request_counts": dict(self.request_counts),
            "status_counts": {str(status): n for status, n in self.status_counts.items()},
            "worst_window": self.worst_window(),
            "worst_window_by_key": {key: self.worst_window(key=key) for key in self._times_by_key},
            "smallest_poll_gap": self.smallest_poll_gap(),
            "accepted": len(self.tasks),
            "delivered": len(self.delivered),
            "paid_not_delivered": len(self.paid_not_delivered),
            "polls": sum(len(task.polls) for task in self.tasks.values()),
            "charged": str(self.charged),
            "refunded": str(self.refunded),
            "spent": str(self.spent),
        }
        return {**summary, **self._lists()} if full else summary

    def _lists(self) -> dict[str, object]:
        return {
            "request_list": [attrs.asdict(record) for record in self.requests],
            "task_list": [task.as_json() for task in self.tasks.values()],
            "charge_list": _entries(self.charges),
            "refund_list": _entries(self.refunds),
            "callback_list": [attrs.asdict(record) for record in self.callbacks],
        }


def _entries(entries: Iterable[Entry]) -> list[dict[str, object]]:
    return [{"at": entry.at, "task_id": entry.task_id, "amount": str(entry.amount)} for entry in entries]


def most_in_window(times: Iterable[float], window: float) -> int:
    """Count the most of the given times in any half-open window, wherever it starts."""
    ordered = sorted(times)
    worst = start = 0
    for end, at in enumerate(ordered):
        while at - ordered[start] >= window - TOLERANCE:
            start += 1
        worst = max(worst, end - start + 1)
    return worst
