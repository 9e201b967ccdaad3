"""Named solves that are cancelled anywhere and called again at once, compared with a ledger kept by hand."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ucaptcha_async.errors import JournalError
from ucaptcha_async.journal import Claim, ClaimKind, Intent, MemoryJournal, SQLiteJournal, State, ledger, store
from ucaptcha_async.journal import writer as writers
from ucaptcha_async.journal.memory import _Book

ACCOUNT = "0" * 32

AnyJournal = MemoryJournal | SQLiteJournal


def intent(key: str | None, submit_id: str | None = None) -> Intent:
    made = Intent(account=ACCOUNT, host="h", type="T", key=key)
    return made if submit_id is None else Intent(account=ACCOUNT, host="h", type="T", key=key, submit_id=submit_id)


class Ledger:
    """What was told to whom: who works on a key, and what each row is to say in the end."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[State, str | None]] = {}
        self.latest: dict[str, str] = {}
        self.resubmitting: set[str] = set()
        self.working: dict[str, int] = {}
        self.worked: list[tuple[str, int, int]] = []

    def taken(self, key: str) -> None:
        """From here to `let_go` somebody works on the key."""
        assert key not in self.working, f"{key} has two holders"
        self.working[key] = time.monotonic_ns()

    def let_go(self, key: str) -> None:
        self.worked.append((key, self.working.pop(key), time.monotonic_ns()))

    def state(self, key: str) -> State | None:
        row = self.latest.get(key)
        return self.rows[row][0] if row in self.rows else None

    def calls(self, key: str, *, resubmit: bool) -> None:
        """A call that gives up an uncertain row gives it up even if it is cancelled then."""
        if resubmit and self.state(key) is State.UNCERTAIN:
            self.resubmitting.add(key)

    def begun(self, key: str, row: str, *, alone: bool) -> None:
        self.taken(key)
        state = self.state(key)
        if state is State.UNCERTAIN and key in self.resubmitting:
            self.reported(self.latest[key], State.FORGOTTEN)
        elif alone:
            assert state in (None, State.REFUSED, State.FAILED, State.FORGOTTEN), f"{key} was {state}"
        self.resubmitting.discard(key)
        self.latest[key], self.rows[row] = row, (State.INTENT, None)

    def reported(self, row: str, state: State | None, task_id: str | None = None) -> None:
        """`None`: the row leaves no trace."""
        if row in self.rows:  # else it is another process's
            _, known = self.rows.pop(row)
            if state is not None:
                self.rows[row] = state, known or task_id


class Hammer:
    """Works on keys until each is solved, through several journals on the same rows."""

    def __init__(self, journals: Sequence[AnyJournal], seed: int, *, alone: bool = True) -> None:
        self.journals = journals
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.alone = alone  # whether no other process works on the same keys
        self.calls = self.cancelled = 0

    async def work(self, key: str) -> None:
        """Call until the key is solved; cut off at random most of the time."""
        for attempt in range(10_000):
            patience = self.rng.choice([0, 0, 0.0005, 0.002, 0.01, 0.05]) if attempt < 40 else 60
            with anyio.CancelScope(deadline=anyio.current_time() + patience) as scope:
                if self.rng.random() < 0.1 and attempt < 40:
                    scope.cancel()
                self.calls += 1
                if await self.call(key, self.rng.choice(self.journals)):
                    return
            self.cancelled += scope.cancelled_caught
            if not scope.cancelled_caught:
                await anyio.sleep(0.001)
        raise AssertionError(f"{key} never got through")

    async def call(self, key: str, journal: AnyJournal) -> bool:
        """Whether the key is solved."""
        resubmit = self.rng.random() < 0.3
        self.ledger.calls(key, resubmit=resubmit)
        claim = await journal.begin(intent(key), resubmit=resubmit)
        if claim.kind is ClaimKind.NEW:
            self.ledger.begun(key, claim.submit_id, alone=self.alone)
            return await self.submit(key, journal, claim.submit_id)
        if claim.kind is ClaimKind.HELD and claim.mine:
            self.ledger.taken(key)
            return await self.wait(key, journal, claim.submit_id)
        if claim.kind is ClaimKind.UNCERTAIN:
            await self.forget(journal, claim.submit_id)
        return claim.kind is ClaimKind.DONE

    async def forget(self, journal: AnyJournal, row: str) -> None:
        with anyio.CancelScope(shield=True):
            forgotten = await journal.forget(row)
        if forgotten:
            self.ledger.reported(row, State.FORGOTTEN)

    async def submit(self, key: str, journal: AnyJournal, row: str) -> bool:
        """From the intent to some fate; a cancellation before the first report is before anything was sent."""
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.release(key, journal, row)
            raise
        fate = self.rng.choice(["released", "refused", "uncertain", "accepted", "accepted", "accepted"])
        if fate == "released":
            await self.release(key, journal, row)
        elif fate == "refused":
            self.ledger.reported(row, State.REFUSED)
            self.ledger.let_go(key)
            await journal.refused(row, "ERROR")
        elif fate == "uncertain":
            self.ledger.reported(row, State.UNCERTAIN)
            self.ledger.let_go(key)
            await journal.uncertain(row)
        else:
            self.ledger.reported(row, State.ACCEPTED, f"task-{row}")
            try:
                await journal.accepted(row, f"task-{row}")
            except anyio.get_cancelled_exc_class():
                self.ledger.let_go(key)
                with anyio.CancelScope(shield=True):
                    await journal.abandoned(row)
                raise
            return await self.wait(key, journal, row)
        return False

    async def release(self, key: str, journal: AnyJournal, row: str) -> None:
        self.ledger.reported(row, None)
        self.ledger.let_go(key)
        await journal.released(row)

    async def wait(self, key: str, journal: AnyJournal, row: str) -> bool:
        fate = self.rng.choice([State.SOLVED, State.SOLVED, State.FAILED, State.UNCERTAIN, State.ACCEPTED])
        self.ledger.reported(row, fate)
        self.ledger.let_go(key)
        if fate is State.ACCEPTED:
            await journal.abandoned(row)
        elif fate is State.UNCERTAIN:
            await journal.lost(row)
        else:
            await journal.finished(row, State.SOLVED if fate is State.SOLVED else State.FAILED)
        return fate is State.SOLVED

    async def run(self, keys: Sequence[str]) -> None:
        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                for key in keys:
                    tasks.start_soon(self.work, key)


@pytest.fixture(params=["memory", "sqlite"])
async def journals(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[AnyJournal]]:
    """Two journals on the same rows."""
    monkeypatch.setattr(writers, "SPACING", 0.004)
    made: list[AnyJournal]
    if request.param == "memory":
        made = [first := MemoryJournal(), first.another()]
    else:
        made = [SQLiteJournal(tmp_path / "j.db", patience=60), SQLiteJournal(tmp_path / "j.db", patience=60)]
    async with AsyncExitStack() as stack:
        for journal in made:
            await stack.enter_async_context(journal)
        yield made


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_and_called_again(journals: list[AnyJournal], seed: int) -> None:
    """Thousands of calls cut off anywhere and repeated at once: no error, no second holder, every key gets through,
    and the rows are those that were told and reported."""
    hammer = Hammer(journals[:1], seed)
    await hammer.run([f"{i}" for i in range(300)])
    found = {entry.submit_id: (entry.state, entry.task_id) async for entry in journals[0].entries()}

    assert hammer.ledger.rows == found
    assert hammer.calls > 2_000
    assert hammer.cancelled > 1_000


async def test_cancelled_and_called_again_elsewhere(journals: list[AnyJournal]) -> None:
    """The same where each call goes to one of two journals on the same rows."""
    hammer = Hammer(journals, 7)
    await hammer.run([f"{i}" for i in range(100)])
    found = {entry.submit_id: (entry.state, entry.task_id) async for entry in journals[1].entries()}

    assert hammer.ledger.rows == found


# Several processes


async def other(path: str, seed: str) -> None:
    """Hammer the same keys as the others; say when each key was worked on, and what became of each row."""
    writers.SPACING = 0.004
    async with SQLiteJournal(path, patience=60) as journal:
        hammer = Hammer([journal], int(seed), alone=False)
        await hammer.run([f"{i}" for i in range(100)])
    ledger = hammer.ledger
    for key, began, ended in ledger.worked:
        print("worked", key, began, ended)
    for row, (state, task_id) in ledger.rows.items():
        print("row", row, state, task_id)


async def test_several_processes(tmp_path: Path, anyio_backend_name: str) -> None:
    """Three processes on one file: none fails, no key is held by two at a time, nothing that was told is lost."""
    path = tmp_path / "j.db"
    lines: list[list[str]] = []

    async def process(seed: int) -> None:
        command = [sys.executable, "-m", "tests.test_journal_hammer", str(path), str(seed), anyio_backend_name]
        done = await anyio.run_process(command, stderr=None)
        lines.extend(line.split() for line in done.stdout.decode().splitlines())

    async with anyio.create_task_group() as tasks:
        for seed in range(3):
            tasks.start_soon(process, seed)
    told = {line[1]: (line[2], line[3]) for line in lines if line[0] == "row"}
    worked = sorted((line[1], int(line[2]), int(line[3])) for line in lines if line[0] == "worked")
    async with SQLiteJournal(path) as journal:
        entries = [entry async for entry in journal.entries()]
    solved = sorted(entry.key or "" for entry in entries if entry.state is State.SOLVED)

    assert sorted(f"{i}" for i in range(100)) == solved
    assert told.keys() == {entry.submit_id for entry in entries}
    assert [] == [(a, b) for a, b in itertools.pairwise(worked) if a[0] == b[0] and a[2] > b[1]]
    # What one process left open another may have ended.
    ended = {e.submit_id: (str(e.state), str(e.task_id)) for e in entries}
    assert [] == [i for i, row in told.items() if row[0] not in ("accepted", "uncertain") and row != ended[i]]


# Batches


IDS = [f"{i:032x}" for i in range(5)]
CHANGES = st.one_of(
    st.builds(
        lambda submit_id, key, resubmit: ledger.Begin(intent(key, submit_id), resubmit),
        st.sampled_from(IDS),
        st.sampled_from(["a", "b", None]),
        st.booleans(),
    ),
    st.builds(ledger.Accepted, st.sampled_from(IDS), st.sampled_from(["1", "2"])),
    st.builds(ledger.Finished, st.sampled_from(IDS), st.sampled_from([State.SOLVED, State.FAILED])),
    *(
        st.builds(kind, st.sampled_from(IDS))
        for kind in (
            ledger.Uncertain,
            ledger.Lost,
            ledger.Refused,
            ledger.Released,
            ledger.Abandoned,
            ledger.Forgotten,
            ledger.TakeUp,
        )
    ),
)


def answered(change: ledger.Change, book: ledger.Book) -> object:
    try:
        return told(change.apply(book, 0.0))
    except JournalError:
        return JournalError


def told(answer: object) -> object:
    """What can be compared of an answer."""
    if isinstance(answer, Claim):
        return answer.kind, answer.mine, answer.submit_id, answer.entry.state, answer.task_id
    if isinstance(answer, JournalError):
        return JournalError
    return getattr(answer, "submit_id", answer)


@given(batches=st.lists(st.lists(CHANGES, min_size=1, max_size=8), max_size=5))
@example(batches=[[ledger.Begin(intent("a", IDS[0]))], [ledger.Released(IDS[0]), ledger.Begin(intent("a", IDS[1]))]])
@example(batches=[[ledger.Begin(intent("a", IDS[0]))], [ledger.Released(IDS[0]), ledger.Begin(intent("b", IDS[0]))]])
@example(
    batches=[
        [ledger.Begin(intent("a", IDS[0])), ledger.Uncertain(IDS[0])],
        [ledger.Begin(intent("a", IDS[1]), resubmit=True), ledger.Released(IDS[1]), ledger.Begin(intent("a", IDS[2]))],
    ]
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_follow_the_rules(batches: list[list[ledger.Change]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """However changes are put together in batches, the file says what the rules say of them one after the other."""
    file = store.Store(tmp_path_factory.mktemp("batches") / "j.db", synchronous="normal", wipe=False)
    file.open()
    try:
        book = _Book()
        book.owner = file._owner.token
        book.living.add(file._owner.token)
        for batch in batches:
            expected = [answered(change, book) for change in batch]
            assert expected == [told(answer) for answer in file.commit(batch)]
        _, entries = file.page(-1, None, None)
        rows = {e.submit_id: (e.key, e.state, e.task_id) for e in entries}
        assert {i: (row.key, row.state, row.task_id) for i, row in book.by_id.items()} == rows
    finally:
        file.close()


if __name__ == "__main__":
    anyio.run(other, *sys.argv[1:3], backend=sys.argv[3])
