"""The client with a journal: work has names, and what a dead process left is taken up."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from tests.helpers import TURNSTILE, V2, at_rest, opened
from ucaptcha_async import (
    AsyncClient,
    Budget,
    BudgetExceededError,
    ConfigurationError,
    JournalError,
    MemoryJournal,
    SolveTimeoutError,
    SQLiteJournal,
    SubmitUncertainError,
    Task,
)
from ucaptcha_async.journal import State
from ucaptcha_async.testing import Drop, Error, LocalService, running_service

pytestmark = pytest.mark.virtual_time


async def states(journal: MemoryJournal) -> list[State]:
    return [entry.state async for entry in journal.entries()]


async def test_the_same_key_is_never_submitted_twice() -> None:
    """Twice in a row, twice at once, and in a stream: one task."""
    service = LocalService(solve_time=10)
    journal = MemoryJournal(store_solutions=True)
    async with opened(service, journal=journal) as client:
        tokens: list[str] = []

        async def one() -> None:
            tokens.append((await client.solve(V2, key="login")).token)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)
        outcomes = await client.gather([V2, TURNSTILE], key=lambda task: "login" if task is V2 else None)
        at_rest(client)

    assert 1 == len({*tokens, outcomes[0].solution.token})
    assert outcomes[0].from_journal
    assert not outcomes[1].from_journal
    assert 2 == len(service.books.accepted)
    assert service.books.spent == sum(client.spent.values())


async def test_a_solution_from_the_journal_is_as_old_as_its_row() -> None:
    """What was solved five minutes ago is not fresh because it is read now."""
    journal = MemoryJournal(store_solutions=True, clock=lambda: time.time() - 300)
    async with opened(LocalService(solve_time=10), journal=journal) as client:
        new, remembered = [await client.solve(V2, key="login") for _ in range(2)]

    assert new.is_fresh()
    assert remembered.token == new.token
    assert remembered.age == pytest.approx(300, abs=5)
    assert not remembered.is_fresh()


async def test_finished_work_without_stored_solution_is_asked_for_again() -> None:
    """The journal knows the id, the service still has the answer, and nothing is paid twice."""
    service = LocalService(solve_time=10)
    journal = MemoryJournal()
    async with opened(service, journal=journal) as client:
        first = await client.solve(V2, key="login")
        again = await client.solve(V2, key="login")

    assert first.token == again.token
    assert 1 == len(service.books.accepted)


async def test_failed_work_may_be_tried_again() -> None:
    """A refunded failure frees the key."""
    service = LocalService(solve_time=6)
    service.fail_next()
    async with opened(service, journal=MemoryJournal(), attempts=2) as client:
        assert (await client.solve(V2, key="login")).token

    assert 2 == len(service.books.accepted)


async def test_uncertain_work_is_not_submitted_again() -> None:
    """Unless that was chosen."""
    service = LocalService(solve_time=6)
    service.script("createTask", Drop(after=True))
    journal = MemoryJournal()
    async with opened(service, journal=journal) as client:
        for _ in range(2):
            with pytest.raises(SubmitUncertainError):
                await client.solve(V2, key="login")
        assert 1 == service.books.request_counts["createTask"]
    async with opened(service, journal=journal, on_uncertain="resubmit") as client:
        assert (await client.solve(V2, key="login")).token


async def test_work_that_timed_out_is_taken_up() -> None:
    """The same key waits for the task that was paid for before."""
    service = LocalService(solve_time=60)
    async with opened(service, journal=MemoryJournal()) as client:
        with pytest.raises(SolveTimeoutError):
            await client.solve(V2, key="login", timeout=20)
        assert (await client.solve(V2, key="login")).token
        at_rest(client)

    assert 1 == len(service.books.accepted)


async def test_paid_work_needs_no_good_account() -> None:
    """With a refused key or a used-up budget, named work that is paid for is still taken up."""
    service = LocalService(solve_time=60)
    budget = Budget(max_spend="0.005", estimate="0.004")
    async with opened(service, journal=MemoryJournal(), budget=budget) as client:
        with pytest.raises(SolveTimeoutError):
            await client.solve(V2, key="login", timeout=20)
        service.script("createTask", Error("ERROR_ZERO_BALANCE"))
        with pytest.raises(BudgetExceededError):
            await client.solve(V2)
        assert (await client.solve(V2, key="login")).token
        at_rest(client)

    assert 1 == len(service.books.accepted)


async def test_recover() -> None:
    """Accepted tasks are waited for, uncertain ones reported, finished ones left alone."""
    service = LocalService(solve_time=60)
    journal = MemoryJournal()
    async with opened(service, journal=journal) as client:
        with anyio.move_on_after(30):
            await client.gather([V2, TURNSTILE])
        service.script("createTask", Drop(after=True))
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2)
        await client.solve(V2)

    async with opened(service, journal=journal) as client:
        async with client.recover() as outcomes:
            seen = [outcome async for outcome in outcomes]
        assert [State.SOLVED] * 3 + [State.UNCERTAIN] == sorted(await states(journal), reverse=False, key=str)
        at_rest(client)

    assert [True, True, False] == sorted((outcome.ok for outcome in seen), reverse=True)
    assert {"Turnstile", "RecaptchaV2"} == {o.task.kind for o in seen if isinstance(o.task, Task)}
    assert 4 == len(service.books.accepted)


@pytest.mark.parametrize("steps", range(12))
async def test_a_recover_that_is_cancelled_loses_nothing(steps: int) -> None:
    """Wherever it is cancelled: what it took up is in `client.abandoned` or came out, and can be recovered again."""
    service, journal = LocalService(solve_time=50), MemoryJournal()
    async with opened(service, journal=journal) as client:
        paid = {(await client.submit(V2)).task_id for _ in range(3)}
    async with opened(service, journal=journal) as client:
        with anyio.CancelScope() as scope:
            async with client.recover(), anyio.create_task_group() as group:

                async def cancel() -> None:
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                group.start_soon(cancel)
        with anyio.fail_after(300):
            async with client.recover() as outcomes:
                again = {outcome.task_id async for outcome in outcomes}
        at_rest(client)

    assert again == paid


async def test_recover_needs_a_journal() -> None:
    """And says so."""
    async with opened(LocalService()) as client:
        with pytest.raises(ConfigurationError, match="journal"):
            client.recover()


class BrokenJournal(MemoryJournal):
    """Fails from a given report on."""

    failing = ""

    async def _write(self, change: object) -> object:
        if type(change).__name__ == self.failing:
            raise JournalError("the disk is full")
        return await super()._write(change)  # type: ignore[arg-type]


async def test_a_journal_that_fails_before_the_submit_stops_it() -> None:
    """Nothing is sent that could not be written down."""
    service = LocalService()
    journal = BrokenJournal()
    journal.failing = "Begin"
    async with opened(service, journal=journal) as client:
        with pytest.raises(JournalError, match="disk is full"):
            await client.solve(V2)
        at_rest(client)

    assert 0 == service.books.total_requests


@pytest.mark.parametrize("failing", ["Accepted", "Finished"])
async def test_a_journal_that_fails_later_loses_no_solve(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    """The solve goes on, an event and the log tell."""
    events: list[object] = []
    journal = BrokenJournal()
    journal.failing = failing
    async with opened(LocalService(), journal=journal, on_event=events.append) as client:
        assert (await client.solve(V2)).token

    assert "disk is full" in caplog.text
    assert "JournalFailed" in {type(event).__name__ for event in events}


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_sqlite_over_sockets(tmp_path: Path) -> None:
    """The real file, real threads, real sockets."""
    path = tmp_path / "journal.sqlite"
    with running_service(solve_time=0.3) as service:
        from ucaptcha_async import Polling

        quick = Polling(interval=0.2)
        options = {"base_url": service.url, "polling": quick}
        async with AsyncClient("ucap_a", journal=SQLiteJournal(path, store_solutions=True), **options) as client:
            tasks = [Task("TurnstileTaskProxyless", websiteURL=f"https://a.b/{n}", websiteKey="k") for n in range(30)]
            outcomes = await client.gather(tasks, key=lambda task: str(task.to_wire()["websiteURL"]))
            assert all(outcome.ok for outcome in outcomes)
        async with AsyncClient("ucap_a", journal=SQLiteJournal(path, store_solutions=True), **options) as client:
            again = await client.gather(tasks, key=lambda task: str(task.to_wire()["websiteURL"]))
        assert [o.solution.token for o in outcomes] == [o.solution.token for o in again]
        assert 30 == service.books()["accepted"]
