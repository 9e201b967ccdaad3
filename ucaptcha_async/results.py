"""What you get: one task's state, and the outcome of each task of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import attrs

from .errors import Attempt, UCaptchaError
from .json_values import JSON
from .secrecy import OwnCopy, SecretMapping, hidden
from .tasks import Solution, Task


class Status(StrEnum):
    """The state of a task. Words that are not listed here are kept as plain text and count as pending.

    Source: docs/api/overview, docs/api/ucaptcha/get-task-result.
    """

    IDLE = "idle"
    """Created, not yet taken by a provider."""
    PROCESSING = "processing"
    """Being solved."""
    READY = "ready"
    """Solved."""
    FAILED = "failed"
    """Not solved, and refunded."""


class SelectionMode(StrEnum):
    """How the service chooses a provider for a task. Nothing is sent unless one is chosen.

    Source: docs/api/ucaptcha/create-task.
    """

    AUTO_CHEAPEST = "autoCheapest"
    """Price before speed (speed weight 10 of 100)."""
    AUTO_FASTEST = "autoFastest"
    """Speed before price (speed weight 90 of 100)."""
    AUTO_MOST_RELIABLE = "autoMostReliable"
    """Balanced (speed weight 50 of 100)."""
    PRIORITY = "priority"
    """The same as `AUTO_MOST_RELIABLE` at this service."""


@attrs.frozen(kw_only=True)
class TaskResult(OwnCopy):
    """The state of one task, as one `getTaskResult` told it. Source: docs/api/ucaptcha/get-task-result.

    Attributes:
        status: One of [`Status`][ucaptcha_async.Status], or a word that the library does not know yet.
        task_id: The task's id.
        solution: The solution, if `ready`.
        cost: What it cost, USD, if the service said.
        solve_time: How long the service took, seconds, if it said.
        error_code: Why it failed, if `failed`.
        error_description: The same in words.
        raw: The whole answer as it was received. Its `repr` shows the names only.

    Example:
        ```python
        from ucaptcha_async import Status, TaskResult

        result = TaskResult(status="processing")
        assert result.pending
        assert result.status == Status.PROCESSING
        ```
    """

    status: str
    task_id: str | None = None
    solution: Solution | None = None
    cost: Decimal | None = None
    solve_time: float | None = None
    error_code: str | None = None
    error_description: str | None = None
    raw: Mapping[str, JSON] = attrs.field(factory=SecretMapping, converter=hidden, repr=False, hash=False)

    @property
    def ready(self) -> bool:
        """Whether the task is solved."""
        return self.status == Status.READY

    @property
    def failed(self) -> bool:
        """Whether the task has ended without a solution; the charge is refunded automatically."""
        return self.status == Status.FAILED

    @property
    def pending(self) -> bool:
        """Whether the task has not ended; unknown words count as pending."""
        return not (self.ready or self.failed)

    def __reduce__(self) -> NoReturn:
        # Its `raw` is an answer as it came: it may repeat the request, API key included.
        raise TypeError("a TaskResult holds an answer as it was received and is not pickled; pickle its solution")


S_co = TypeVar("S_co", bound=Solution, covariant=True)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Outcome(Generic[S_co]):
    """How one task of a batch ended: with a solution or with an error.

    It can be pickled, and then holds the token; its task is pickled without its proxy's password
    (see [`Task.without_password`][ucaptcha_async.Task.without_password]).

    Attributes:
        index: The task's place in the input, from 0.
        task: The task itself.
        key: Your own key for it, if the batch has keys.
        attempts: Each `createTask` that was made for it, in order.
        from_journal: Whether it was taken from the journal instead of being submitted now.
    """

    index: int
    task: Task[S_co]
    _result: S_co | UCaptchaError = attrs.field(alias="result")
    key: str | None = None
    attempts: tuple[Attempt, ...] = ()
    from_journal: bool = False

    @property
    def solution(self) -> S_co:
        """The solution.

        Raises:
            UCaptchaError: The task ended with this error instead.
        """
        if isinstance(self._result, UCaptchaError):
            raise self._result
        return self._result

    @property
    def error(self) -> UCaptchaError | None:
        """What went wrong, or `None`."""
        return self._result if isinstance(self._result, UCaptchaError) else None

    @property
    def ok(self) -> bool:
        """Whether there is a solution."""
        return self.error is None

    @property
    def task_id(self) -> str | None:
        """The id of the task that brought the solution, or that the error concerns."""
        return self._result.task_id

    def __repr__(self) -> str:
        key = f"key={self.key!r}, " if self.key is not None else ""
        return f"Outcome(index={self.index}, {key}{'solution' if self.ok else 'error'}={self._result!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {str(field.alias): getattr(self, field.name) for field in attrs.fields(Outcome)}
        return partial(Outcome, **fields | {"task": self.task.without_password()}), ()
