"""The journal's file. Synchronous: runs in a worker thread, one call at a time.

A batch costs a fixed number of SQLite steps, whatever its size: rows go in as one list of values and come out as one
JSON text. Each step lets go of the interpreter's lock and must win it back from a busy event loop, which can take
milliseconds; a step per row would let a loaded client outrun its journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from ucaptcha_async.errors import JournalError
from ucaptcha_async.json_values import JSON

from . import owners
from .ledger import Book, Change, Row, is_free
from .records import HOLDS_KEY, OPEN, Entry, State, Total, added_up, decimal_or_none, parsed, task_id_of

T = TypeVar("T")

APPLICATION_ID = 0x75436170  # "uCap"
VERSION = 1
BUSY_SLICE = 0.25
"""Seconds that one call waits for another process's lock: bounds how long a cancelled caller is held up."""

_PAGE = 500
_PRUNE = 10_000


def _words(states: Iterable[State]) -> str:
    return ", ".join(f"'{state}'" for state in sorted(states))


SCHEMA = f"""
CREATE TABLE submits (
    submit_id  TEXT PRIMARY KEY NOT NULL,
    account    TEXT NOT NULL,
    host       TEXT NOT NULL,
    key        TEXT,
    type       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ({_words(State)})),
    owner      TEXT,
    task_id    TEXT,
    cost       TEXT,
    error_code TEXT,
    solve_time REAL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    solution   TEXT,
    numeric_id INTEGER,
    context    TEXT
);
CREATE UNIQUE INDEX held_keys ON submits (account, key) WHERE key IS NOT NULL AND state IN ({_words(HOLDS_KEY)});
CREATE INDEX open_rows ON submits (account) WHERE state IN ({_words(OPEN)});
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""
_NEWER = {"numeric_id": "INTEGER", "context": "TEXT"}
"""Columns added to a file of the same version that an earlier release made; that release goes on to use the file."""

_TEXT = ("submit_id", "account", "host", "key", "type", "state", "owner", "task_id", "cost", "error_code")
_REAL = ("solve_time", "created_at", "updated_at")
_COLUMNS = (*_TEXT, *_REAL, "solution", "numeric_id", "context")
_STATES = {str(state): state for state in State}
# A hostile file may hold any type in any column; the casts leave only text, numbers and NULL. JSON has no infinity.
_NUMBER = "CASE WHEN abs(CAST({0} AS REAL)) < 1e300 THEN CAST({0} AS REAL) END"
_CASTS = ", ".join([*(f"CAST({c} AS TEXT)" for c in _TEXT), *(_NUMBER.format(c) for c in _REAL)])
_ROW = f"json_array({_CASTS}, CAST(solution AS TEXT), numeric_id IS 1, CAST(context AS TEXT))"
_BARE_ROW = f"json_array({_CASTS}, NULL, numeric_id IS 1, CAST(context AS TEXT))"

_BY_ID = f"SELECT json_group_array({_ROW}) FROM submits WHERE submit_id IN (SELECT value FROM json_each(?))"  # noqa: S608
_BY_KEY = f"""
SELECT json_group_array({_ROW}) FROM (
    SELECT submits.* FROM json_each(?) AS wanted CROSS JOIN submits
    ON account = json_extract(wanted.value, '$[0]') AND submits.key = json_extract(wanted.value, '$[1]')
    WHERE submits.key IS NOT NULL AND state IN ({_words(HOLDS_KEY)})
)
"""  # noqa: S608
_UPDATED = [c for c in _COLUMNS if c not in ("submit_id", "account", "host", "key", "type", "created_at")]
_DROP = "DELETE FROM submits WHERE submit_id IN (SELECT value FROM json_each(?))"


def _some(where: str) -> str:
    """Rows after a position, each with its own."""
    return f"""
SELECT json_group_array(json_array(position, {_BARE_ROW})) FROM (
    SELECT *, rowid AS position FROM submits WHERE rowid > ? AND {where} ORDER BY rowid LIMIT {_PAGE}
)
"""  # noqa: S608


_OPEN = _some(f"account = ? AND state IN ({_words(OPEN)})")
_LIST = _some("account IS ifnull(?, account) AND (? OR state IN (SELECT value FROM json_each(?)))")
_TOTALS = """
SELECT CAST(type AS TEXT), CAST(state AS TEXT), CAST(cost AS TEXT), count(*) FROM submits
WHERE account IS ifnull(?, account) GROUP BY 1, 2, 3
"""
_PRUNE_SOME = f"""
DELETE FROM submits WHERE rowid IN (
    SELECT rowid FROM submits WHERE updated_at < ? AND state NOT IN ({_words(OPEN)}) LIMIT {_PRUNE}
)
"""  # noqa: S608

_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_CORRUPT: "the file is corrupted",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk failed or is full",
}
_OF_THE_CHANGE = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
}
"""What SQLite answers where what is to be written is at fault. Everything else is the file's fault."""


class FileError(JournalError):
    """The file cannot be used now, whatever is to be written."""


class BusyError(FileError):
    """Another process holds the file's lock; the same call may succeed at once."""


class Store:
    """One process's connection to a journal file.

    From `open` to `close` it works on one file only. Whenever something else, or nothing, is found at its path or in
    place of a file beside it, each call fails before it has written or told anything, until that very file is back.

    Args:
        path: The file.
        synchronous: `"normal"` or `"full"`.
        wipe: Overwrite removed content with zeros, because it may be secret.
    """

    def __init__(self, path: Path, *, synchronous: str, wipe: bool) -> None:
        self.path = path
        self._synchronous = synchronous
        self._wipe = wipe
        self._db: sqlite3.Connection | None = None
        self._failed: sqlite3.Connection | None = None
        self._files: list[str] = []
        self._opened: list[tuple[int, int] | None] = []
        self._owner = owners.Owner(path)

    def open(self) -> None:
        """Connect, and mark the file as used by this process."""
        if sqlite3.sqlite_version_info < (3, 33):
            raise self.failure(f"it needs SQLite 3.33 or later; this is {sqlite3.sqlite_version}")
        self._mapped(self._open)

    def _open(self) -> None:
        self._create()
        found = _identity(str(self.path))
        self._db = self._connect()
        try:
            owners.sweep(self.path)
            self._owner.acquire()
        except OSError as error:
            raise self.failure(f"no lock file beside it: {error.strerror}") from None
        self._files = [str(self.path), f"{self.path}-wal", f"{self.path}-shm", str(self._owner.path)]
        self._opened = [found, *map(_identity, self._files[1:])]
        self._verify()

    def close(self) -> None:
        """Disconnect."""
        self._disconnect()
        self._forget_failed()
        self._opened = []
        self._owner.release()

    def commit(self, changes: Sequence[Change]) -> list[object]:
        """Apply changes in one transaction; or each in its own, if one of them cannot be written.

        Returns:
            For each change its answer, or the exception that concerns it alone. It is shorter if the file failed on
            the way.

        Raises:
            BusyError: Nothing was written; another process holds the lock.
            FileError: Nothing was written.
        """
        try:
            return self._guarded(lambda db: self._commit(db, changes))
        except FileError:
            raise
        except Exception as error:
            if len(changes) == 1:
                return [error]
        return self._commit_each(changes)

    def _commit_each(self, changes: Sequence[Change]) -> list[object]:
        answers: list[object] = []
        for change in changes:
            try:
                answers += self.commit([change])
            except FileError:
                if not answers:
                    raise
                break
        return answers

    def _commit(self, db: sqlite3.Connection, changes: Sequence[Change]) -> list[object]:
        db.execute("BEGIN IMMEDIATE")
        page = self._load(db, changes)
        now = time.time()
        answers = [_answer(change, page, now) for change in changes]
        self._save(db, page)
        return answers

    def _save(self, db: sqlite3.Connection, page: _Page) -> None:
        # In this order: what is removed or changed may give up the keys that new rows take, and never takes one.
        if page.dropped:
            db.execute(_DROP, (json.dumps(page.dropped),))
        rows = [_values(row) for row in page.changed.values() if row.submit_id in page.loaded]
        rows += [_values(row) for row in page.changed.values() if row.submit_id not in page.loaded]
        if rows:
            # Filled up with empty ones to a number for which the statement is at hand.
            size = 1 << (len(rows) - 1).bit_length()
            rows += [_NO_ROW] * (size - len(rows))
            db.execute(_save(size), list(chain.from_iterable(rows)))

    def _load(self, db: sqlite3.Connection, changes: Sequence[Change]) -> _Page:
        page = _Page(self._owner.token, self.path)
        names = list({change.holds for change in changes if change.holds is not None})
        found = _rows(db, _BY_ID, json.dumps([change.submit_id for change in changes]))
        if names:
            found += _rows(db, _BY_KEY, json.dumps(names))
        for values in found:
            page.load(values)
        return page

    def open_entries(self, after: int, account: str) -> tuple[int | None, list[Entry]]:
        """Some of what is open and worked on by nobody alive, and the position to go on from."""
        return self._guarded(lambda db: self._open_entries(_rows(db, _OPEN, after, account)))

    def _open_entries(self, found: Sequence[Sequence[Any]]) -> tuple[int | None, list[Entry]]:
        page = _Page(self._owner.token, self.path)
        rows = [_row(values) for _, values in found]
        free = [row for row in rows if row is not None and is_free(page, row)]
        entries = [row.entry(State.UNCERTAIN if row.state is State.INTENT else None) for row in free]
        return _end(found), entries

    def page(self, after: int, account: str | None, states: Iterable[State] | None) -> tuple[int | None, list[Entry]]:
        """Some rows after a position, and the position to go on from."""
        every, wanted = states is None, json.dumps(sorted(states or ()))
        return self._guarded(lambda db: self._entries(_rows(db, _LIST, after, account, every, wanted)))

    def _entries(self, found: Sequence[Sequence[Any]]) -> tuple[int | None, list[Entry]]:
        rows = [_row(values) for _, values in found]
        if None in rows:
            raise self.failure(f"row {found[rows.index(None)][0]} is unreadable")
        return _end(found), [row.entry() for row in rows if row is not None]

    def solution_for(self, account: str, key: str) -> Mapping[str, JSON] | None:
        """The stored solution under a key."""
        rows = [_row(values) for values in self._guarded(lambda db: _rows(db, _BY_KEY, json.dumps([[account, key]])))]
        return next((parsed(row.solution) for row in rows if row is not None), None)

    def totals(self, account: str | None) -> list[Total]:
        """Counts and costs by type and state."""
        rows = self._guarded(lambda db: db.execute(_TOTALS, (account,)).fetchall())
        if any(word not in _STATES for _, word, _, _ in rows):
            raise self.failure("it holds a state that this version does not know")
        return added_up((kind or "", _STATES[word], decimal_or_none(cost), n) for kind, word, cost, n in rows)

    def prune(self, before: float) -> int:
        """Remove some of the rows that ended before this wall time; 0 when there are none left."""
        return self._guarded(lambda db: self._prune(db, before))

    def _prune(self, db: sqlite3.Connection, before: float) -> int:
        db.execute("BEGIN IMMEDIATE")
        return db.execute(_PRUNE_SOME, (before,)).rowcount

    def failure(self, reason: str, kind: type[JournalError] = JournalError) -> JournalError:
        """An error that names the file, without its directory."""
        return kind(f"the journal {self.path.name!r} failed: {reason}")

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work on the file that was opened, and commit it if that file is still in its place."""
        return self._mapped(lambda: self._in_place(work))

    def _in_place(self, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._connected()
        result = work(db)
        self._verify()
        if db.in_transaction:
            db.execute("COMMIT")
        return result

    def _verify(self) -> None:
        """Refuse to go on with a file that others no longer see."""
        if not self._opened:
            raise self.failure("it is closed", FileError)
        for file, opened in zip(self._files, self._opened, strict=True):
            if _identity(file) != opened:
                raise self.failure(
                    f"{Path(file).name!r} was removed or replaced while it was open; put it back, or close the journal "
                    "and open it again",
                    FileError,
                )

    def _mapped(self, work: Callable[[], T]) -> T:
        """Turn what SQLite raises into our errors, and leave no transaction open."""
        try:
            return work()
        except sqlite3.Error as error:
            failure = self._translated(error)
        except OSError as error:
            failure = self.failure(error.strerror or "the file cannot be used", FileError)
        except (ValueError, TypeError, OverflowError, RecursionError):
            failure = self.failure("it holds data that cannot be read")
        finally:
            self._rolled_back()
        # Out here it has no context: the frames of the first error hold rows, which may hold solutions.
        raise failure

    def _translated(self, error: sqlite3.Error) -> JournalError:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return BusyError(f"the journal {self.path.name!r} is locked by another process")
        if code == 0 or code in _OF_THE_CHANGE:
            return self.failure(str(error))
        if code != sqlite3.SQLITE_FULL:
            self._disconnect()  # the next call starts afresh
        return self.failure(_REASONS.get(code, str(error)), FileError)

    def _rolled_back(self) -> None:
        if self._db is not None and self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._verify()
            db = self._connect()
            try:
                self._verify()
            except BaseException:
                db.close()
                raise
            self._db = db
            self._forget_failed()
        return self._db

    def _create(self) -> None:
        if not self.path.exists() and owners.sweep(self.path):
            raise self.failure("the file was removed while a process that still lives had it open; end that one first")
        # Only ever a new file: closing a descriptor of an existing one would drop the locks of this process on it.
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if not self.path.is_file():
                raise self.failure("it is not a regular file") from None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",  # never a new file
            uri=True,
            timeout=BUSY_SLICE,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        db.execute("PRAGMA trusted_schema = OFF")
        self._check(db)
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute(f"PRAGMA synchronous = {self._synchronous.upper()}")
        db.execute(f"PRAGMA secure_delete = {'ON' if self._wipe else 'OFF'}")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # so that the files beside it are there

    def _check(self, db: sqlite3.Connection) -> None:
        """Make the schema in an empty file; refuse a file of somebody else, or of a later version."""
        if self._marks(db) == (APPLICATION_ID, VERSION) and not _missing(db):
            return
        db.execute("BEGIN IMMEDIATE")
        application, version = self._marks(db)
        empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == APPLICATION_ID and version != VERSION:
            raise self.failure(f"its schema is version {version}; this library knows {VERSION}")
        if application != APPLICATION_ID and not empty:
            raise self.failure("it is a database of something else")
        if empty:
            for statement in SCHEMA.split(";\n"):
                db.execute(statement)
        for column in _missing(db):
            db.execute(f"ALTER TABLE submits ADD COLUMN {column} {_NEWER[column]}")
        db.execute("COMMIT")

    def _marks(self, db: sqlite3.Connection) -> tuple[int, int]:
        application: int = db.execute("PRAGMA application_id").fetchone()[0]
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return application, version

    def _disconnect(self) -> None:
        """Start afresh with the next call.

        Until there is another connection to the same file the old one stays: as long as it is open, no other file can
        get this one's identity.
        """
        if self._failed is None:
            self._failed, self._db = self._db, None
        elif self._db is not None:
            _close(self._db)
            self._db = None

    def _forget_failed(self) -> None:
        if self._failed is not None:
            _close(self._failed)
            self._failed = None


def _close(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        db.close()


def _identity(file: str) -> tuple[int, int] | None:
    """Which file stands at a path, if any."""
    try:
        found = os.stat(file)  # noqa: PTH116 - a path's object would cost as much again, with each commit
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _missing(db: sqlite3.Connection) -> list[str]:
    """The columns that were added since the first release, and that the file does not have yet."""
    known = {column[1] for column in db.execute("PRAGMA table_info(submits)")}
    return [column for column in _NEWER if column not in known]


class _Page(Book):
    """The rows that one batch is about."""

    def __init__(self, owner: str, path: Path) -> None:
        super().__init__(owner)
        self._path = path
        self._living: dict[str, bool] = {owner: True}
        self._unreadable: set[object] = set()
        self.loaded: set[str] = set()
        self.changed: dict[str, Row] = {}
        self.dropped: list[str] = []

    def load(self, values: Sequence[Any]) -> None:
        """Take in a row of the file."""
        row = _row(values)
        if row is None:
            self._unreadable |= {values[0], (values[1], values[3])}
        elif row.submit_id not in self.by_id:
            self.loaded.add(row.submit_id)
            super().put(row)

    def row(self, submit_id: str) -> Row | None:
        """The row with this id."""
        self._refuse_unreadable(submit_id)
        return super().row(submit_id)

    def holder(self, account: str, key: str) -> Row | None:
        """The row that holds the key."""
        self._refuse_unreadable((account, key))
        return super().holder(account, key)

    def _refuse_unreadable(self, name: object) -> None:
        if name in self._unreadable:
            raise JournalError(f"the journal {self._path.name!r} failed: a row is unreadable")

    def put(self, row: Row) -> None:
        """Keep the row, to be saved."""
        super().put(row)
        self.changed[row.submit_id] = row

    def drop(self, row: Row) -> None:
        """Remove the row."""
        super().drop(row)
        self.changed.pop(row.submit_id, None)
        if row.submit_id in self.loaded:
            self.loaded.remove(row.submit_id)
            self.dropped.append(row.submit_id)

    def alive(self, owner: str) -> bool:
        """Whether the process with this token lives."""
        if owner not in self._living:
            self._living[owner] = owners.alive(self._path, owner)
        return self._living[owner]


def _answer(change: Change, page: _Page, now: float) -> object:
    try:
        return change.apply(page, now)
    except JournalError as error:
        return error


def _rows(db: sqlite3.Connection, query: str, *parameters: object) -> list[list[Any]]:
    found: list[list[Any]] = json.loads(db.execute(query, parameters).fetchone()[0])
    return found


def _end(found: Sequence[Sequence[Any]]) -> int | None:
    return found[-1][0] if found else None


@cache
def _save(size: int) -> str:
    """Insert or change that many rows in one step, but for those without an id."""
    row = f"({', '.join('?' * len(_COLUMNS))})"
    changes = ", ".join(f"{name} = excluded.{name}" for name in _UPDATED)
    return f"""
INSERT INTO submits ({", ".join(_COLUMNS)})
SELECT * FROM (VALUES {", ".join([row] * size)}) WHERE column1 IS NOT NULL
ON CONFLICT (submit_id) DO UPDATE SET {changes}
"""  # noqa: S608


_values = attrgetter(*_COLUMNS)
_NO_ROW = (None,) * len(_COLUMNS)


def _row(values: Sequence[Any]) -> Row | None:
    """A row of the file, or None if it makes no sense."""
    submit_id, account, host, key, kind, word, owner, task_id, cost, code, seconds, created, updated, *more = values
    solution, numeric, context = more
    state = _STATES.get(word)
    if state is None or submit_id is None or account is None:
        return None
    end = (owner, task_id_of(task_id, numeric), cost, code, seconds, created or 0.0, updated or 0.0, solution, context)
    return Row(submit_id, account, host or "", key, kind or "", state, *end)
