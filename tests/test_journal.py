"""The rules of a journal, the same in memory and in a file."""

from __future__ import annotations

import pickle
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio
import attrs
import pytest

from ucaptcha_async.errors import ClientStateError, ConfigurationError, JournalError
from ucaptcha_async.journal import (
    Claim,
    ClaimKind,
    Intent,
    Journal,
    MemoryJournal,
    SQLiteJournal,
    State,
    fingerprint,
)
from ucaptcha_async.json_values import NumericId, wire_id

ACCOUNT = fingerprint("sk-marked-key", "api.example.com")


def intent(key: str | None = None, account: str = ACCOUNT) -> Intent:
    return Intent(account=account, host="api.example.com", type="RecaptchaV2TaskProxyless", key=key)


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def journal(kind: str, tmp_path: Path) -> AsyncIterator[MemoryJournal | SQLiteJournal]:
    made = (
        MemoryJournal(store_solutions=True)
        if kind == "memory"
        else SQLiteJournal(tmp_path / "solves.db", store_solutions=True)
    )
    async with made:
        yield made


def second(journal: MemoryJournal | SQLiteJournal) -> MemoryJournal | SQLiteJournal:
    """Another process's journal on the same rows."""
    return journal.another() if isinstance(journal, MemoryJournal) else SQLiteJournal(journal.path)


def bytes_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir())


async def states(journal: Journal) -> list[State]:
    return [entry.state async for entry in journal.entries()]


async def test_is_a_journal(journal: MemoryJournal | SQLiteJournal) -> None:
    """Both implementations satisfy the protocol that others may implement."""
    as_protocol: Journal = journal

    assert isinstance(as_protocol, Journal)


async def test_life_of_a_solve(journal: MemoryJournal | SQLiteJournal) -> None:
    """Intent, id and outcome are recorded in turn, with cost as an exact decimal."""
    before = datetime.now(UTC)
    claim = await journal.begin(intent("a"))
    begun = [entry async for entry in journal.entries()]
    await journal.accepted(claim.submit_id, "task-1")
    accepted = [entry async for entry in journal.entries()]
    first = await journal.finished(claim.submit_id, State.SOLVED, cost=Decimal("0.00299"), solve_time=12.5)
    (entry,) = [entry async for entry in journal.entries()]

    assert (ClaimKind.NEW, True, None) == (claim.kind, claim.mine, claim.task_id)
    assert [State.INTENT] == [e.state for e in begun]
    assert [(State.ACCEPTED, "task-1")] == [(e.state, e.task_id) for e in accepted]
    assert first
    assert (State.SOLVED, "task-1", Decimal("0.00299"), 12.5) == (
        entry.state,
        entry.task_id,
        entry.cost,
        entry.solve_time,
    )
    assert ("a", "RecaptchaV2TaskProxyless", "api.example.com", ACCOUNT) == (
        entry.key,
        entry.type,
        entry.host,
        entry.account,
    )
    assert before.timestamp() - 1 <= entry.created_at.timestamp() <= entry.updated_at.timestamp() + 1e-3


async def test_second_end_does_not_count(journal: MemoryJournal | SQLiteJournal) -> None:
    """Of two reports of the same end the first counts, so that its cost is counted once."""
    claim = await journal.begin(intent())
    await journal.accepted(claim.submit_id, "task-1")

    assert await journal.finished(claim.submit_id, State.SOLVED, cost=Decimal(1))
    assert not await journal.finished(claim.submit_id, State.FAILED, cost=Decimal(2))
    assert [(State.SOLVED, Decimal(1))] == [(e.state, e.cost) async for e in journal.entries()]


async def test_nameless_work_is_not_deduplicated(journal: MemoryJournal | SQLiteJournal) -> None:
    """Without a key every submit is new."""
    claims = [await journal.begin(intent()) for _ in range(3)]

    assert [ClaimKind.NEW] * 3 == [claim.kind for claim in claims]


async def test_key_being_submitted(journal: MemoryJournal | SQLiteJournal) -> None:
    """A key that is being submitted right now, here or by another living process, is busy."""
    await journal.begin(intent("a"))
    async with second(journal) as other:
        assert ClaimKind.BUSY == (await journal.begin(intent("a"))).kind
        assert ClaimKind.BUSY == (await other.begin(intent("a"))).kind


async def test_key_with_a_task(journal: MemoryJournal | SQLiteJournal) -> None:
    """A key that has a task is held: the second caller gets the id, and is not answerable while the first lives."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    async with second(journal) as other:
        held = await other.begin(intent("a"))

    assert (ClaimKind.HELD, "task-1", False) == (held.kind, held.task_id, held.mine)
    assert claim.submit_id == held.submit_id


async def test_abandoned_task_is_taken_up(journal: MemoryJournal | SQLiteJournal) -> None:
    """A task that nobody waits for any more goes to the next who asks for its key."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    await journal.abandoned(claim.submit_id)
    async with second(journal) as other:
        held = await other.begin(intent("a"))
        again = await journal.begin(intent("a"))

    assert (ClaimKind.HELD, True) == (held.kind, held.mine)
    assert (ClaimKind.HELD, False) == (again.kind, again.mine)


async def test_a_late_process_abandons_nothing_of_another(journal: MemoryJournal | SQLiteJournal) -> None:
    """A process that was taken for dead does not give up what another has taken over."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    await journal.abandoned(claim.submit_id)
    async with second(journal) as other:
        assert (await other.begin(intent("a"))).mine
        await journal.abandoned(claim.submit_id)
        again = await journal.begin(intent("a"))

        assert (ClaimKind.HELD, False) == (again.kind, again.mine)


async def test_what_was_never_sent_does_not_stay_uncertain(journal: MemoryJournal | SQLiteJournal) -> None:
    """An intent that others took for uncertain leaves no trace when its process says that it was never sent."""
    claim = await journal.begin(intent("a"))
    await journal.abandoned(claim.submit_id)
    await journal.released(claim.submit_id)

    assert await states(journal) == []
    assert (await journal.begin(intent("a"))).kind is ClaimKind.NEW


async def test_abandoned_intent_is_uncertain(journal: MemoryJournal | SQLiteJournal) -> None:
    """An intent that is abandoned may have been sent."""
    claim = await journal.begin(intent("a"))
    await journal.abandoned(claim.submit_id)

    assert [State.UNCERTAIN] == await states(journal)


async def test_finished_key_is_answered(journal: MemoryJournal | SQLiteJournal) -> None:
    """A solved key is answered from the journal, with its solution if that is stored."""
    claim = await journal.begin(intent("a"))
    await journal.finished(
        claim.submit_id, State.SOLVED, task_id="task-1", cost=Decimal("0.1"), solution={"token": "t0", "\ud800": "ü"}
    )
    done = await journal.begin(intent("a"))

    assert (ClaimKind.DONE, "task-1", Decimal("0.1"), False) == (done.kind, done.task_id, done.entry.cost, done.mine)
    assert {"token": "t0", "\ud800": "ü"} == done.entry.solution
    assert {"token": "t0", "\ud800": "ü"} == await journal.solution_for(ACCOUNT, "a")
    assert await journal.solution_for(ACCOUNT, "b") is None


async def test_accounts_are_apart(journal: MemoryJournal | SQLiteJournal) -> None:
    """The same key of two accounts is two pieces of work."""
    await journal.begin(intent("a"))
    other = fingerprint("another", "api.example.com")

    assert ClaimKind.NEW == (await journal.begin(intent("a", other))).kind
    assert 1 == len([e async for e in journal.entries(account=other)])


@pytest.mark.parametrize("end", ["failed", "refused", "released", "forgotten"])
async def test_key_is_free_again(journal: MemoryJournal | SQLiteJournal, end: str) -> None:
    """After a refunded failure, a refusal, a withdrawal or a decision of the user the key is free."""
    claim = await journal.begin(intent("a"))
    if end == "failed":
        await journal.accepted(claim.submit_id, "task-1")
        await journal.finished(claim.submit_id, State.FAILED, error_code="ERROR_CAPTCHA_UNSOLVABLE")
    elif end == "refused":
        await journal.refused(claim.submit_id, "ERROR_ZERO_BALANCE")
    elif end == "released":
        await journal.released(claim.submit_id)
    else:
        await journal.uncertain(claim.submit_id)
        assert await journal.forget(claim.submit_id)
    expected = [] if end == "released" else [State(end)]

    assert expected == await states(journal)
    assert ClaimKind.NEW == (await journal.begin(intent("a"))).kind


async def test_uncertain_key(journal: MemoryJournal | SQLiteJournal) -> None:
    """A key of unknown fate is not submitted again, unless resubmission is asked for."""
    claim = await journal.begin(intent("a"))
    await journal.uncertain(claim.submit_id)
    refused = await journal.begin(intent("a"))
    again = await journal.begin(intent("a"), resubmit=True)

    assert (ClaimKind.UNCERTAIN, claim.submit_id) == (refused.kind, refused.submit_id)
    assert ClaimKind.NEW == again.kind
    assert [State.FORGOTTEN, State.INTENT] == await states(journal)


async def test_resubmit_respects_paid_work(journal: MemoryJournal | SQLiteJournal) -> None:
    """`resubmit` gives up an uncertain row only: never one that is being sent, has a task, or is solved."""
    sending = await journal.begin(intent("a"))
    kinds = [(await journal.begin(intent("a"), resubmit=True)).kind]
    await journal.accepted(sending.submit_id, "task-1")
    kinds.append((await journal.begin(intent("a"), resubmit=True)).kind)
    await journal.finished(sending.submit_id, State.SOLVED)
    kinds.append((await journal.begin(intent("a"), resubmit=True)).kind)

    assert [ClaimKind.BUSY, ClaimKind.HELD, ClaimKind.DONE] == kinds


async def test_late_answer_settles_an_uncertain_submit(journal: MemoryJournal | SQLiteJournal) -> None:
    """An id that arrives after the submit was given up as uncertain makes it accepted."""
    claim = await journal.begin(intent("a"))
    await journal.uncertain(claim.submit_id)
    await journal.accepted(claim.submit_id, "task-1")
    await journal.uncertain(claim.submit_id)

    assert [State.ACCEPTED] == await states(journal)


async def test_lost_task(journal: MemoryJournal | SQLiteJournal) -> None:
    """A task that the service does not know any more keeps its key and its id; what happens next is the user's."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    await journal.lost(claim.submit_id)
    again = await journal.begin(intent("a"))
    (found,) = await journal.open_entries(ACCOUNT)
    await journal.refused(claim.submit_id, "ERROR_ZERO_BALANCE")

    assert (ClaimKind.UNCERTAIN, "task-1", False) == (again.kind, again.task_id, again.mine)
    assert (State.UNCERTAIN, "task-1") == (found.state, found.task_id)
    assert [State.UNCERTAIN] == await states(journal)

    assert ClaimKind.NEW == (await journal.begin(intent("a"), resubmit=True)).kind
    assert [(State.FORGOTTEN, "task-1"), (State.INTENT, None)] == [
        (entry.state, entry.task_id) async for entry in journal.entries()
    ]


@pytest.mark.parametrize("end", ["forgotten", "accepted", "finished"])
async def test_lost_task_is_settled(journal: MemoryJournal | SQLiteJournal, end: str) -> None:
    """A lost task is given up by hand; or it turns up again."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    await journal.lost(claim.submit_id)
    if end == "forgotten":
        assert await journal.forget(claim.submit_id)
    elif end == "accepted":
        await journal.accepted(claim.submit_id, "task-1")
    else:
        assert await journal.finished(claim.submit_id, State.SOLVED)
    expected = {"forgotten": ClaimKind.NEW, "accepted": ClaimKind.HELD, "finished": ClaimKind.DONE}[end]
    await journal.lost(claim.submit_id) if end != "accepted" else None
    again = await journal.begin(intent("a"))

    assert expected is again.kind
    assert again.task_id == (None if end == "forgotten" else "task-1")


async def test_what_was_taken_up_and_stays_uncertain_can_be_forgotten(journal: MemoryJournal | SQLiteJournal) -> None:
    """Nobody works on a row that recovery has reported as uncertain."""
    claim = await journal.begin(intent("a"))
    await journal.abandoned(claim.submit_id)
    (entry,) = await journal.open_entries(ACCOUNT)
    assert await journal.take_up(entry)
    assert not await journal.forget(claim.submit_id)
    await journal.uncertain(claim.submit_id)

    assert await journal.forget(claim.submit_id)


@pytest.mark.parametrize("report", ["accepted", "finished"])
async def test_ids_are_kept_as_they_came(journal: MemoryJournal | SQLiteJournal, report: str) -> None:
    """An id that the service gave as a number is one again when it is read, digit for digit; text stays text."""
    for key, task_id in (("number", NumericId("12")), ("text", "0012"), ("long", NumericId("9007199254740993111"))):
        claim = await journal.begin(intent(key))
        if report == "accepted":
            await journal.accepted(claim.submit_id, task_id)
        else:
            await journal.finished(claim.submit_id, State.SOLVED, task_id=task_id)
    claims = {key: (await journal.begin(intent(key))).task_id for key in ("number", "text", "long")}
    listed = {entry.key: entry.task_id async for entry in journal.entries()}
    copied = pickle.loads(pickle.dumps([entry async for entry in journal.entries()]))

    for ids in (claims, listed, {entry.key: entry.task_id for entry in copied}):
        assert {"number": 12, "text": "0012", "long": 9007199254740993111} == {
            k: wire_id(v or "") for k, v in ids.items()
        }
        assert {"number": "12", "text": "0012", "long": "9007199254740993111"} == ids


async def test_refusal_does_not_undo_acceptance(journal: MemoryJournal | SQLiteJournal) -> None:
    """Once a task id is known, neither a refusal nor a withdrawal frees the key."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    await journal.refused(claim.submit_id, "ERROR_ZERO_BALANCE")
    await journal.released(claim.submit_id)

    assert [State.ACCEPTED] == await states(journal)


async def test_report_on_nothing(journal: MemoryJournal | SQLiteJournal) -> None:
    """A report on a row that is not there is an error, not silence; others of the same time are not harmed."""
    claim = await journal.begin(intent())

    async def bad() -> None:
        with pytest.raises(JournalError, match="no submit nothing"):
            await journal.accepted("nothing", "task-1")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bad)
        tasks.start_soon(journal.accepted, claim.submit_id, "task-2")

    assert [State.ACCEPTED] == await states(journal)


async def test_same_intent_twice(journal: MemoryJournal | SQLiteJournal) -> None:
    """An intent is begun once."""
    one = intent()
    await journal.begin(one)

    with pytest.raises(JournalError, match="begun before"):
        await journal.begin(one)


async def test_what_a_dead_process_left(journal: MemoryJournal | SQLiteJournal) -> None:
    """Of a process that is gone, accepted tasks and possibly sent intents are open; of a living one, nothing is."""
    mine = await journal.begin(intent("mine"))
    await journal.accepted(mine.submit_id, "task-mine")
    other = second(journal)
    async with other:
        sent = await other.begin(intent("sent"))
        paid = await other.begin(intent("paid"))
        done = await other.begin(intent("done"))
        await other.accepted(paid.submit_id, "task-paid")
        await other.finished(done.submit_id, State.SOLVED)
        alive = await journal.open_entries(ACCOUNT)
    dead = await journal.open_entries(ACCOUNT)

    assert [] == alive
    assert [(sent.submit_id, State.UNCERTAIN, None), (paid.submit_id, State.ACCEPTED, "task-paid")] == [
        (entry.submit_id, entry.state, entry.task_id) for entry in dead
    ]
    assert [] == await journal.open_entries("another account")
    assert ClaimKind.UNCERTAIN == (await journal.begin(intent("sent"))).kind
    assert (ClaimKind.HELD, True) == ((held := await journal.begin(intent("paid"))).kind, held.mine)


async def test_orphan_is_taken_up_once(journal: MemoryJournal | SQLiteJournal) -> None:
    """Of several who take up the same orphan, one gets it; when it ends, nobody does."""
    async with second(journal) as dead:
        claim = await dead.begin(intent("a"))
    (orphan,) = await journal.open_entries(ACCOUNT)
    async with second(journal) as rival:
        taken = [await journal.take_up(orphan), await rival.take_up(orphan), await journal.take_up(orphan)]
        assert [] == await rival.open_entries(ACCOUNT)
    await journal.accepted(claim.submit_id, "task-1")
    await journal.finished(claim.submit_id, State.FAILED)

    assert [State.UNCERTAIN, None, None] == [entry and entry.state for entry in taken]
    assert await journal.take_up(orphan) is None


async def test_forgetting(journal: MemoryJournal | SQLiteJournal) -> None:
    """What is being worked on cannot be forgotten; what is solved can, and its solution goes."""
    claim = await journal.begin(intent("a"))

    assert not await journal.forget(claim.submit_id)

    await journal.finished(claim.submit_id, State.SOLVED, solution={"token": "t0"})

    assert await journal.forget(claim.submit_id)
    assert not await journal.forget(claim.submit_id)
    assert await journal.solution_for(ACCOUNT, "a") is None


async def test_solutions_are_not_stored_unasked(kind: str, tmp_path: Path) -> None:
    """Without `store_solutions` a token reaches neither the rows nor the file."""
    made = MemoryJournal() if kind == "memory" else SQLiteJournal(tmp_path / "j.db")
    async with made as journal:
        claim = await journal.begin(intent("a"))
        await journal.finished(claim.submit_id, State.SOLVED, solution={"token": "marked-token"})
        done = await journal.begin(intent("a"))

        assert (ClaimKind.DONE, None) == (done.kind, done.entry.solution)
        assert b"marked-token" not in bytes_of(tmp_path)


async def test_secrets_do_not_show(journal: MemoryJournal | SQLiteJournal) -> None:
    """Neither the repr nor a pickle of what the journal gives holds a stored token; journals are not pickled."""
    claim = await journal.begin(intent("a"))
    await journal.finished(claim.submit_id, State.SOLVED, solution={"token": "marked-token"})
    done = await journal.begin(intent("a"))
    copy: Claim = pickle.loads(pickle.dumps(done))

    assert "marked-token" not in repr(done) + str(done) + repr(journal)
    assert b"marked-token" not in pickle.dumps(done)
    assert (done.kind, done.entry.task_id, None) == (copy.kind, copy.entry.task_id, copy.entry.solution)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(journal)


async def test_totals(journal: MemoryJournal | SQLiteJournal) -> None:
    """Costs add up exactly by type and state."""
    for _ in range(3):
        claim = await journal.begin(intent())
        await journal.finished(claim.submit_id, State.SOLVED, cost=Decimal("0.1"))
    await journal.begin(intent())
    totals = await journal.totals(ACCOUNT)

    assert [(State.INTENT, 1, Decimal(0)), (State.SOLVED, 3, Decimal("0.3"))] == [
        (t.state, t.count, t.cost) for t in totals
    ]
    assert [] == await journal.totals("another account")


async def test_listing(journal: MemoryJournal | SQLiteJournal) -> None:
    """Rows come oldest first, by state if asked, however many there are."""
    async with anyio.create_task_group() as tasks:
        for i in range(1_203):
            tasks.start_soon(journal.begin, intent(f"{i}"))
    every = [entry async for entry in journal.entries()]
    await journal.refused(every[7].submit_id, "X")

    assert {f"{i}" for i in range(1_203)} == {entry.key for entry in every}
    assert [every[7].submit_id] == [e.submit_id async for e in journal.entries(states=[State.REFUSED])]
    assert [] == [e async for e in journal.entries(states=[])]


async def test_pruning(journal: MemoryJournal | SQLiteJournal) -> None:
    """Old ended rows can be removed; what is open stays, however old."""
    old = await journal.begin(intent("old"))
    await journal.finished(old.submit_id, State.SOLVED)
    await journal.begin(intent("open"))
    removed = [await journal.prune(time.time() - 60), await journal.prune(time.time() + 60)]

    assert [0, 1] == removed
    assert [State.INTENT] == await states(journal)
    assert ClaimKind.NEW == (await journal.begin(intent("old"))).kind


async def test_shared_by_clients(kind: str, tmp_path: Path) -> None:
    """Several clients may open one journal; it closes with the last, and can be opened again."""
    journal = MemoryJournal() if kind == "memory" else SQLiteJournal(tmp_path / "j.db")
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(journal.open)
    await journal.aclose()
    await journal.aclose()
    await journal.begin(intent("a"))
    await journal.aclose()
    await journal.aclose()

    with pytest.raises(ClientStateError):
        await journal.begin(intent("b"))
    async with journal:
        assert ClaimKind.UNCERTAIN == (await journal.begin(intent("a"))).kind


async def test_cancelled_begin_leaves_nothing(journal: MemoryJournal | SQLiteJournal) -> None:
    """A `begin` that is cancelled before it starts has not happened."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await journal.begin(intent("a"))

    assert scope.cancelled_caught
    assert ClaimKind.NEW == (await journal.begin(intent("a"))).kind
    assert [State.INTENT] == await states(journal)


@pytest.mark.parametrize(
    "wrong",
    [{"key": ""}, {"key": "a\0b"}, {"key": "\ud800"}, {"key": 3}, {"account": ""}, {"type": None}, {"context": "a\0b"}],
)
async def test_impossible_intents(journal: MemoryJournal | SQLiteJournal, wrong: dict[str, str]) -> None:
    """What no file could hold unchanged is refused with the field's name."""
    fields = {"account": ACCOUNT, "host": "h", "type": "T"} | wrong

    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        await journal.begin(Intent(**fields))


async def test_context(journal: MemoryJournal | SQLiteJournal) -> None:
    """What a hook said at the start of a solve is there for whoever meets the row later, to the end."""
    begun = attrs.evolve(intent("a"), context="00-traceparent-01")
    claim = await journal.begin(begun)
    await journal.begin(intent("b"))
    await journal.accepted(claim.submit_id, "task-1")
    held = await journal.begin(intent("a"))
    await journal.abandoned(claim.submit_id)
    async with second(journal) as other:
        (entry,) = [entry for entry in await other.open_entries(ACCOUNT) if entry.key == "a"]
        taken = await other.take_up(entry)
        await other.finished(claim.submit_id, State.SOLVED, task_id="task-1")
        found = {entry.key: entry.context async for entry in other.entries()}

    assert taken is not None
    assert {entry.context for entry in (claim.entry, held.entry, entry, taken)} == {begun.context}
    assert found == {"a": begun.context, "b": None}


async def test_odd_reports(journal: MemoryJournal | SQLiteJournal) -> None:
    """Whatever the service sends in an answer, the news that a task is paid is written."""
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-\ud800\0")
    await journal.finished(
        claim.submit_id,
        State.SOLVED,
        cost=Decimal("NaN"),
        solve_time=float("inf"),
        error_code="\udfff",
        solution={"token": object()},  # type: ignore[dict-item]
    )
    (entry,) = [entry async for entry in journal.entries()]

    assert (State.SOLVED, "task-??", None, None, "?") == (
        entry.state,
        entry.task_id,
        entry.cost,
        entry.solve_time,
        entry.error_code,
    )
    with pytest.raises(ConfigurationError, match="state"):
        await journal.finished(claim.submit_id, State.UNCERTAIN)  # type: ignore[arg-type]


def test_fingerprint() -> None:
    """A fingerprint tells accounts apart, by key and by host, and does not hold the key."""
    marks = {fingerprint(key, host) for key in ("k1", "k2") for host in ("a.example", "b.example")}

    assert 4 == len(marks)
    assert fingerprint("k1", "A.example") in marks
    assert {32} == {len(mark) for mark in marks}


async def test_crash_of_a_journal_in_memory() -> None:
    """`MemoryJournal.crash` leaves the rows as SIGKILL would, for simulations."""
    journal = MemoryJournal()
    await journal.open()
    claim = await journal.begin(intent("a"))
    await journal.accepted(claim.submit_id, "task-1")
    journal.crash()
    with pytest.raises(ClientStateError):
        await journal.finished(claim.submit_id, State.SOLVED)
    async with journal:
        assert ["task-1"] == [entry.task_id for entry in await journal.open_entries(ACCOUNT)]
