"""A journal in memory: for simulations and tests, and to name jobs within one process."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping

import anyio.lowlevel
import attrs

from ucaptcha_async.errors import ClientStateError
from ucaptcha_async.json_values import JSON

from .ledger import Begin, Book, Change, TakeUp, is_free
from .records import OPEN, Entry, State, parsed
from .reporting import Reporting


class _Book(Book):
    """The rows of one journal, or of several as processes share a file."""

    def __init__(self, shared: _Book | None = None) -> None:
        super().__init__()
        self.living: set[str] = set()
        if shared is not None:
            self.by_id, self.by_key, self.living = shared.by_id, shared.by_key, shared.living

    def alive(self, owner: str) -> bool:
        """Whether the journal with this token is open."""
        return owner in self.living


class MemoryJournal(Reporting):
    """A [`Journal`][ucaptcha_async.journal.Journal] that lives and dies with the process.

    It never leaves the event loop's thread, so that it works under virtual time.

    Args:
        store_solutions: Keep solutions, so that `solution_for` and finished keys can give them again.
        clock: Wall time in Unix seconds, for reproducible rows.

    Example:
        ```python
        from ucaptcha_async import AsyncClient, MemoryJournal

        client = AsyncClient(journal=MemoryJournal(store_solutions=True))
        ```
    """

    def __init__(self, *, store_solutions: bool = False, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store_solutions=store_solutions)
        self._clock = clock
        self._book = _Book()
        self._opened = 0

    def __repr__(self) -> str:
        return f"<MemoryJournal rows={len(self._book.by_id)}>"

    def another(self) -> MemoryJournal:
        """A second journal on the same rows, as a second process would have on the same file."""
        twin = MemoryJournal(store_solutions=self.store_solutions, clock=self._clock)
        twin._book = _Book(self._book)
        return twin

    def crash(self) -> None:
        """Die as a killed process does: nothing more is written, and the rows are left behind. `open` starts again."""
        self._book.living.discard(self._book.owner)
        self._opened = 0

    async def open(self) -> None:
        """Get ready."""
        await anyio.lowlevel.checkpoint()
        if not self._opened:
            self._book.owner = uuid.uuid4().hex
            self._book.living.add(self._book.owner)
        self._opened += 1

    async def aclose(self) -> None:
        """Let go of the rows with the last call."""
        self._opened = max(0, self._opened - 1)
        if not self._opened:
            self._book.living.discard(self._book.owner)
        await anyio.lowlevel.checkpoint()

    async def _write(self, change: Change) -> object:
        # Reports never yield, and claims yield before they are made, so that no cancellation comes between a change
        # and its answer.
        if isinstance(change, Begin | TakeUp):
            await anyio.lowlevel.checkpoint()
        if not self._opened:
            raise ClientStateError("the journal is not open")
        return change.apply(self._book, self._clock())

    async def open_entries(self, account: str) -> list[Entry]:
        """What is open and not worked on by a living process, oldest first."""
        await anyio.lowlevel.checkpoint()
        rows = [row for row in self._book.by_id.values() if row.account == account and row.state in OPEN]
        free = [row for row in rows if is_free(self._book, row)]
        return [row.entry(State.UNCERTAIN if row.state is State.INTENT else None) for row in free]

    async def solution_for(self, account: str, key: str) -> Mapping[str, JSON] | None:
        """The stored solution of a finished job."""
        await anyio.lowlevel.checkpoint()
        holder = self._book.holder(account, key)
        return None if holder is None else parsed(holder.solution)

    async def entries(
        self, *, account: str | None = None, states: Collection[State] | None = None
    ) -> AsyncIterator[Entry]:
        """All rows, oldest first."""
        for row in list(self._book.by_id.values()):
            if account in (None, row.account) and (states is None or row.state in states):
                await anyio.lowlevel.checkpoint()
                yield attrs.evolve(row.entry(), solution=None)

    async def prune(self, before: float) -> int:
        """Remove what ended before this wall time."""
        await anyio.lowlevel.checkpoint()
        old = [r for r in self._book.by_id.values() if r.state not in OPEN and r.updated_at < before]
        for row in old:
            self._book.drop(row)
        return len(old)
