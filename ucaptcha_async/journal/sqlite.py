"""A journal in a SQLite file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar, TypeVarTuple, Unpack

import anyio

from ucaptcha_async.checks import Seconds, seconds, wrong
from ucaptcha_async.errors import ClientStateError, ConfigurationError
from ucaptcha_async.json_values import JSON

from .ledger import Change
from .records import Entry, State, Total
from .reporting import Reporting
from .store import BusyError, Store
from .threads import Job
from .writer import Writer

T = TypeVar("T")
A = TypeVarTuple("A")


class SQLiteJournal(Reporting):
    """A [`Journal`][ucaptcha_async.journal.Journal] in a SQLite file, which several processes may share.

    Durability: what a method has reported as done survives the death of the process, however it dies. With
    `synchronous="full"` it also survives a loss of power, at the price of one flush of the disk for each commit.

    The file (mode 0600; while in use with `-wal`, `-shm` and, for each process, an `-owner-…` file beside it) belongs
    on a local disk. Open it in the process that uses it, not before a fork.

    If one of these files is removed or replaced while it is open, every call raises `JournalError`, before anything is
    sent, until that very file is back or the journal has been closed and opened again. Reports that are kept meanwhile
    are never written to another file.

    A commit is made by whichever caller finds none under way, for all who wait: there is no background task, and no
    thread is taken while nothing is written.

    Args:
        path: The file; created if it does not exist.
        store_solutions: Keep solutions, so that finished keys are answered with them. They are secrets.
        synchronous: `"normal"` or `"full"`, see above.
        patience: How long to wait for another process's lock on the file, seconds.

    Raises:
        ConfigurationError: An argument is wrong.

    Example:
        ```python
        from ucaptcha_async import AsyncClient, SQLiteJournal

        client = AsyncClient(journal=SQLiteJournal("paid.sqlite"))
        ```
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        store_solutions: bool = False,
        synchronous: Literal["normal", "full"] = "normal",
        patience: Seconds = 5.0,
    ) -> None:
        super().__init__(store_solutions=store_solutions)
        self.path = _path(path)
        if synchronous not in ("normal", "full"):
            raise wrong("synchronous", synchronous, '"normal" or "full"', ConfigurationError)
        self._patience = seconds("patience", patience)
        # Absolute, because the process may change its directory while the journal is open.
        self._store = Store(self.path.absolute(), synchronous=synchronous, wipe=store_solutions)
        self._writer: Writer | None = None
        self._opened = 0
        self._moving: anyio.Event | None = None
        self._pid = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<SQLiteJournal {self.path.name!r}>"

    async def open(self) -> None:
        """Get ready. Counted: as many `aclose` calls end it.

        Raises:
            JournalError: The file cannot be used.
        """
        await self._still()
        if not self._opened:
            with self._move():
                await self._start()
        self._opened += 1

    async def _start(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)
        self._pid = os.getpid()
        try:
            await self._patiently(self._store.open)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._store.close)
            raise
        self._writer = Writer(self._store.commit, self._limiter, self._lock, self._patience)

    async def aclose(self) -> None:
        """Write what is still kept in memory and, with the last call, close.

        Raises:
            JournalError: Reports could not be written.
        """
        await self._still()
        self._opened = max(0, self._opened - 1)
        writer = None if self._opened else self._writer
        if writer is not None:
            with self._move(), anyio.CancelScope(shield=True):
                await self._stop(writer)

    async def _stop(self, writer: Writer) -> None:
        self._writer = None
        interruption: BaseException | None = None
        lost: int | None = None
        try:
            while lost is None:
                try:
                    lost = await writer.drain()
                except anyio.get_cancelled_exc_class() as cancelled:  # asyncio's own, which no shield keeps out
                    interruption = cancelled
        finally:
            await self._in_thread(self._store.close)
        if lost:
            raise self._store.failure(f"{lost} reports could not be written")
        if interruption is not None:
            raise interruption

    async def _still(self) -> None:
        """Wait while another task opens or closes."""
        while self._moving is not None:
            await self._moving.wait()

    @contextmanager
    def _move(self) -> Iterator[None]:
        self._moving = moving = anyio.Event()
        try:
            yield
        finally:
            self._moving = None
            moving.set()

    async def _write(self, change: Change) -> object:
        return await self._ready().write(change)

    def _ready(self) -> Writer:
        if self._writer is None:
            raise ClientStateError("the journal is not open")
        if self._pid != os.getpid():
            raise ClientStateError("the journal was opened by another process, before a fork")
        return self._writer

    async def _in_thread(self, work: Callable[[Unpack[A]], T], *args: *A) -> T:
        job = Job(lambda: work(*args), self._lock)
        interruption = await job.through(self._limiter)
        if interruption is not None:
            raise interruption
        return job.result()

    async def _patiently(self, work: Callable[[Unpack[A]], T], *args: *A) -> T:
        """Run in a thread, again and again while another process holds the lock."""
        deadline = anyio.current_time() + self._patience
        while True:
            try:
                return await self._in_thread(work, *args)
            except BusyError:
                if anyio.current_time() >= deadline:
                    raise

    async def open_entries(self, account: str) -> list[Entry]:
        """What is open and not worked on by a living process, oldest first."""
        after: int | None = -1
        entries: list[Entry] = []
        while after is not None:
            self._ready()
            after, some = await self._patiently(self._store.open_entries, after, account)
            entries += some
        return entries

    async def solution_for(self, account: str, key: str) -> Mapping[str, JSON] | None:
        """The stored solution of a finished job."""
        self._ready()
        return await self._patiently(self._store.solution_for, account, key)

    async def entries(
        self, *, account: str | None = None, states: Collection[State] | None = None
    ) -> AsyncIterator[Entry]:
        """All rows, oldest first, without their solutions. Reads some hundred at a time."""
        after: int | None = -1
        wanted = None if states is None else list(states)
        while after is not None:
            self._ready()
            after, page = await self._patiently(self._store.page, after, account, wanted)
            for entry in page:
                yield entry

    async def totals(self, account: str | None = None) -> list[Total]:
        """Counts and costs by type and state."""
        self._ready()
        return await self._patiently(self._store.totals, account)

    async def prune(self, before: float) -> int:
        """Remove rows that have ended and were last changed before this wall time (Unix seconds)."""
        removed = 0
        while True:
            self._ready()
            some = await self._patiently(self._store.prune, before)
            if not some:
                return removed
            removed += some


def _path(path: str | os.PathLike[str]) -> Path:
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str) or not name or "\0" in name or name == ":memory:":
        raise wrong("path", path, "the path of a file (for a journal in memory: MemoryJournal)", ConfigurationError)
    return Path(name)
