"""What a journal is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from decimal import Decimal
from typing import Literal, Protocol, runtime_checkable

from ucaptcha_async.json_values import JSON

from .records import Claim, Entry, Intent, State, Total


@runtime_checkable
class Journal(Protocol):
    """Where a client writes down what it is about to pay for, so that a crash loses nothing.

    Every method resolves when its effect is durable, and raises
    [`JournalError`][ucaptcha_async.JournalError] when it is not. `begin` that raises has written nothing, so nothing
    may be sent; a report (`accepted`, `finished`, …) that raises is kept in memory and written with the next one.

    Methods may be called by several clients, tasks and accounts at once, within one event loop.
    """

    async def open(self) -> None:
        """Get ready. Counted: as many `aclose` calls end it.

        Raises:
            JournalError: The store cannot be used.
        """
        ...

    async def aclose(self) -> None:
        """Write what is still kept in memory and, with the last call, close.

        Raises:
            JournalError: Something could not be written.
        """
        ...

    async def begin(self, intent: Intent, *, resubmit: bool = False) -> Claim:
        """Ask to submit. Only `ClaimKind.NEW` allows it.

        A cancelled `begin` leaves nothing behind; but what `resubmit` gave up stays given up.

        Args:
            intent: What is about to be sent.
            resubmit: Give up an `uncertain` row of the same key, and go ahead.

        Raises:
            JournalError: Nothing was written; do not send.
        """
        ...

    async def accepted(self, submit_id: str, task_id: str) -> None:
        """Record the task's id. Also right for a row that was reported `uncertain`."""
        ...

    async def finished(
        self,
        submit_id: str,
        state: Literal[State.SOLVED, State.FAILED],
        *,
        task_id: str | None = None,
        cost: Decimal | None = None,
        solve_time: float | None = None,
        error_code: str | None = None,
        solution: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Record the end.

        Args:
            submit_id: The row.
            state: `State.SOLVED` or `State.FAILED`.
            task_id: The task's id, where `accepted` was not reported before.
            cost: USD.
            solve_time: Seconds.
            error_code: The service's code of a failure.
            solution: What the service sent; ignored unless the journal stores solutions.

        Returns:
            Whether this was the first such report, so that its cost is counted once.
        """
        ...

    async def uncertain(self, submit_id: str) -> None:
        """Record that the request was sent and that no answer was read."""
        ...

    async def lost(self, submit_id: str) -> None:
        """Record that the service does not know the task any more, so that it is unknown whether it was charged.

        The row becomes `uncertain` and keeps its `task_id` and its key.
        """
        ...

    async def refused(self, submit_id: str, error_code: str | None = None) -> None:
        """Record that the service did not take the task. Its key is free again."""
        ...

    async def released(self, submit_id: str) -> None:
        """Record that the request was never sent: the intent is removed."""
        ...

    async def abandoned(self, submit_id: str) -> None:
        """Record that the wait was given up here. The row stays open, free to be resumed."""
        ...

    async def open_entries(self, account: str) -> list[Entry]:
        """What is open and not worked on by a living process, oldest first.

        The intents of dead processes show as `State.UNCERTAIN`: they may have been sent.
        """
        ...

    async def take_up(self, entry: Entry) -> Entry | None:
        """Become answerable for an open entry. `None`: another process was faster, or it has ended."""
        ...

    async def forget(self, submit_id: str) -> bool:
        """Give up a row by hand, which frees its key and removes its solution.

        Returns:
            `False` if it is being worked on, or holds no key any more.
        """
        ...

    async def solution_for(self, account: str, key: str) -> Mapping[str, JSON] | None:
        """The stored solution of a finished job."""
        ...

    def entries(self, *, account: str | None = None, states: Collection[State] | None = None) -> AsyncIterator[Entry]:
        """All rows, oldest first, without their solutions."""
        ...

    async def totals(self, account: str | None = None) -> list[Total]:
        """Counts and costs by type and state."""
        ...

    async def prune(self, before: float) -> int:
        """Remove rows that hold no paid work any more and were last changed before this wall time (Unix seconds).

        Solved rows go as well: their keys are free again.

        Returns:
            How many.
        """
        ...
