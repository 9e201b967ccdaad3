"""Several real processes on one journal: races, and deaths by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.text import TextReceiveStream

from ucaptcha_async.errors import ClientStateError
from ucaptcha_async.journal import ClaimKind, Entry, Intent, SQLiteJournal, State

ACCOUNT = "0" * 32
KEYS = 60


def intent(key: str | None) -> Intent:
    return Intent(account=ACCOUNT, host="h", type="T", key=key)


# What the other processes do


async def race(journal: SQLiteJournal, seed: str) -> None:
    """Solve all keys in an order of its own; say which were submitted."""
    keys = [f"{i}" for i in range(KEYS)]
    random.Random(seed).shuffle(keys)
    async with anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(race_for, journal, key)


async def race_for(journal: SQLiteJournal, key: str) -> None:
    while True:
        claim = await journal.begin(intent(key))
        print(claim.kind, key, flush=True)
        if claim.kind is ClaimKind.NEW:
            await anyio.sleep(random.uniform(0, 0.02))
            await journal.accepted(claim.submit_id, f"task-{key}")
            await anyio.sleep(random.uniform(0, 0.02))
            await journal.finished(claim.submit_id, State.SOLVED)
        if claim.kind is ClaimKind.DONE:
            return
        await anyio.sleep(0.01)


async def leave(journal: SQLiteJournal, _: str) -> None:
    """Stop between the intent and its answer, and between the answer and the outcome."""
    await journal.begin(intent("sent"))
    paid = await journal.begin(intent("paid"))
    await journal.accepted(paid.submit_id, "task-paid")
    print("ready", flush=True)
    await anyio.sleep_forever()


async def fork(journal: SQLiteJournal, _: str) -> None:
    """Leave a child that lives on; the child must not use the journal."""
    await journal.begin(intent("sent"))
    child = os.fork()
    if not child:
        with contextlib.suppress(ClientStateError):
            journal._ready()
            print("used in the child", flush=True)
        print(os.getpid(), flush=True)
        signal.pause()
    await anyio.sleep_forever()


async def work(journal: SQLiteJournal, _: str) -> None:
    """Report as fast as possible, and say what has been confirmed."""

    async def solves(worker: int) -> None:
        for i in range(100_000):
            claim = await journal.begin(intent(f"{worker}-{i}"))
            print("intent", claim.submit_id, flush=True)
            await journal.accepted(claim.submit_id, f"task-{claim.submit_id}")
            print("accepted", claim.submit_id, flush=True)
            await journal.finished(claim.submit_id, State.SOLVED)
            print("solved", claim.submit_id, flush=True)

    async with anyio.create_task_group() as tasks:
        for worker in range(20):
            tasks.start_soon(solves, worker)


async def other(part: str, path: str, argument: str) -> None:
    async with SQLiteJournal(path) as journal:
        await {"race": race, "leave": leave, "fork": fork, "work": work}[part](journal, argument)


# The tests


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solves.db"


@asynccontextmanager
async def another(part: str, path: Path, argument: str = "") -> AsyncIterator[anyio.abc.Process]:
    """Another process; killed at the end, whatever it does."""
    command = [sys.executable, "-m", "tests.test_journal_processes", part, str(path), argument]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def output(process: anyio.abc.Process) -> TextReceiveStream:
    assert process.stdout is not None
    return TextReceiveStream(process.stdout)


async def said(process: anyio.abc.Process, enough: int = 0, *, kill: bool = False) -> list[str]:
    """What it says, up to so many lines (at which it may be killed), or to its end. Whole lines only."""
    text = ""
    async for some in output(process):
        text += some
        if enough and text.count("\n") >= enough:
            if not kill:
                break
            process.kill()
    return text[: text.rfind("\n") + 1].splitlines()


async def states(path: Path) -> dict[str, Entry]:
    async with SQLiteJournal(path) as journal:
        return {entry.submit_id: entry async for entry in journal.entries()}


async def test_race_for_the_same_keys(path: Path) -> None:
    """Processes that want the same keys at once submit each key exactly once between them."""
    heard: list[list[str]] = [[], [], []]

    async def racer(number: int) -> None:
        async with another("race", path, f"{number}") as process:
            heard[number] = await said(process)
            assert 0 == await process.wait()

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(racer, number)
    lines = [line for lines in heard for line in lines]
    submitted = Counter(line.split()[1] for line in lines if line.startswith("new "))
    done = Counter(line.split()[1] for line in lines if line.startswith("done "))

    assert {f"{i}": 1 for i in range(KEYS)} == submitted
    assert {f"{i}": 3 for i in range(KEYS)} == done


async def test_killed_between_intent_and_answer(path: Path) -> None:
    """While a process lives, even stopped, its work is its own; killed, its intents are uncertain, its tasks free."""
    async with SQLiteJournal(path) as journal:
        async with another("leave", path) as process:
            assert ["ready"] == await said(process, 1)
            process.send_signal(signal.SIGSTOP)
            alive = [(await journal.begin(intent(key))) for key in ("sent", "paid")]
            nothing = await journal.open_entries(ACCOUNT)
            process.kill()
            await process.wait()
        found = await journal.open_entries(ACCOUNT)
        dead = [(await journal.begin(intent(key))) for key in ("sent", "paid")]

    assert [] == nothing
    assert [(ClaimKind.BUSY, False), (ClaimKind.HELD, False)] == [(c.kind, c.mine) for c in alive]
    assert [(State.UNCERTAIN, None), (State.ACCEPTED, "task-paid")] == [(e.state, e.task_id) for e in found]
    assert [(ClaimKind.UNCERTAIN, False), (ClaimKind.HELD, True)] == [(c.kind, c.mine) for c in dead]


async def test_two_recover_at_once(path: Path) -> None:
    """Of two that recover at the same time, each orphan goes to one."""
    async with another("leave", path) as process:
        await said(process, 1)
    async with SQLiteJournal(path) as one, SQLiteJournal(path) as two:
        taken: list[str] = []

        async def recover(journal: SQLiteJournal) -> None:
            taken.extend([e.submit_id for e in await journal.open_entries(ACCOUNT) if await journal.take_up(e)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recover, one)
            tasks.start_soon(recover, two)

    assert 2 == len(taken) == len(set(taken))


async def test_child_does_not_keep_a_dead_parent_alive(path: Path) -> None:
    """A forked child neither uses its parent's journal nor counts as its parent."""
    async with another("fork", path) as process:
        (child,) = await said(process, 1)
        process.kill()
        await process.wait()
        try:
            async with SQLiteJournal(path) as journal:
                claim = await journal.begin(intent("sent"))
        finally:
            os.kill(int(child), signal.SIGKILL)

    assert ClaimKind.UNCERTAIN == claim.kind


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_confirmed_is_lost(path: Path, seed: int) -> None:
    """Whatever was confirmed before a SIGKILL in full work is in the file."""
    rank = {State.INTENT: 0, State.ACCEPTED: 1, State.SOLVED: 2}
    async with another("work", path) as process:
        lines = await said(process, random.Random(seed).randint(50, 3_000), kill=True)
    confirmed: dict[str, State] = {}
    for word, submit_id in (line.split() for line in lines):
        confirmed[submit_id] = State(word)
    found = await states(path)

    assert len(confirmed) >= 10
    assert [] == [i for i, state in confirmed.items() if i not in found or rank[found[i].state] < rank[state]]


if __name__ == "__main__":
    anyio.run(other, *sys.argv[1:])
