"""The journal's file: its form, who shares it, and what happens when it cannot be used."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import ucaptcha_async.journal
from ucaptcha_async.errors import ClientStateError, ConfigurationError, JournalError
from ucaptcha_async.journal import ClaimKind, Intent, SQLiteJournal, State, fingerprint, owners, store, writer
from ucaptcha_async.json_values import NumericId, wire_id

ACCOUNT = fingerprint("sk-marked-key", "api.example.com")


def intent(key: str | None = None) -> Intent:
    return Intent(account=ACCOUNT, host="api.example.com", type="RecaptchaV2TaskProxyless", key=key)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solves.db"


def query(path: Path, sql: str, *parameters: object) -> list[Any]:
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(sql, parameters).fetchall()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program holds the file's write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


def connection(journal: SQLiteJournal) -> sqlite3.Connection:
    db = journal._store._db
    assert db is not None
    return db


def with_pragma(journal: SQLiteJournal, pragma: str) -> None:
    connection(journal).execute(pragma)


# form


async def test_documented_schema(path: Path) -> None:
    """The file has the columns that the documentation lists, and the marks by which it is recognised."""
    async with SQLiteJournal(path):
        pass
    documented = re.findall(r"^\| ([`\w, ]+) \|", ucaptcha_async.journal.__doc__ or "", re.MULTILINE)[1:]
    names = [name.strip(" `") for cell in documented for name in cell.split(",")]

    assert names == [row[1] for row in query(path, "PRAGMA table_info(submits)")]
    assert [(0x75436170,)] == query(path, "PRAGMA application_id")
    assert [(1,)] == query(path, "PRAGMA user_version")


async def test_file_is_private(path: Path) -> None:
    """The file and its companions are readable by their owner only."""
    async with SQLiteJournal(path) as journal:
        await journal.begin(intent())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in companions(path)}

    assert 4 == len(modes)
    assert {0o600} == set(modes.values())


def companions(path: Path) -> list[Path]:
    return list(path.parent.iterdir())


async def test_nothing_is_left_beside_it(path: Path) -> None:
    """After the last close only the journal itself remains."""
    async with SQLiteJournal(path) as journal:
        await journal.begin(intent())

    assert [path] == companions(path)


async def test_database_refuses_a_second_holder(path: Path) -> None:
    """The file itself, not only this library, forbids two live rows of one key."""
    async with SQLiteJournal(path) as journal:
        await journal.begin(intent("a"))
        columns = "submit_id, account, host, key, type, state, created_at, updated_at"
        with pytest.raises(sqlite3.IntegrityError):
            query(path, f"INSERT INTO submits ({columns}) VALUES ('x', ?, 'h', 'a', 'T', 'intent', 0, 0)", ACCOUNT)
        with pytest.raises(sqlite3.IntegrityError):
            query(path, "UPDATE submits SET state = 'nonsense'")


async def test_api_key_is_not_in_the_file(path: Path) -> None:
    """The journal's files never hold the API key."""
    async with SQLiteJournal(path) as journal:
        claim = await journal.begin(intent("a"))
        await journal.accepted(claim.submit_id, "task-1")
        content = contents(path)

    assert b"task-1" in content
    assert b"sk-marked-key" not in content


def contents(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in companions(path))


async def test_forgotten_solution_leaves_the_file(path: Path) -> None:
    """A forgotten solution is overwritten, not merely unlinked."""
    async with SQLiteJournal(path, store_solutions=True) as journal:
        claim = await journal.begin(intent("a"))
        await journal.finished(claim.submit_id, State.SOLVED, solution={"token": "marked-token" * 2_000})
        assert await journal.forget(claim.submit_id)

    assert b"marked-token" not in contents(path)


async def test_old_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite that lacks what the journal needs is refused when it opens."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    with pytest.raises(JournalError, match=r"it needs SQLite 3\.33 or later"):
        await SQLiteJournal(path).open()


@pytest.mark.parametrize("wrong", ["", ":memory:", "a\0b", b"bytes", 3, None])
def test_impossible_paths(wrong: Any) -> None:
    """A path that names no file is refused, and memory is pointed to."""
    with pytest.raises(ConfigurationError, match="MemoryJournal"):
        SQLiteJournal(wrong)


def test_impossible_settings(path: Path) -> None:
    """Settings are checked before anything happens."""
    with pytest.raises(ConfigurationError, match="synchronous"):
        SQLiteJournal(path, synchronous="off")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="patience"):
        SQLiteJournal(path, patience=-1)
    with pytest.raises(ConfigurationError, match="store_solutions must be True or False; got str"):
        SQLiteJournal(path, store_solutions="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "level"), [("normal", 1), ("full", 2)])
async def test_durability(path: Path, word: Any, level: int) -> None:
    """The file is in WAL mode, flushed as asked."""
    async with SQLiteJournal(path, synchronous=word) as journal:
        assert [(level,)] == connection(journal).execute("PRAGMA synchronous").fetchall()
        assert [("wal",)] == connection(journal).execute("PRAGMA journal_mode").fetchall()


async def test_directory_may_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the directory at construction, wherever the process goes later."""
    monkeypatch.chdir(path.parent)
    journal = SQLiteJournal(path.name)
    monkeypatch.chdir("/")
    async with journal:
        await journal.begin(intent())

    assert f"<SQLiteJournal {path.name!r}>" == repr(journal)
    assert [(1,)] == query(path, "SELECT count(*) FROM submits")


# files that cannot be used


def a_directory(path: Path) -> None:
    path.mkdir()


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database. " * 500)


def somebody_elses(path: Path) -> None:
    query(path, "CREATE TABLE theirs (x)")


def from_the_future(path: Path) -> None:
    query(path, f"PRAGMA application_id = {store.APPLICATION_ID}")
    query(path, "PRAGMA user_version = 99")


def in_no_directory(path: Path) -> None:
    path.parent.rmdir()


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize("spoil", [a_directory, garbage, somebody_elses, from_the_future, in_no_directory])
async def test_unusable_file(path: Path, spoil: Callable[[Path], None]) -> None:
    """A path that is no journal is a clear error that names the file, not its directory; the file is not touched."""
    spoil(path)
    before = content(path)
    journal = SQLiteJournal(path)

    for _ in range(2):
        with pytest.raises(JournalError, match=r"'solves\.db' failed: ") as caught:
            await journal.open()
    assert str(path.parent) not in str(caught.value)
    assert before == content(path)
    with pytest.raises(ClientStateError):
        await journal.begin(intent())


async def test_usable_after_a_failed_open(path: Path) -> None:
    """When the reason is gone, the same journal opens."""
    a_directory(path)
    journal = SQLiteJournal(path)
    with pytest.raises(JournalError):
        await journal.open()
    os.rmdir(path)  # noqa: PTH106
    async with journal:
        assert ClaimKind.NEW == (await journal.begin(intent())).kind


async def test_no_lock_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is refused: a dead process could not be told from a living one."""

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(owners, "flock", no_locks)
    with pytest.raises(JournalError, match="Operation not supported"):
        await SQLiteJournal(path).open()

    assert [path] == companions(path)


# failures while it is open


def full_disk(journal: SQLiteJournal) -> None:
    pages = connection(journal).execute("PRAGMA page_count").fetchone()[0]
    with_pragma(journal, f"PRAGMA max_page_count = {pages}")


def disk_with_room(journal: SQLiteJournal) -> None:
    with_pragma(journal, "PRAGMA max_page_count = 1000000")


async def test_full_disk(path: Path) -> None:
    """On a full disk `begin` fails before any money is spent, running solves go on, and their reports are written
    when there is room."""
    async with SQLiteJournal(path) as journal:
        running = [await journal.begin(intent(f"{i}")) for i in range(40)]
        full_disk(journal)
        refusals = [error for claim in running if (error := await refusal(journal, claim.submit_id))]
        with pytest.raises(JournalError, match="the disk is full"):
            await journal.begin(intent("x" * 5000))
        disk_with_room(journal)
        await journal.begin(intent("last"))
        entries = [entry async for entry in journal.entries()]

    assert len(refusals) > 5
    assert {"the journal 'solves.db' failed: the disk is full; the report is kept in memory"} == {
        error.partition(" and written")[0] for error in refusals
    }
    assert {f"{i}" for i in range(40)} | {"last"} == {entry.key for entry in entries}
    assert {"task-" + "x" * 500 + claim.submit_id for claim in running} == {e.task_id for e in entries if e.task_id}


async def refusal(journal: SQLiteJournal, submit_id: str) -> str | None:
    try:
        await journal.accepted(submit_id, "task-" + "x" * 500 + submit_id)
    except JournalError as error:
        return str(error)
    return None


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_no_more_room_in_reality(path: Path) -> None:
    """The same with a limit of the operating system: errors, then everything is written."""
    async with SQLiteJournal(path) as journal:
        claim = await journal.begin(intent("a"))
        with file_size_limit(companion_size(path)):
            with pytest.raises(JournalError, match=r"'solves\.db' failed"):
                await journal.begin(intent("b"))
            with pytest.raises(JournalError, match="kept in memory"):
                await journal.accepted(claim.submit_id, "task-1")
            with pytest.raises(JournalError, match="kept in memory"):
                await journal.finished(claim.submit_id, State.SOLVED, cost=Decimal("0.5"))
        assert ClaimKind.NEW == (await journal.begin(intent("c"))).kind
        entries = [(e.key, e.state, e.task_id, e.cost) async for e in journal.entries()]

    assert [("a", State.SOLVED, "task-1", Decimal("0.5")), ("c", State.INTENT, None, None)] == entries


def companion_size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


async def test_read_only(path: Path) -> None:
    """A file that became read-only is named as such, and the journal recovers when it is writable again."""
    async with SQLiteJournal(path) as journal:
        claim = await journal.begin(intent("a"))
        with_pragma(journal, "PRAGMA query_only = ON")
        with pytest.raises(JournalError, match="the file is read-only; the report is kept"):
            await journal.accepted(claim.submit_id, "task-1")
        await journal.begin(intent("b"))

        assert [State.ACCEPTED, State.INTENT] == [e.state async for e in journal.entries()]


async def test_kept_reports_are_written_at_the_end(path: Path) -> None:
    """Reports that failed are written at the latest when the journal is closed."""
    journal = SQLiteJournal(path, patience=0.3)
    await journal.open()
    claim = await journal.begin(intent("a"))
    with locked(path):
        with pytest.raises(JournalError, match="locked by another process; the report is kept"):
            await journal.accepted(claim.submit_id, "task-1")
        with pytest.raises(JournalError, match="locked by another process"):
            await journal.begin(intent("b"))
    await journal.aclose()

    assert [("a", "accepted", "task-1")] == query(path, "SELECT key, state, task_id FROM submits")


async def test_reports_lost_at_the_end(path: Path) -> None:
    """Closing says how many reports could not be written, and closes all the same."""
    journal = SQLiteJournal(path, patience=0)
    await journal.open()
    claim = await journal.begin(intent("a"))
    with locked(path):
        for task in ("task-1", "task-2"):
            with pytest.raises(JournalError):
                await journal.accepted(claim.submit_id, task)
        with pytest.raises(JournalError, match="2 reports could not be written"):
            await journal.aclose()

    with pytest.raises(ClientStateError):
        await journal.begin(intent("b"))
    async with journal:
        assert [State.UNCERTAIN] == [entry.state for entry in await journal.open_entries(ACCOUNT)]


async def test_what_is_kept_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many failed reports are kept; the oldest go first, and closing counts them."""
    monkeypatch.setattr(writer, "KEPT", 3)
    journal = SQLiteJournal(path, patience=0)
    await journal.open()
    claims = [await journal.begin(intent(f"{i}")) for i in range(5)]
    with locked(path):
        for claim in claims:
            with pytest.raises(JournalError):
                await journal.accepted(claim.submit_id, "task-1")
    with pytest.raises(JournalError, match="2 reports could not be written"):
        await journal.aclose()

    assert [("2",), ("3",), ("4",)] == query(path, "SELECT key FROM submits WHERE state = 'accepted'")


async def test_short_lock_is_waited_for(path: Path) -> None:
    """Another program's lock delays a report for as long as it lasts, and costs nothing else."""
    async with SQLiteJournal(path, patience=30) as journal, anyio.create_task_group() as tasks:
        claims = [await journal.begin(intent(f"{i}")) for i in range(3)]
        with locked(path):
            for claim in claims:
                tasks.start_soon(journal.accepted, claim.submit_id, "task-1")
            await anyio.sleep(store.BUSY_SLICE * 2)
            assert 0 == query(path, "SELECT count(*) FROM submits WHERE state = 'accepted'")[0][0]
        await journal.begin(intent("next"))

        assert {"task-1", None} == {entry.task_id async for entry in journal.entries()}


async def test_cancelled_under_a_lock(path: Path) -> None:
    """While the file is locked a caller can be cancelled: its claim vanishes, its report is written later."""
    async with SQLiteJournal(path, patience=60) as journal:
        claim = await journal.begin(intent("a"))
        with locked(path):
            with anyio.move_on_after(0.05) as report:
                await journal.accepted(claim.submit_id, "task-1")
            with anyio.move_on_after(0.05) as begin:
                await journal.begin(intent("b"))
        await journal.begin(intent("c"))

        assert report.cancelled_caught
        assert begin.cancelled_caught
        assert [("a", "task-1"), ("c", None)] == [(e.key, e.task_id) async for e in journal.entries()]


async def test_locked_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading waits for a lock as long as writing, then says so."""

    def locked_out() -> sqlite3.Connection:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    async with SQLiteJournal(path, patience=0) as journal:
        await journal.begin(intent("a"))
        journal._store._disconnect()
        with monkeypatch.context() as locked:
            locked.setattr(journal._store, "_connect", locked_out)
            for read in (journal.open_entries(ACCOUNT), journal.totals(), journal.solution_for(ACCOUNT, "a")):
                with pytest.raises(JournalError, match="locked by another process"):
                    await read
        assert 1 == len(await journal.totals())


async def test_corruption(path: Path) -> None:
    """A file that is damaged while open is an error that says so, in every method, and nothing else."""
    async with SQLiteJournal(path) as journal:
        for i in range(300):
            await journal.begin(intent(f"{i}"))
    damage(path)
    journal = SQLiteJournal(path)
    failures = []
    await journal.open()
    for action in (
        lambda: journal.begin(intent("0")),
        lambda: journal.open_entries(ACCOUNT),
        lambda: journal.totals(),
        lambda: journal.prune(0.0),
        lambda: journal.solution_for(ACCOUNT, "0"),
        lambda: journal.accepted("x", "task-1"),
    ):
        try:
            await action()  # type: ignore[no-untyped-call]
        except JournalError as error:
            failures.append(str(error))
    try:
        await journal.aclose()
    except JournalError as error:
        failures.append(str(error))

    assert any("corrupted" in failure for failure in failures)


def damage(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for offset in range(4096 * 2, size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 2048)


async def test_errors_hold_no_secrets(path: Path) -> None:
    """The traceback of a failed report shows no token, in the locals of any frame of any exception of its chain."""
    async with SQLiteJournal(path, store_solutions=True, patience=0) as journal:
        claim = await journal.begin(intent("a"))
        with locked(path), pytest.raises(JournalError) as caught:
            await finish(journal, claim.submit_id)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())

    assert "submit_id" in shown
    assert "marked-token" not in shown
    assert caught.value.__context__ is None


async def finish(journal: SQLiteJournal, submit_id: str) -> None:
    await journal.finished(submit_id, State.SOLVED, solution={"token": "".join(["marked", "-", "token"])})


async def test_unexpected_failure_of_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of another kind reaches those who wait, and the writer goes on afterwards."""
    async with SQLiteJournal(path) as journal:
        claim = await journal.begin(intent("a"))
        with monkeypatch.context() as broken:
            broken.setattr(store, "_answer", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await journal.begin(intent("b"))
        await journal.accepted(claim.submit_id, "task-1")

        assert [("a", "task-1")] == [(e.key, e.task_id) async for e in journal.entries()]


# files that vanish


SUFFIXES = ["", "-wal", "-shm"]


def vanish(path: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        path.with_name(path.name + suffix).unlink()


def beside(path: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_ino, file.read_bytes()) for file in companions(path)}


@pytest.mark.parametrize("gone", [SUFFIXES, *([suffix] for suffix in SUFFIXES), ["-owner"]])
async def test_vanished_file(path: Path, gone: list[str]) -> None:
    """Once its file or one beside it is gone, a journal refuses everything, though it could write on unseen."""
    journal = SQLiteJournal(path)
    await journal.open()
    claim = await journal.begin(intent("a"))
    if gone == ["-owner"]:
        journal._store._owner.path.unlink()
    else:
        vanish(path, *gone)
    left = beside(path)
    for action in (
        lambda: journal.begin(intent("b")),
        lambda: journal.begin(intent("a"), resubmit=True),
        lambda: journal.accepted(claim.submit_id, "task-1"),
        lambda: journal.open_entries(ACCOUNT),
        lambda: journal.totals(),
        lambda: journal.prune(0.0),
        lambda: journal.solution_for(ACCOUNT, "a"),
        lambda: journal.begin(intent("c")),
    ):
        with pytest.raises(JournalError, match="was removed or replaced while it was open"):
            await action()  # type: ignore[no-untyped-call]

    assert left.keys() == beside(path).keys()
    with pytest.raises(JournalError, match="1 reports could not be written"):
        await journal.aclose()


async def test_second_client_on_a_vanished_file(path: Path) -> None:
    """While one that had the file lives, no other begins a new one, in which everything would be paid again."""
    async with SQLiteJournal(path) as first:
        claim = await first.begin(intent("a"))
        await first.accepted(claim.submit_id, "task-1")
        vanish(path, *SUFFIXES)
        with pytest.raises(JournalError, match="removed while a process that still lives had it open"):
            await SQLiteJournal(path).open()
        assert path not in companions(path)
        with pytest.raises(JournalError, match="was removed or replaced"):
            await first.begin(intent("a"))
    async with SQLiteJournal(path) as second:
        assert [] == [entry async for entry in second.entries()]


async def test_second_client_on_a_replaced_file(path: Path) -> None:
    """Reports on the rows of one file are not written to another that took its place; each keeps its own."""
    replacement = path.with_name("replacement.db")
    async with SQLiteJournal(replacement) as other:
        await other.begin(intent("b"))
    first = SQLiteJournal(path)
    await first.open()
    claim = await first.begin(intent("a"))
    vanish(path, "-wal", "-shm")
    replacement.rename(path)
    async with SQLiteJournal(path) as second:
        with pytest.raises(JournalError, match=r"was removed or replaced while it was open.*; the report is kept"):
            await first.accepted(claim.submit_id, "task-1")
        with pytest.raises(JournalError, match="was removed or replaced"):
            await first.begin(intent("c"))
        with pytest.raises(JournalError, match="1 reports could not be written"):
            await first.aclose()
        await second.begin(intent("d"))
        assert ["b", "d"] == [entry.key async for entry in second.entries()]
    async with first:
        assert ["b", "d"] == [entry.key async for entry in first.entries()]


async def test_file_is_put_back(path: Path) -> None:
    """When the very file is back, the journal goes on, and what was kept is written."""
    away = path.with_name("away")
    async with SQLiteJournal(path) as journal:
        claim = await journal.begin(intent("a"))
        os.rename(path, away)  # noqa: PTH104
        for _ in range(2):
            with pytest.raises(JournalError, match="was removed or replaced"):
                await journal.accepted(claim.submit_id, "task-1")
        os.rename(away, path)  # noqa: PTH104
        await journal.begin(intent("b"))

        assert [("a", "task-1"), ("b", None)] == [(e.key, e.task_id) async for e in journal.entries()]


async def test_file_vanishes_during_trouble(path: Path) -> None:
    """A failure of the disk does not make the journal take another file of the same number for its own."""
    async with SQLiteJournal(path) as journal:
        await journal.begin(intent("a"))
        with_pragma(journal, "PRAGMA query_only = ON")
        with pytest.raises(JournalError, match="the file is read-only"):
            await journal.begin(intent("b"))
        vanish(path, *SUFFIXES)
        for suffix in SUFFIXES:  # the numbers of removed files are given to the next
            path.with_name(path.name + suffix).touch()
        with pytest.raises(JournalError, match="was removed or replaced"):
            await journal.begin(intent("c"))
        assert [0, 0, 0] == [path.with_name(path.name + suffix).stat().st_size for suffix in SUFFIXES]
        vanish(path, *SUFFIXES)


async def test_read_after_the_end(path: Path) -> None:
    """A call that was under way when the journal was closed does not open the file again."""
    journal = SQLiteJournal(path)
    await journal.open()
    await journal.aclose()
    with pytest.raises(JournalError, match="it is closed"):
        journal._store.totals(None)
    assert [path] == companions(path)


# a change that cannot be written


def refuse_type(path: Path, kind: str) -> None:
    """The file refuses rows of one type."""
    refusal = f"SELECT raise(ABORT, 'no {kind}')"
    query(path, f"CREATE TRIGGER t BEFORE INSERT ON submits WHEN new.type = '{kind}' BEGIN {refusal}; END")


async def test_bad_change_harms_its_own_caller(path: Path) -> None:
    """Of many who write at once, one whose row the file refuses gets an error; the others are written."""
    bad = Intent(account=ACCOUNT, host="h", type="Bad", key="bad")
    async with SQLiteJournal(path) as journal:
        refuse_type(path, "Bad")
        claims = []

        async def begin(key: str) -> None:
            claims.append((await journal.begin(intent(key))).kind)

        async def begin_badly() -> None:
            with pytest.raises(JournalError, match=r"'solves\.db' failed: no Bad$"):
                await journal.begin(bad)

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for i in range(20):
                    tasks.start_soon(begin, f"{len(claims)}-{i}")
                    tasks.start_soon(begin_badly)
        assert [ClaimKind.NEW] * 40 == claims
        assert 40 == len([entry async for entry in journal.entries()])


async def test_bad_report_is_not_kept_for_ever(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kept report that the file refuses by itself is given up with a WARNING; those with it are written."""
    async with SQLiteJournal(path, patience=0) as journal:
        bad, good = [await journal.begin(intent(key)) for key in ("bad", "good")]
        with locked(path):
            for claim in (bad, good):
                with pytest.raises(JournalError, match="the report is kept"):
                    await journal.accepted(claim.submit_id, f"task-{claim.entry.key}")
        query(
            path,
            "CREATE TRIGGER t BEFORE UPDATE ON submits WHEN new.key = 'bad' BEGIN SELECT raise(ABORT, 'no such'); END",
        )
        assert ClaimKind.NEW == (await journal.begin(intent("next"))).kind
        assert ["task-good"] == [e.task_id async for e in journal.entries() if e.task_id]
        with pytest.raises(JournalError, match=r"no such$"):
            await journal.accepted(bad.submit_id, "task-bad")

    (record,) = caplog.records
    assert ("ucaptcha_async", "WARNING") == (record.name, record.levelname)
    assert "gives it up" in record.getMessage()
    assert "no such" in record.getMessage()


# ids as they came


OLD_SCHEMA = """
CREATE TABLE submits (
    submit_id  TEXT PRIMARY KEY NOT NULL,
    account    TEXT NOT NULL,
    host       TEXT NOT NULL,
    key        TEXT,
    type       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN (
        'accepted', 'failed', 'forgotten', 'intent', 'refused', 'solved', 'uncertain'
    )),
    owner      TEXT,
    task_id    TEXT,
    cost       TEXT,
    error_code TEXT,
    solve_time REAL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    solution   TEXT
);
CREATE UNIQUE INDEX held_keys ON submits (account, key)
    WHERE key IS NOT NULL AND state IN ('accepted', 'intent', 'solved', 'uncertain');
CREATE INDEX open_rows ON submits (account) WHERE state IN ('accepted', 'intent', 'uncertain');
PRAGMA application_id = 0x75436170;
PRAGMA user_version = 1;
"""
OLD_COLUMNS = "submit_id, account, host, key, type, state, owner, created_at, updated_at"
OLD_INSERT = f"INSERT INTO submits ({OLD_COLUMNS}) SELECT * FROM (VALUES (?, ?, 'h', ?, 'T', 'intent', NULL, 1, 2))"
OLD_UPDATE = "UPDATE submits SET state = 'accepted', task_id = ? WHERE submit_id = ?"


async def test_file_of_the_first_release(path: Path) -> None:
    """An older file gets the newer columns when it is opened; its ids are text, and old programs use it on."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(OLD_SCHEMA)
        old.execute(OLD_INSERT, ("x", ACCOUNT, "before"))
        old.execute(OLD_UPDATE, ("12", "x"))
        old.commit()
        async with SQLiteJournal(path) as first, SQLiteJournal(path) as second:
            for journal, key, task_id in ((first, "number", NumericId("34")), (second, "text", "0056")):
                await journal.accepted((await journal.begin(intent(key))).submit_id, task_id)
            old.execute(OLD_INSERT, ("y", ACCOUNT, "meanwhile"))
            old.execute(OLD_UPDATE, ("78", "y"))
            old.commit()
            await second.begin(intent("meanwhile"))  # which rewrites the row
            found = {e.key: wire_id(e.task_id or "") async for e in first.entries()}

    assert {"before": "12", "number": 34, "text": "0056", "meanwhile": "78"} == found
    assert [(None,), (None,), (None,), (1,)] == query(path, "SELECT numeric_id FROM submits ORDER BY 1")
    assert [(None,)] * 4 == query(path, "SELECT context FROM submits")


async def test_file_with_one_newer_column(path: Path) -> None:
    """Each column that a file lacks is added, and no other."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(OLD_SCHEMA)
        old.execute("ALTER TABLE submits ADD COLUMN numeric_id INTEGER")
    async with SQLiteJournal(path) as journal:
        await journal.begin(attrs.evolve(intent("a"), context="c"))
        assert ["c"] == [entry.context async for entry in journal.entries()]


async def test_nonsense_for_a_number(path: Path) -> None:
    """An id that is marked as a number and is none stays text."""
    async with SQLiteJournal(path) as journal:
        claim = await journal.begin(intent("a"))
        await journal.accepted(claim.submit_id, NumericId("12"))
        found = []
        for text in ("x", "", "1.", "1.5e999", "٣", "9" * 5_000, "-7"):
            query(path, "UPDATE submits SET task_id = ?", text)
            found += [wire_id(entry.task_id or "") async for entry in journal.entries()]

    assert ["x", "", "1.", "1.5e999", "٣", "9" * 5_000, -7] == found


# who is alive


def test_tokens_are_not_paths(tmp_path: Path) -> None:
    """An owner read from a hostile file never becomes the name of another file."""
    victim = tmp_path / "victim"
    victim.touch()
    for token in ("../victim", "/../victim", "", "a" * 31, "g" * 32, "A" * 32, "0" * 32 + "\n"):
        assert not owners.alive(tmp_path / "j.db", token)

    assert victim.exists()


def test_owner_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no `flock`, an owner is alive while its file cannot be removed."""
    monkeypatch.setattr(owners, "flock", None)
    journal = tmp_path / "j.db"
    owner = owners.Owner(journal)
    owner.acquire()
    with monkeypatch.context() as windows:
        windows.setattr(Path, "unlink", refuse)
        assert owners.alive(journal, owner.token)
    assert not owners.alive(journal, owner.token)

    owner.release()

    assert [] == list(tmp_path.iterdir())


def refuse(path: Path, missing_ok: bool = False) -> None:
    raise PermissionError(13, "the file is in use")


def test_unknown_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner's file that cannot be looked at counts as alive: the reverse mistake could pay twice."""
    journal = tmp_path / "j.db"
    owner = owners.Owner(journal)
    owner.acquire()

    def no_entry(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as other_user:
        other_user.setattr(os, "open", no_entry)
        assert owners.alive(journal, owner.token)
    owner.release()


def test_sweeper_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new owner's file that is swept before it is locked is made again."""
    journal = tmp_path / "j.db"
    attempts = []

    def sweep_first(fd: int, operation: int) -> None:
        attempts.append(fd)
        if len(attempts) == 1:
            next(tmp_path.iterdir()).unlink()

    monkeypatch.setattr(owners, "flock", sweep_first)
    owner = owners.Owner(journal)
    owner.acquire()

    assert 2 == len(attempts)
    assert [f"j.db-owner-{owner.token}"] == [file.name for file in tmp_path.iterdir()]
    owner.release()


def test_two_look_at_the_same_time(tmp_path: Path) -> None:
    """A dead owner is dead also while somebody else finds that out."""
    journal = tmp_path / "j.db"
    mark = tmp_path / f"j.db-owner-{'0' * 32}"
    with mark.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not owners.alive(journal, "0" * 32)

    assert not mark.exists()


async def test_dead_owners_are_swept(path: Path) -> None:
    """Opening removes the files that dead processes left, and nothing else."""
    dead = path.with_name(f"{path.name}-owner-{'0' * 32}")
    other = path.with_name(f"{path.name}-owner-notes.txt")
    for file in (dead, other):
        file.touch()
    async with SQLiteJournal(path):
        names = {file.name for file in companions(path)}

    assert dead.name not in names
    assert other.name in names
