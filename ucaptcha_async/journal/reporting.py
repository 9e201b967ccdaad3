"""The half that all journals share: reports become changes of the ledger."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self, cast

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.json_values import JSON

from .base import Journal
from .ledger import Abandoned, Accepted, Begin, Change, Finished, Forgotten, Lost, Refused, Released, TakeUp, Uncertain
from .records import Claim, Entry, Intent, State, Total, added_up, checked_intent, clean


class Reporting(Journal):
    """The half that all journals share."""

    def __init__(self, *, store_solutions: bool = False) -> None:
        if not isinstance(store_solutions, bool):  # "no" would let secrets into a file
            raise wrong("store_solutions", store_solutions, "True or False", ConfigurationError)
        self.store_solutions = store_solutions

    @abstractmethod
    async def _write(self, change: Change) -> object:
        """Apply a change, durably."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def begin(self, intent: Intent, *, resubmit: bool = False) -> Claim:
        """Ask to submit."""
        return cast("Claim", await self._write(Begin(checked_intent(intent), resubmit)))

    async def accepted(self, submit_id: str, task_id: str) -> None:
        """Record the task's id."""
        await self._write(Accepted(submit_id, clean(task_id)))

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
        """Record the end; whether this report was the first."""
        if state not in (State.SOLVED, State.FAILED):
            raise wrong("state", state, "State.SOLVED or State.FAILED", ConfigurationError)
        change = Finished(
            submit_id,
            state,
            clean(task_id),
            str(cost) if cost is not None and cost.is_finite() else None,
            clean(error_code),
            float(solve_time) if solve_time is not None and math.isfinite(solve_time) else None,
            _serialised(solution) if self.store_solutions and state is State.SOLVED else None,
        )
        del solution  # a secret, not to be found in the traceback of what the next line may raise
        return cast("bool", await self._write(change))

    async def uncertain(self, submit_id: str) -> None:
        """Record that no answer was read."""
        await self._write(Uncertain(submit_id))

    async def lost(self, submit_id: str) -> None:
        """Record that the service does not know the task any more."""
        await self._write(Lost(submit_id))

    async def refused(self, submit_id: str, error_code: str | None = None) -> None:
        """Record that the service did not take it."""
        await self._write(Refused(submit_id, clean(error_code)))

    async def released(self, submit_id: str) -> None:
        """Record that it was never sent."""
        await self._write(Released(submit_id))

    async def abandoned(self, submit_id: str) -> None:
        """Record that the wait was given up here."""
        await self._write(Abandoned(submit_id))

    async def take_up(self, entry: Entry) -> Entry | None:
        """Become answerable for an open entry."""
        return cast("Entry | None", await self._write(TakeUp(entry.submit_id)))

    async def forget(self, submit_id: str) -> bool:
        """Give up a row by hand."""
        return cast("bool", await self._write(Forgotten(submit_id)))

    async def totals(self, account: str | None = None) -> list[Total]:
        """Counts and costs by type and state."""
        return added_up([(entry.type, entry.state, entry.cost, 1) async for entry in self.entries(account=account)])

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} belongs to one process and cannot be pickled")


def _serialised(solution: Mapping[str, JSON] | None) -> str | None:
    """A solution as JSON; None for what is none, so that an odd solution cannot lose the news that it was paid."""
    try:
        return None if solution is None else json.dumps(dict(solution))
    except (TypeError, ValueError, RecursionError):
        return None
