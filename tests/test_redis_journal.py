# ruff: noqa: F811 - fixtures come from redis_kit, and are named again where they are used
"""One journal for many processes, against a real Redis server: the rules of every journal, and what is its own."""

from __future__ import annotations

import inspect
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ucaptcha_async.errors import ClientStateError, ConfigurationError, JournalError
from ucaptcha_async.journal import ClaimKind, Journal, State
from ucaptcha_async.json_values import NumericId

from . import test_journal
from .redis_kit import (  # noqa: F401
    Server,
    collect,
    free_port,
    name,
    on_asyncio,
    on_trio,
    own_server,
    redis_marks,
    relay,
    server,
    until,
    until_async,
)
from .test_journal import ACCOUNT, intent, states

coredis = pytest.importorskip("coredis")

from ucaptcha_async.redis import RedisAway, RedisBack, RedisJournal, RedisStateLost, RedisUnavailableError  # noqa: E402

pytestmark = redis_marks

# The tests of every journal that need no file of their own.
globals().update(
    (title, test)
    for title, test in vars(test_journal).items()
    if title.startswith("test_")
    and "journal" in (parameters := inspect.signature(test).parameters)
    and not parameters.keys() & {"kind", "tmp_path"}
)


def opening(server: Server, name: str, **options: Any) -> RedisJournal:
    return RedisJournal(
        server.url, **{"name": name, "store_solutions": True, "timeout": 0.5, "linger": 0.01, **options}
    )


@pytest.fixture
async def journal(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisJournal]:
    monkeypatch.setattr(test_journal, "second", lambda journal: opening(server, name))
    async with opening(server, name) as made:
        yield made


def die(journal: RedisJournal) -> None:
    """Leaving the journal's block is then like the death of the process: without farewell."""
    journal._leave = anyio.lowlevel.checkpoint  # type: ignore[method-assign]


async def test_opened_by_clients(server: Server, name: str) -> None:
    """Clients open and close it as they like, inside its own `async with`."""
    journal = opening(server, name)
    as_protocol: Journal = journal
    with pytest.raises(ClientStateError, match="async with"):
        await as_protocol.open()
    async with journal:
        await journal.open()
        await journal.aclose()
        await journal.begin(intent("a"))
    with pytest.raises(ClientStateError):
        await journal.begin(intent("b"))


async def test_a_numeric_id_stays_one(journal: RedisJournal) -> None:
    """An id that the service gave as a number goes back to it as a number."""
    one, two = await journal.begin(intent()), await journal.begin(intent())
    await journal.finished(one.submit_id, State.SOLVED, task_id="17")
    await journal.finished(two.submit_id, State.SOLVED, task_id=NumericId("18"))
    rows = {entry.task_id: type(entry.task_id) for entry in [entry async for entry in journal.entries()]}

    # Until `clean` keeps the kind, a report may have lost it before it comes here.
    assert rows["17"] is str
    assert set(rows) == {"17", "18"}


async def test_a_key_is_submitted_once_by_the_fleet(server: Server, name: str) -> None:
    """Of many who begin the same keys at once, one may go ahead with each."""
    kinds: dict[str, Counter[ClaimKind]] = {f"{i}": Counter() for i in range(20)}
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(opening(server, name)) for _ in range(4)]

        async def begin(journal: RedisJournal, key: str) -> None:
            kinds[key][(await journal.begin(intent(key))).kind] += 1

        async with anyio.create_task_group() as tasks:
            for journal in fleet:
                for key in kinds:
                    tasks.start_soon(begin, journal, key)

    assert all(kind == {ClaimKind.NEW: 1, ClaimKind.BUSY: 3} for kind in kinds.values())


async def test_recoverers_never_take_the_same_task(server: Server, name: str) -> None:
    """Of several who recover at once, each open task goes to one."""
    async with opening(server, name) as dead:
        claims = [await dead.begin(intent(f"{i}")) for i in range(30)]
        for claim in claims:
            await dead.accepted(claim.submit_id, f"task-{claim.submit_id}")
    taken: list[str] = []
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(opening(server, name)) for _ in range(4)]

        async def recover(journal: RedisJournal) -> None:
            found = await journal.open_entries(ACCOUNT)
            taken.extend([entry.submit_id for entry in found if await journal.take_up(entry) is not None])

        async with anyio.create_task_group() as tasks:
            for journal in fleet:
                tasks.start_soon(recover, journal)
        assert sorted(taken) == sorted(claim.submit_id for claim in claims)
        assert await fleet[0].open_entries(ACCOUNT) == []


@on_asyncio
async def test_a_dead_process_is_known_by_its_lease(server: Server, name: str) -> None:
    """What a process that renews no more was working on is free after its lease, and not before."""
    async with opening(server, name, lease=1.0) as alive:
        async with opening(server, name, lease=1.0) as dead:
            paid, sent = await dead.begin(intent("paid")), await dead.begin(intent("sent"))
            await dead.accepted(paid.submit_id, "task-1")
            mine = await alive.begin(intent("mine"))
            die(dead)
        assert await alive.open_entries(ACCOUNT) == []
        with anyio.fail_after(10):
            while len(found := await alive.open_entries(ACCOUNT)) < 2:
                await anyio.sleep(0.05)
        await anyio.sleep(1.2)
        assert [entry.submit_id for entry in await alive.open_entries(ACCOUNT)] == [paid.submit_id, sent.submit_id]
        held = await alive.begin(intent("paid"))

    assert [(entry.state, entry.task_id) for entry in found] == [(State.ACCEPTED, "task-1"), (State.UNCERTAIN, None)]
    assert (held.kind, held.mine, held.task_id) == (ClaimKind.HELD, True, "task-1")
    assert mine.mine


async def test_a_late_report_does_not_free_anothers_key(journal: RedisJournal) -> None:
    """A report on a row that gave up its key leaves the key with the row that holds it now."""
    first = await journal.begin(intent("a"))
    await journal.refused(first.submit_id, "X")
    second = await journal.begin(intent("a"))
    await journal.accepted(first.submit_id, "task-late")

    assert second.kind is ClaimKind.NEW
    assert (await journal.begin(intent("a"))).kind is ClaimKind.BUSY


# --- when Redis is away ---


async def test_a_lost_answer(own_server: Server, name: str) -> None:
    """Whether or not a batch was written when its answer was lost: it is done once, and the answer is right."""
    assert own_server.process is not None
    async with opening(own_server, name, timeout=0.2) as journal, opening(own_server, name) as other:
        done = await journal.begin(intent("b"))
        own_server.process.send_signal(signal.SIGSTOP)
        answers: list[Any] = []

        async def begin() -> None:
            answers.append(await journal.begin(intent("a")))

        async def finish() -> None:
            with pytest.raises(JournalError, match="kept in memory"):
                await journal.finished(done.submit_id, State.SOLVED, cost=Decimal("0.1"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            tasks.start_soon(finish)
            await until(lambda: journal.is_away)
            own_server.process.send_signal(signal.SIGCONT)
        assert [answer.kind for answer in answers] == [ClaimKind.NEW]
        assert (await other.begin(intent("a"))).kind is ClaimKind.BUSY
        assert (await other.begin(intent("b"))).kind is ClaimKind.DONE


@pytest.mark.parametrize("lost", ["load", "commit"])
async def test_an_answer_that_never_comes(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A batch that was written, and whose answer was lost, answers as it was written."""
    async with opening(server, name) as journal:
        call, cut = journal._link.call, [True]

        async def losing(script: Any, keys: Any, arguments: Any) -> Any:
            reply = await call(script, keys, arguments)
            if script is getattr(journal, f"_{lost}") and cut:
                cut.clear()
                problem = RedisUnavailableError("lost")
                journal._link._failed(problem)
                raise problem
            return reply

        monkeypatch.setattr(type(journal._link), "call", lambda self, *rest: losing(*rest))
        claim = await journal.begin(intent("a"))

        assert claim.kind is ClaimKind.NEW
        assert not cut
        assert await states(journal) == [State.INTENT]


async def test_reports_are_kept_while_redis_is_away(own_server: Server, name: str) -> None:
    """Nothing is begun; reports are errors, and are written when Redis is back."""
    events: list[Any] = []
    own_server.kill_and_start("--appendonly", "yes", "--appendfsync", "always")
    async with opening(own_server, name, patience=0.5, on_event=events.append) as journal:
        claim = await journal.begin(intent("a"))
        own_server.stop()
        with anyio.fail_after(10):
            with pytest.raises(JournalError, match="kept in memory"):
                await journal.accepted(claim.submit_id, "task-1")
            with pytest.raises(JournalError, match="does not answer"):
                await journal.begin(intent("b"))
        own_server.start("--appendonly", "yes", "--appendfsync", "always")
        await until(lambda: not journal._batch and not journal.is_away)
        assert [State.ACCEPTED] == await states(journal)

    assert [type(event) for event in events] == [RedisAway, RedisBack]


async def test_reports_that_never_arrive(own_server: Server, name: str) -> None:
    """If Redis does not come back before the end, that is said."""
    with pytest.raises(JournalError, match="1 reports could not be written"):
        async with opening(own_server, name, timeout=0.2, patience=0.5) as journal:
            claim = await journal.begin(intent("a"))
            own_server.stop()
            with pytest.raises(JournalError):
                await journal.accepted(claim.submit_id, "task-1")


@on_asyncio
async def test_reports_that_arrive_at_the_end(own_server: Server, name: str) -> None:
    """If Redis comes back while the journal is being left, nothing is lost."""
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.kill_and_start(*durable)
    async with anyio.create_task_group() as tasks:
        async with opening(own_server, name, timeout=0.2, patience=20) as journal:
            claim = await journal.begin(intent("a"))
            own_server.stop()
            with pytest.raises(JournalError):
                await journal.accepted(claim.submit_id, "task-1")

            async def come_back() -> None:
                await anyio.sleep(1)
                own_server.start(*durable)

            tasks.start_soon(come_back)
    async with opening(own_server, name) as journal:
        assert await states(journal) == [State.ACCEPTED]


async def test_a_cancelled_begin_that_was_sent(own_server: Server, name: str) -> None:
    """Whoever is cancelled while Redis decides leaves no intent behind."""
    assert own_server.process is not None
    async with opening(own_server, name) as journal:
        own_server.process.send_signal(signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.begin, intent("a"))
            await until(lambda: bool(journal._batch))
            tasks.cancel_scope.cancel()
        own_server.process.send_signal(signal.SIGCONT)
        assert (await journal.begin(intent("a"))).kind is ClaimKind.NEW
        assert await states(journal) == [State.INTENT]


async def test_a_full_redis(own_server: Server, name: str) -> None:
    """If Redis' memory is full nothing is begun; when there is room, nothing is lost."""
    async with coredis.Redis.from_url(own_server.url) as client, opening(own_server, name, patience=0.5) as journal:
        claim = await journal.begin(intent("a"))
        await client.config_set({"maxmemory": "1"})
        with pytest.raises(JournalError, match="OOM"):
            await journal.accepted(claim.submit_id, "task-1")
        with pytest.raises(JournalError):
            await journal.begin(intent("b"))
        await client.config_set({"maxmemory": "0"})
        await until(lambda: not journal._batch and not journal.is_away)
        assert [State.ACCEPTED] == await states(journal)


async def test_two_losses(own_server: Server, name: str) -> None:
    """That one loss was accepted does not accept another, though Redis comes back as it was after the first."""
    saves = ("--save", "3600 1000000")
    own_server.kill_and_start(*saves)
    async with coredis.Redis.from_url(own_server.url) as client, opening(own_server, name) as journal:
        await journal.begin(intent("a"))
        await journal.accept_loss()
        await client.save()  # as it is now it will come back
        await journal.begin(intent("b"))
        for _ in range(2):
            own_server.kill_and_start(*saves)
            with anyio.fail_after(10), pytest.raises(JournalError, match="accept_loss"):
                await journal.begin(intent("c"))
            await journal.accept_loss()
            assert (await journal.begin(intent("c"))).kind is ClaimKind.NEW


@on_trio
async def test_a_lease_outlives_a_redis_that_was_down(own_server: Server, name: str) -> None:
    """While Redis is down nobody can renew a lease: whoever is first after it takes nothing from the living."""
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.kill_and_start(*durable)
    async with opening(own_server, name, lease=2.0) as living:
        claim = await living.begin(intent("a"))
        living._visit = anyio.sleep_forever  # type: ignore[method-assign] # it will not be the first
        own_server.stop()
        await anyio.sleep(2.1)
        own_server.start(*durable)
        async with opening(own_server, name, lease=2.0) as first:
            assert await first.open_entries(ACCOUNT) == []
            assert (await first.begin(intent("a"))).kind is ClaimKind.BUSY
            with anyio.fail_after(5):
                while [entry.submit_id for entry in await first.open_entries(ACCOUNT)] != [claim.submit_id]:
                    await anyio.sleep(0.1)
        die(living)


@pytest.mark.parametrize("gone", [0, 5])
async def test_a_key_that_is_gone_alone(server: Server, name: str, gone: int) -> None:
    """Also who is new here finds that something is gone."""
    async with opening(server, name) as journal:
        await journal.begin(intent("a"))
        async with coredis.Redis.from_url(server.url) as client:
            await client.delete([journal._keys[gone]])
        async with opening(server, name) as new:
            with anyio.fail_after(10), pytest.raises(JournalError, match="accept_loss"):
                await new.begin(intent("b"))


@pytest.mark.parametrize("how", ["restart", "flush", "evict"])
async def test_a_redis_that_forgot(own_server: Server, name: str, how: str) -> None:
    """Nothing is begun by anybody until the loss is accepted."""
    events: list[Any] = []
    async with opening(own_server, name, on_event=events.append) as journal:
        claim = await journal.begin(intent("a"))
        if how == "restart":
            own_server.kill_and_start()
        else:
            async with coredis.Redis.from_url(own_server.url) as client:
                await client.delete(journal._keys[1:2] if how == "evict" else journal._keys)
        async with opening(own_server, name) as new:
            with anyio.fail_after(10), pytest.raises(JournalError, match="accept_loss") as caught:
                await journal.begin(intent("b"))
            with anyio.fail_after(10), pytest.raises(JournalError, match="accept_loss"):
                await new.begin(intent("b"))
            with pytest.raises(JournalError, match="no submit"):
                await journal.accepted(claim.submit_id, "task-1")
            await new.accept_loss()
            assert (await journal.begin(intent("b"))).kind is ClaimKind.NEW
            assert (await new.begin(intent("c"))).kind is ClaimKind.NEW

    assert not caught.value.retryable
    assert RedisStateLost in [type(event) for event in events]


async def test_what_survives_a_restart(own_server: Server, name: str) -> None:
    """With an append-only file that is flushed always, a killed Redis has lost nothing, and nobody has to accept."""
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    own_server.kill_and_start(*durable)
    async with opening(own_server, name) as journal:
        claims = [await journal.begin(intent(f"{i}")) for i in range(10)]
        own_server.kill_and_start(*durable)
        kinds = [(await journal.begin(intent(f"{i}"))).kind for i in range(10)]
        new = await journal.begin(intent("new"))

    assert [ClaimKind.BUSY] * 10 == kinds
    assert new.kind is ClaimKind.NEW
    assert len(claims) == 10


@pytest.mark.parametrize("lost", [False, True])
@on_trio
async def test_a_failover(own_server: Server, name: str, lost: bool) -> None:
    """A replica that takes over and lacks what a living process has seen confirmed is a loss; else it is none."""
    replica = Server(free_port())
    replica.start("--replicaof", "127.0.0.1", str(own_server.port))
    try:
        async with coredis.Redis.from_url(replica.url, decode_responses=True) as client:
            with relay(own_server.port) as front:
                async with RedisJournal(front.url, name=name, timeout=0.3) as journal:
                    await journal.begin(intent("a"))
                    await until_async(lambda: client.exists([journal._keys[1]]), 20)
                    await client.replicaof()  # it stands alone from now on
                    if lost:
                        await journal.begin(intent("b"))
                    front.turn_to(replica.port)
                    if lost:
                        with pytest.raises(JournalError, match="accept_loss"):
                            await journal.begin(intent("b"))
                        await journal.accept_loss()
                    assert (await journal.begin(intent("a"))).kind is ClaimKind.BUSY
                    assert (await journal.begin(intent("b"))).kind is ClaimKind.NEW
    finally:
        replica.stop()


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "field"), [({"lease": 0}, "lease"), ({"patience": -1}, "patience"), ({"expires": 1}, "expires")]
)
def test_settings_are_checked(options: dict[str, Any], field: str) -> None:
    """What makes no sense is refused when the object is made."""
    with pytest.raises(ConfigurationError, match=field):
        RedisJournal("redis://localhost", **options)
