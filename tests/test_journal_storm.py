"""The journal's writer under load: batches, cancellation, hostile files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ucaptcha_async.errors import JournalError
from ucaptcha_async.journal import Claim, ClaimKind, Intent, SQLiteJournal, State, store
from ucaptcha_async.journal.ledger import Begin, Book, Change, Refused
from ucaptcha_async.journal.store import BusyError
from ucaptcha_async.journal.writer import Writer

ACCOUNT = "0" * 32


def intent(key: str | None = None) -> Intent:
    return Intent(account=ACCOUNT, host="h", type="T", key=key)


def counting(journal: SQLiteJournal, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the commits to come."""
    sizes: list[int] = []
    commit = journal._store.commit

    def counted(changes: Sequence[Change]) -> list[object]:
        sizes.append(len(changes))
        return commit(changes)

    writer = journal._writer
    assert writer is not None
    monkeypatch.setattr(writer, "_commit", counted)
    return sizes


async def test_writes_share_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand reports at once take a handful of commits, and none of more than the bound."""
    async with SQLiteJournal(tmp_path / "j.db") as journal:
        sizes = counting(journal, monkeypatch)
        async with anyio.create_task_group() as tasks:
            for _ in range(1_000):
                tasks.start_soon(journal.begin, intent())

    assert 1_000 == sum(sizes)
    assert len(sizes) <= 6
    assert max(sizes) <= 500


async def test_lone_write_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One report after the other, each gets a commit of its own."""
    async with SQLiteJournal(tmp_path / "j.db") as journal:
        sizes = counting(journal, monkeypatch)
        for _ in range(5):
            await journal.begin(intent())

    assert [1] * 5 == sizes


async def test_idle_costs_nothing(tmp_path: Path) -> None:
    """An open journal that nobody writes to keeps no task and no thread's place."""
    before = len(anyio.get_running_tasks())
    async with SQLiteJournal(tmp_path / "j.db") as journal:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(journal.begin, intent())
        await anyio.wait_all_tasks_blocked()

        assert before == len(anyio.get_running_tasks())
        assert 0 == journal._limiter.borrowed_tokens


class Storm:
    """Solves, each of which may cancel any of those under way, at any step; notes what was told to whom."""

    def __init__(self, journal: SQLiteJournal, seed: int) -> None:
        self.journal = journal
        self.rng = random.Random(seed)
        self.scopes: list[anyio.CancelScope] = []
        self.begun: set[str] = set()
        self.accepted: set[str] = set()
        self.solved: set[str] = set()

    async def step(self) -> None:
        if self.rng.random() < 0.2:
            self.rng.choice(self.scopes).cancel()
        await anyio.sleep(self.rng.choice([0, 0, 0.005]))

    async def solve(self, number: int) -> None:
        with anyio.CancelScope() as scope:
            self.scopes.append(scope)
            await self.walk(number)
        self.scopes.remove(scope)

    async def walk(self, number: int) -> None:
        await self.step()
        claim = await self.journal.begin(intent(f"{number % 150}" if number % 2 else None))
        if claim.kind is not ClaimKind.NEW:
            return
        self.begun.add(claim.submit_id)
        await self.step()
        self.accepted.add(claim.submit_id)
        await self.journal.accepted(claim.submit_id, f"task-{claim.submit_id}")
        await self.step()
        self.solved.add(claim.submit_id)
        await self.journal.finished(claim.submit_id, State.SOLVED)

    async def work(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            await self.solve(number)


@pytest.mark.parametrize("seed", range(5))
async def test_storm_of_cancellations(tmp_path: Path, seed: int) -> None:
    """Under a storm of cancellations a claim reaches its caller or leaves nothing, and each report is written."""
    async with SQLiteJournal(tmp_path / "j.db") as journal:
        storm = Storm(journal, seed)
        async with anyio.create_task_group() as tasks:
            for worker in range(40):
                tasks.start_soon(storm.work, range(worker, 1_000, 40))
        writer = journal._writer
        assert writer is not None
        assert (0, 0, False, None) == (len(writer._queue), len(writer._kept), writer._flushing, writer._draining)
        found = {entry.submit_id: entry async for entry in journal.entries()}

    assert 50 < len(storm.solved) < len(storm.begun) < 950
    assert storm.begun == found.keys()
    assert storm.accepted == {i for i, entry in found.items() if entry.task_id == f"task-{i}"}
    assert storm.solved == {i for i, entry in found.items() if entry.state is State.SOLVED}


class Disk(Book):
    """Where a writer commits: fails or stands still as told, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__("me")
        self.written: list[str] = []
        self.failures: list[Exception] = []
        self.running = threading.Event()
        self.going = threading.Event()
        self.going.set()

    def alive(self, owner: str) -> bool:
        return owner == "me"

    def commit(self, changes: Sequence[Change]) -> list[object]:
        self.running.set()
        self.going.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.written += [change.submit_id for change in changes]
        return [None if isinstance(change, Refused) else change.apply(self, 0) for change in changes]

    async def standing_still(self) -> None:
        """Until a commit is under way that does not end before `going` is set."""
        while not self.running.is_set():
            await anyio.sleep(0.001)
        self.running.clear()


@pytest.fixture
def disk() -> Disk:
    return Disk()


def writing(disk: Disk, patience: float = 5) -> Writer:
    return Writer(disk.commit, anyio.CapacityLimiter(1), threading.Lock(), patience)


class Caller:
    """A task that writes one change, and can be cancelled in its own way."""

    def __init__(self, writer: Writer, change: Change) -> None:
        self.scope = anyio.CancelScope()
        self.writer, self.change = writer, change
        self.answer: object = None
        self.task: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        with self.scope:
            self.answer = await self.writer.write(self.change)

    async def native(self) -> None:
        """As a task of asyncio's own."""
        self.task = asyncio.create_task(self())
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def test_failed_reports_come_first(disk: Disk) -> None:
    """Reports that failed are written before newer ones, in their order."""
    writer = writing(disk)
    for name in "ab":
        disk.failures = [JournalError("the disk is full")]
        with pytest.raises(JournalError, match="the disk is full; the report is kept"):
            await writer.write(Refused(name))
    assert 2 == len(writer._kept)
    await writer.write(Refused("c"))

    assert ["a", "b", "c"] == disk.written
    assert 0 == len(writer._kept)


async def test_each_waiter_gets_an_error_of_its_own(disk: Disk) -> None:
    """Tasks that wait for the same failed commit do not share an exception object."""
    writer, caught = writing(disk), []

    async def report(name: str) -> None:
        with pytest.raises(JournalError) as error:
            await writer.write(Refused(name))
        caught.append(error.value)

    disk.failures = [JournalError("broken")] * 3
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(report, name)

    assert 3 == len({id(error) for error in caught})


async def test_failed_claim_is_not_kept(disk: Disk) -> None:
    """A claim that could not be written is not written later, when nobody would know of it."""
    writer = writing(disk)
    disk.failures = [JournalError("broken")]
    with pytest.raises(JournalError, match=r"^broken$"):
        await writer.write(Begin(intent()))
    await writer.write(Refused("a"))

    assert ["a"] == disk.written


async def test_locked_file_is_tried_again(disk: Disk) -> None:
    """A lock of another process only delays."""
    disk.failures = [BusyError("locked")] * 3
    await writing(disk).write(Refused("a"))

    assert ["a"] == disk.written


async def test_cancelled_report_is_written_by_its_caller(disk: Disk) -> None:
    """A report whose caller is cancelled before anything happened is written all the same."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await writing(disk).write(Refused("a"))

    assert scope.cancelled_caught
    assert ["a"] == disk.written


@pytest.mark.parametrize("cancel", range(4))
async def test_any_of_the_waiting_is_cancelled(disk: Disk, cancel: int) -> None:
    """Whichever of several callers is cancelled, flusher, next flusher or follower, all reports are written."""
    writer = writing(disk)
    scopes = [anyio.CancelScope() for _ in range(4)]
    finished = []

    async def report(number: int) -> None:
        with scopes[number]:
            await writer.write(Refused(f"{number}"))
            finished.append(number)

    for _ in range(2):  # in the second round the flusher lingers
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(report, number)
                await anyio.lowlevel.checkpoint()
            scopes[cancel].cancel()
        scopes = [anyio.CancelScope() for _ in range(4)]

    assert sorted("01230123") == sorted(disk.written)
    assert len(finished) >= 6


async def test_drain_waits_for_the_flusher(disk: Disk) -> None:
    """Closing in the middle of a flush waits for it, and leaves nobody waiting."""
    writer = writing(disk)
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(writer.write, Refused(name))
        await anyio.lowlevel.checkpoint()
        lost = await writer.drain()

    assert 0 == lost
    assert ["a", "b", "c"] == sorted(disk.written)


async def test_rest_of_a_batch_is_tried_again(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a commit did not come to is neither lost nor written twice."""
    writer, whole = writing(disk), disk.commit
    monkeypatch.setattr(writer, "_commit", lambda changes: whole(changes[:2]))
    async with anyio.create_task_group() as tasks:
        for i in range(9):
            tasks.start_soon(writer.write, Refused(f"{i}"))

    assert [f"{i}" for i in range(9)] == sorted(disk.written)


@pytest.mark.parametrize("failure", [None, JournalError("the disk is full"), BusyError("locked")])
async def test_closing_answers_all_who_wait(disk: Disk, failure: JournalError | None) -> None:
    """Whoever waits when the journal is closed is told that it is written, or that it is not; nobody hangs."""
    writer = writing(disk, patience=0)
    answers: list[object] = []

    async def write(change: Change) -> None:
        try:
            await writer.write(change)
            answers.append("written")
        except JournalError as error:
            answers.append(str(error))

    disk.going.clear()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, Refused("first"))
            await disk.standing_still()
            for i in range(1_200):  # three batches
                tasks.start_soon(write, Refused(f"{i}"))
            tasks.start_soon(write, Begin(intent("a")))
            await anyio.wait_all_tasks_blocked()
            disk.failures = [failure] * 9 if failure else []
            tasks.start_soon(anyio.to_thread.run_sync, disk.going.set)
            lost = await writer.drain()

    assert 1_202 == len(answers)
    assert answers.count("written") == len(disk.written)
    assert lost == 1_201 - len([name for name in disk.written if len(name) < 32])
    assert (failure is None) == (lost == 0)


async def test_closed_while_many_wait(tmp_path: Path) -> None:
    """Reports that were made before the journal is closed are written, or fail as the journal's; none is refused."""
    path = tmp_path / "j.db"
    journal = SQLiteJournal(path)
    await journal.open()
    claims = [await journal.begin(intent(f"{i}")) for i in range(5)]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for claim in claims:
                tasks.start_soon(journal.accepted, claim.submit_id, f"task-{claim.entry.key}")
            tasks.start_soon(journal.begin, intent("last"))
            for _ in range(2):  # each is queued
                await anyio.lowlevel.checkpoint()
            await journal.aclose()
    async with journal:
        found = {entry.key: entry.task_id async for entry in journal.entries()}

    assert {"last": None} | {f"{i}": f"task-{i}" for i in range(5)} == found


async def gathered_during_a_flush(disk: Disk, tasks: anyio.abc.TaskGroup, writer: Writer) -> list[Caller]:
    """Three claims that wait for a flush to end, and one report whose flush does not end before `going` is set."""
    disk.going.clear()
    tasks.start_soon(Caller(writer, Refused("first")))
    await disk.standing_still()
    callers = [Caller(writer, Begin(intent(name))) for name in "abc"]
    for caller in callers:
        tasks.start_soon(caller)
    await anyio.wait_all_tasks_blocked()
    return callers


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1], [0, 1, 2]])
async def test_claims_cancelled_while_they_gather(disk: Disk, cancelled: list[int]) -> None:
    """A claim whose caller is cancelled before its commit is never made; the others are, whoever was to flush."""
    writer = writing(disk)
    async with anyio.create_task_group() as tasks:
        callers = await gathered_during_a_flush(disk, tasks, writer)
        for i in cancelled:
            callers[i].scope.cancel()
        await anyio.wait_all_tasks_blocked()
        disk.going.set()

    assert sorted({"a", "b", "c"} - {"abc"[i] for i in cancelled}) == sorted(key for _, key in disk.by_key)
    assert 4 - len(cancelled) == len(disk.written)


@pytest.mark.parametrize("cancelled", [[1], [1, 2], [0, 1, 2]])
async def test_claims_cancelled_while_committed(disk: Disk, cancelled: list[int]) -> None:
    """A claim whose caller is cancelled during its commit is given back, or reaches its caller; no row is left over."""
    writer = writing(disk)
    async with anyio.create_task_group() as tasks:
        callers = await gathered_during_a_flush(disk, tasks, writer)
        disk.going.set()
        await disk.standing_still()  # the commit of the three: it has not ended, or is about to
        disk.going.clear()
        for i in cancelled:
            callers[i].scope.cancel()
        disk.going.set()

    told = {caller.change.submit_id for caller in callers if caller.answer}
    assert told == disk.by_id.keys()
    assert {callers[i].change.submit_id for i in range(3) if i not in cancelled} <= told


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("when", ["flushing", "flushed", "woken"])
async def test_cancellation_of_asyncio_itself(disk: Disk, when: str) -> None:
    """`Task.cancel`, which ignores shields, leaves no claim behind, and no thread that nobody waits for."""
    writer = writing(disk)
    disk.going.clear()
    async with anyio.create_task_group() as tasks:
        first, second = Caller(writer, Begin(intent("a"))), Caller(writer, Begin(intent("b")))
        tasks.start_soon(first.native)
        await disk.standing_still()
        tasks.start_soon(second)
        await anyio.wait_all_tasks_blocked()
        assert first.task is not None
        if when == "flushing":
            for _ in range(3):
                first.task.cancel()
                await asyncio.sleep(0.01)
            assert not first.task.done()
        disk.going.set()
        while when == "woken" and not disk.by_id:
            time.sleep(0.001)  # noqa: ASYNC251
        first.task.cancel()

    assert isinstance(second.answer, Claim)
    assert ["b"] == [key for _, key in disk.by_key]
    assert 3 == len(disk.written)  # both claims, and the first one given back
    assert 0 == writer._limiter.borrowed_tokens


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_next_flusher_dies_as_it_wakes(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the one whose turn it is to flush is cancelled at that very moment, another who waits does it."""
    writer = writing(disk)
    disk.going.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Caller(writer, Refused("first")))
        await disk.standing_still()
        second, third = Caller(writer, Refused("second")), Caller(writer, Refused("third"))
        tasks.start_soon(second.native)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(third)
        await anyio.wait_all_tasks_blocked()
        end_round = writer._end_round

        def end_and_cancel() -> None:
            monkeypatch.setattr(writer, "_end_round", end_round)
            end_round()
            assert second.task is not None
            second.task.cancel()

        monkeypatch.setattr(writer, "_end_round", end_and_cancel)
        disk.going.set()

    assert ["first", "second", "third"] == disk.written


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_storm_of_asyncio_itself(tmp_path: Path) -> None:
    """`asyncio.wait_for` around every call: claims reach their caller or leave nothing, and nothing overlaps."""
    rng = random.Random(1)
    async with SQLiteJournal(tmp_path / "j.db") as journal:
        begun: set[str] = set()
        accepted: set[str] = set()

        async def solve() -> None:
            for _ in range(20):
                with contextlib.suppress(TimeoutError):
                    claim = await asyncio.wait_for(journal.begin(intent()), rng.uniform(0.001, 0.06))
                    begun.add(claim.submit_id)
                    await asyncio.wait_for(journal.accepted(claim.submit_id, "task-1"), rng.uniform(0.001, 0.06))
                    accepted.add(claim.submit_id)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(40):
                tasks.create_task(solve())
        found = {entry.submit_id: entry async for entry in journal.entries()}

    assert begun == found.keys()
    assert accepted <= {i for i, entry in found.items() if entry.task_id}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_open_and_close_cancelled_by_asyncio(tmp_path: Path) -> None:
    """Cancelled while it opens or closes, a journal is closed, and what was kept is written."""
    path = tmp_path / "j.db"
    journal = SQLiteJournal(path)
    for _ in range(5):
        opening = asyncio.create_task(journal.open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert {path.name} >= set(os.listdir(tmp_path))  # noqa: PTH208
    await journal.open()
    report = asyncio.create_task(journal.begin(intent("a")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(journal.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    assert ClaimKind.NEW == (await report).kind
    assert [path.name] == os.listdir(tmp_path)  # noqa: PTH208
    async with journal:
        assert ["a"] == [entry.key async for entry in journal.entries()]


# Hostile files

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=12),
    st.binary(max_size=12),
    st.sampled_from(["intent", "accepted", "solved", ACCOUNT, "a", "x", "1E+999999", '{"token": 1}', "[" * 5000]),
)
ROWS = st.lists(st.lists(VALUES, min_size=16, max_size=16), max_size=6)


def hostile(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """A journal file without constraints, full of anything."""
    columns = ", ".join(store._COLUMNS)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE submits ({columns})")
        db.execute("CREATE UNIQUE INDEX ids ON submits (submit_id)")
        for row in rows:
            db.execute(f"INSERT OR IGNORE INTO submits VALUES ({', '.join('?' * 16)})", (*row, None, None)[:16])
        db.execute(f"PRAGMA application_id = {store.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {store.VERSION}")


async def use_all(journal: SQLiteJournal) -> int:
    """Call everything; count the journal's own errors. Any other error fails the test."""
    failures = 0

    async def listing() -> None:
        async for entry in journal.entries():
            repr(entry)

    orphans = []
    try:
        orphans = await journal.open_entries(ACCOUNT)
    except JournalError:
        failures += 1
    actions = [
        listing(),
        journal.totals(),
        journal.solution_for(ACCOUNT, "a"),
        journal.begin(intent("a")),
        journal.begin(intent("x"), resubmit=True),
        journal.begin(intent()),
        journal.accepted("x", "task-1"),
        journal.forget("a"),
        *(journal.take_up(orphan) for orphan in orphans),
        journal.prune(1e9),
    ]
    for action in actions:
        try:
            await action
        except JournalError:
            failures += 1
    return failures


@given(rows=ROWS)
@example(rows=[["a", *[None] * 11, "1E310", None]])
@example(rows=[["a", ACCOUNT, "h", "a", "T", "accepted", *[None] * 4, float("inf"), float("-inf"), "-1E310", None]])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_hostile_rows(rows: list[list[Any]]) -> None:
    """Whatever a file holds, the journal answers or raises `JournalError`; a nameless solve is never hindered."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "j.db")
        hostile(path, rows)
        async with SQLiteJournal(path) as journal:
            await use_all(journal)
            assert ClaimKind.NEW == (await journal.begin(intent())).kind


async def test_unreadable_rows(tmp_path: Path) -> None:
    """A row in an unknown state is an error where it is asked for, and does not hide the others from recovery."""
    path = tmp_path / "j.db"
    row = ["x", ACCOUNT, "h", "a", "T", "intent", None, None, None, None, None, 0, 0, None]
    hostile(path, [row, ["y", *row[1:3], "b", "T", "nonsense", *row[6:]]])
    async with SQLiteJournal(path) as journal:
        assert ["x"] == [entry.submit_id for entry in await journal.open_entries(ACCOUNT)]
        with pytest.raises(JournalError, match="unreadable"):
            await journal.accepted("y", "task-1")
        with pytest.raises(JournalError, match="row 2 is unreadable"):
            _ = [entry async for entry in journal.entries()]
        with pytest.raises(JournalError, match="a state that this version does not know"):
            await journal.totals()
        await journal.accepted("x", "task-1")


async def test_nonsense_in_a_readable_row(tmp_path: Path) -> None:
    """Where a value makes no sense the row is given without it: its task id is what matters."""
    path = tmp_path / "j.db"
    row = ["x", ACCOUNT, "h", "a", "T", "solved", None, "task-1", "much", None, 1e308, 1e200, -1e200, "[" * 5]
    hostile(path, [row])
    async with SQLiteJournal(path) as journal:
        done = (await journal.begin(intent("a"))).entry

    assert ("task-1", None, None, None) == (done.task_id, done.cost, done.solve_time, done.solution)
    assert (0, 0) == (done.created_at.timestamp(), done.updated_at.timestamp())
