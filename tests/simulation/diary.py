"""A journal between whose steps a process may die, and whose file may vanish for a while."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import Any, Protocol

import anyio

from ucaptcha_async import JournalError
from ucaptcha_async.journal import Claim, Entry, Intent, MemoryJournal, State


class Writer(Protocol):
    """The process, as its journal knows it."""

    dead: bool
    unwritten: list[Decimal]

    def writes(self, name: str, *, done: bool) -> None:
        """A step of the journal is about to be, or has been, written. The process may die of it."""
        ...

    def journal_is_gone(self) -> bool:
        """Whether the journal's file has vanished."""
        ...

    def began(self, claim: Claim) -> None:
        """A row was given to the call that runs now."""
        ...


class Diary:
    """A journal in memory for one process. What a dead process writes is not written.

    While the file is away, nothing can be written either: a claim is refused, and a report fails and is written later.
    """

    def __init__(self, journal: MemoryJournal, writer: Writer) -> None:
        self.journal = journal
        self._writer = writer
        self._kept: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    async def open(self) -> None:
        """Get ready."""
        await self.journal.open()

    async def aclose(self) -> None:
        """Let go."""
        if not self._writer.dead:
            await self._catch_up()
            await self.journal.aclose()

    async def _catch_up(self) -> None:
        """Write what could not be written before."""
        kept, self._kept = self._kept, []
        for name, arguments, details in kept:
            await getattr(self.journal, name)(*arguments, **details)

    async def _step(self, name: str, *arguments: Any, **details: Any) -> Any:
        if not self._writer.dead:
            self._writer.writes(name, done=False)
        if self._writer.dead:
            if name in ("begin", "take_up"):
                await anyio.sleep_forever()
            return None
        if self._writer.journal_is_gone():
            if name not in ("begin", "take_up"):
                self._kept.append((name, arguments, details))
            self._writer.writes(f"{name}_in_vain", done=True)
            raise JournalError("the journal's file has vanished")
        await self._catch_up()
        result = await getattr(self.journal, name)(*arguments, **details)
        if name == "begin":
            self._writer.began(result)
        self._writer.writes(name, done=True)
        return result

    async def begin(self, intent: Intent, *, resubmit: bool = False) -> Claim:
        """Ask to submit."""
        return await self._step("begin", intent, resubmit=resubmit)  # type: ignore[no-any-return]

    async def accepted(self, submit_id: str, task_id: str) -> None:
        """Record the task's id."""
        await self._step("accepted", submit_id, task_id)

    async def finished(self, submit_id: str, state: Any, **details: Any) -> bool:
        """Record the end. The client has counted its cost by now."""
        cost = details.get("cost") or Decimal(0)
        self._writer.unwritten.append(cost)
        first: bool = await self._step("finished", submit_id, state, **details)
        if not self._writer.dead:
            self._writer.unwritten.remove(cost)
        return first

    async def uncertain(self, submit_id: str) -> None:
        """Record that no answer was read."""
        await self._step("uncertain", submit_id)

    async def lost(self, submit_id: str) -> None:
        """Record that the service does not know the task any more."""
        await self._step("lost", submit_id)

    async def refused(self, submit_id: str, error_code: str | None = None) -> None:
        """Record that the service did not take it."""
        await self._step("refused", submit_id, error_code)

    async def released(self, submit_id: str) -> None:
        """Record that it was never sent."""
        await self._step("released", submit_id)

    async def abandoned(self, submit_id: str) -> None:
        """Record that nobody waits any more."""
        await self._step("abandoned", submit_id)

    async def take_up(self, entry: Entry) -> Entry | None:
        """Become answerable for an open entry."""
        return await self._step("take_up", entry)  # type: ignore[no-any-return]

    async def open_entries(self, account: str) -> list[Entry]:
        """What is open and worked on by nobody alive."""
        return await self.journal.open_entries(account)

    async def forget(self, submit_id: str) -> bool:
        """Give up a row by hand."""
        return await self.journal.forget(submit_id)

    async def solution_for(self, account: str, key: str) -> Any:
        """The stored solution of a finished piece of work."""
        return await self.journal.solution_for(account, key)

    def entries(self, *, account: str | None = None, states: Collection[State] | None = None) -> Any:
        """All rows."""
        return self.journal.entries(account=account, states=states)

    async def totals(self, account: str | None = None) -> Any:
        """Counts and costs."""
        return await self.journal.totals(account)

    async def prune(self, before: float) -> int:
        """Remove old rows."""
        return await self.journal.prune(before)
