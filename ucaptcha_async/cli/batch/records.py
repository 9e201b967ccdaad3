"""How a job has ended, as a line of the output."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import attrs

from ucaptcha_async.cli.output import one_line
from ucaptcha_async.cli.single import token_of
from ucaptcha_async.errors import (
    AccountError,
    BudgetExceededError,
    ClientStateError,
    JournalError,
    SolutionError,
    SolveTimeoutError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.results import Outcome
from ucaptcha_async.tasks import Solution

from .source import Item

UNFINISHED = (AccountError, BudgetExceededError, ClientStateError, JournalError, SolveTimeoutError)
"""Errors that say nothing of the job: it stays to be done."""


@attrs.frozen(kw_only=True)
class Times:
    """When what happened to a job, Unix seconds; `None` if an earlier run knows.

    Attributes:
        submitted: When the service accepted its (last) task.
        known: When its end was known.
    """

    submitted: float | None
    known: float


def status_of(outcome: Outcome[Solution]) -> str:
    """How it ended.

    Returns:
        `solved`, `failed`, `uncertain`; or, if it has not ended, `open` (paid, and may still be solved) or `unsent`.
    """
    error = outcome.error
    if error is None:
        return "solved"
    if isinstance(error, UnsolvableError | TaskNotFoundError | SolutionError):
        return "failed"
    if error.task_id is not None and error.charged is not False:
        return "open"
    if error.charged is None:
        return "uncertain"
    return "unsent" if isinstance(error, UNFINISHED) else "failed"


def record(item: Item, outcome: Outcome[Solution], status: str, times: Times) -> dict[str, object]:
    """The line. Money is text, times are ISO 8601 in UTC, durations are seconds."""
    error = outcome.error
    return {
        "key": item.key,
        **item.place,
        "type": item.task.type,
        "status": status,
        "task_id": outcome.task_id,
        **(_solved(outcome.solution) if error is None else _failed(error)),
        "attempts": len(outcome.attempts),
        "from_journal": outcome.from_journal,
        "submitted_at": None if times.submitted is None else _iso(times.submitted),
        "ended_at": _iso(times.known),
    }


def _solved(solution: Solution) -> dict[str, object]:
    token = token_of(solution)
    more = len(solution.raw) > 1 or token is None
    return {
        "token": token,
        **({"solution": dict(solution.raw)} if more else {}),
        "cost": None if solution.cost is None else str(solution.cost),
        "solve_time": solution.solve_time,
        "polls": solution.polls,
    }


def _failed(error: UCaptchaError) -> dict[str, object]:
    paid: dict[str, object] = {}
    if isinstance(error, SolutionError):
        # Paid for, if not as promised: it is not thrown away.
        paid = {"solution": dict(error.raw) if isinstance(error.raw, Mapping) else error.raw}
        paid["cost"] = None if error.cost is None else str(error.cost)
    said = {
        "class": type(error).__name__,
        "code": error.error_code,
        "message": one_line(error.message),
        "charged": error.charged,
    }
    return {**paid, "error": said}


def _iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
