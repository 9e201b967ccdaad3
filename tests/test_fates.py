"""What became of each task: money, journal, attempts, and what is called charged."""

from __future__ import annotations

import asyncio
import decimal
import gc
import itertools
import time
from decimal import Decimal
from email.utils import formatdate
from typing import Any

import anyio
import attrs
import pytest

from tests.helpers import TURNSTILE, V2, at_rest, opened
from tests.own_service import PENDING, TOKEN, OwnService, Said, accepted, at, page, ready, refused
from ucaptcha_async import (
    AsyncClient,
    Budget,
    BudgetExceededError,
    CallbackReceiver,
    ClientStateError,
    InvalidTaskError,
    MemoryJournal,
    Polling,
    RateLimiter,
    SolveTimeoutError,
    SubmitUncertainError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.events import Event, Retried, Uncertain
from ucaptcha_async.journal import Entry, State
from ucaptcha_async.testing import LocalService

pytestmark = pytest.mark.virtual_time

CENT = Decimal("0.01")
NOT_FOUND = refused("ERROR_WRONG_CAPTCHA_ID", 404)
BY_CODE = refused("ERROR_CAPTCHA_UNSOLVABLE")
FAILED = Said({"errorId": 1, "errorCode": "ERROR_CAPTCHA_SOLVE_FAILED", "status": "failed"}, 400)
NAMED = refused("ERROR_NEW_WORD", 400, taskId="t-1")
FAILED_TOO = Said({**FAILED.body, "taskId": "t-1"})


async def rows(journal: MemoryJournal) -> list[Entry]:
    return [entry async for entry in journal.entries()]


def budget(**limits: Any) -> Budget:
    return Budget(estimate="0.01", max_spend=limits.pop("max_spend", "1"), **limits)


# --- one fate, told in all places -------------------------------------------------------------------------------------


@attrs.frozen
class Fate:
    """What the service says, and what must follow.

    Attributes:
        submit: Its answer to `createTask`.
        poll: Its answer to the poll, if there is one.
        error: The error's class.
        charged: What the error says.
        spent: What the budget counts.
        state: Where the journal's row ends.
        task_id: The id in error and row.
        again: Whether the same key may be submitted again.
    """

    submit: Said
    poll: Said | None
    error: type[UCaptchaError]
    charged: bool | None
    spent: Decimal
    state: State
    task_id: str | None = None
    again: bool = True


FATES = {
    "refused": Fate(refused("ERROR_NEW_WORD", 400), None, UCaptchaError, False, Decimal(0), State.REFUSED),
    "refused with a void id": Fate(
        refused("ERROR_NEW_WORD", 400, taskId=0), None, UCaptchaError, False, Decimal(0), State.REFUSED
    ),
    "refused with 404": Fate(refused("ERROR_NEW", 404), None, UCaptchaError, False, Decimal(0), State.REFUSED),
    "a page": Fate(page(403), None, SubmitUncertainError, None, CENT, State.UNCERTAIN, again=False),
    "failed by code at once": Fate(BY_CODE, None, UnsolvableError, None, CENT, State.FAILED),
    "failed at once": Fate(FAILED, None, UnsolvableError, False, Decimal(0), State.FAILED),
    "failed at once, named": Fate(
        Said({**FAILED.body, "taskId": "t-1"}), None, UnsolvableError, False, Decimal(0), State.FAILED, "t-1"
    ),
    "failed": Fate(accepted("t-1"), FAILED, UnsolvableError, False, Decimal(0), State.FAILED, "t-1"),
    "failed by code": Fate(accepted("t-1"), BY_CODE, UnsolvableError, None, CENT, State.FAILED, "t-1"),
    "failed by the page's code": Fate(
        accepted("t-1"), refused("ERROR_RECAPTCHA_INVALID_SITEKEY"), InvalidTaskError, None, CENT, State.FAILED, "t-1"
    ),
    "lost": Fate(accepted("t-1"), NOT_FOUND, TaskNotFoundError, True, CENT, State.UNCERTAIN, "t-1", again=False),
    "lost over 200": Fate(
        accepted("t-1"), refused("ERROR_TASK_NOT_FOUND"), TaskNotFoundError, True, CENT, State.UNCERTAIN, "t-1", False
    ),
}


@pytest.mark.parametrize("way", ["solve", "submit and wait", "solve_many", "gather", "view"])
@pytest.mark.parametrize("name", FATES)
async def test_fates(name: str, way: str) -> None:
    """Error, budget, journal and the place in flight say the same, whichever way the solve was begun."""
    fate, journal, money = FATES[name], MemoryJournal(), budget()
    service = OwnService().says("createTask", fate.submit)
    if fate.poll is not None:
        service.says("getTaskResult", fate.poll)
    async with at(service, journal=journal, budget=money, max_in_flight=1) as client:
        error = await failure(client, way, "work")
        at_rest(client)
        assert client.spent == {}
        assert client.abandoned == ()
        (row,) = await rows(journal)
        assert isinstance(error, fate.error)
        assert (error.charged, error.task_id) == (fate.charged, fate.task_id)
        assert (money.spent, money.reserved) == (fate.spent, 0)
        assert (row.state, row.task_id) == (fate.state, fate.task_id)
        assert len(error.attempts) == 1

        submits = len(service.submits)
        if fate.again:
            assert (await client.solve(TURNSTILE, key="work")).token == TOKEN
            assert len(service.submits) == submits + 1
        else:
            with pytest.raises(SubmitUncertainError) as caught:
                await client.solve(TURNSTILE, key="work")
            assert (caught.value.task_id, caught.value.charged) == (fate.task_id, None)
            assert len(service.submits) == submits
        at_rest(client)


async def failure(client: AsyncClient, way: str, key: str) -> UCaptchaError:
    """The error of one solve, made in one of the ways."""
    if way == "solve_many":
        async with client.solve_many([TURNSTILE], key=lambda task: key) as outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
        assert outcome.error is not None
        return outcome.error
    if way == "gather":
        (outcome,) = await client.gather([TURNSTILE], key=lambda task: key)
        assert outcome.error is not None
        return outcome.error
    with pytest.raises(UCaptchaError) as caught:
        if way == "submit and wait":
            job = await client.submit(TURNSTILE, key=key)
            await job.wait()
        elif way == "view":
            await client.with_options(timeout=100).solve(TURNSTILE, key=key)
        else:
            await client.solve(TURNSTILE, key=key)
    return caught.value


# --- attempts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "spent"),
    [
        ([FAILED, FAILED], CENT),
        ([BY_CODE, FAILED], 2 * CENT),
        ([BY_CODE, BY_CODE], 3 * CENT),
    ],
)
async def test_attempts_on_polls(ends: list[Said], spent: Decimal) -> None:
    """A refunded one gives its money back, one of which nobody knows keeps it; each reserves anew."""
    money, journal = budget(), MemoryJournal()
    service = OwnService().says("getTaskResult", *ends)
    async with at(service, budget=money, journal=journal) as client:
        (outcome,) = await client.gather([TURNSTILE], attempts=3, key=lambda task: "work")
        assert [row.state for row in await rows(journal)] == [State.FAILED, State.FAILED, State.SOLVED]

    assert outcome.ok
    assert [attempt.task_id for attempt in outcome.attempts] == ["task-1", "task-2", "task-3"]
    assert (money.spent, money.reserved, client.spent[TURNSTILE.kind]) == (spent, 0, CENT)


async def test_attempts_on_submits() -> None:
    """`status: failed` and a code alone, in the answer of `createTask`, end one attempt each."""
    money, journal = budget(), MemoryJournal()
    service = OwnService().says("createTask", FAILED, BY_CODE, accepted("c"))
    async with at(service, budget=money, journal=journal) as client:
        (outcome,) = await client.gather([TURNSTILE], attempts=3, key=lambda task: "work")
        assert [row.state for row in await rows(journal)] == [State.FAILED, State.FAILED, State.SOLVED]

    assert outcome.ok
    assert [attempt.error is None for attempt in outcome.attempts] == [False, False, True]
    assert (money.spent, money.reserved) == (2 * CENT, 0)


async def test_a_budget_bounds_attempts() -> None:
    """What is kept of a failed attempt leaves less for the next."""
    money = budget(max_spend="0.02")
    service = OwnService().says("getTaskResult", always=BY_CODE)
    async with at(service, budget=money) as client:
        with pytest.raises(BudgetExceededError) as caught:
            await client.solve(TURNSTILE, attempts=5)

    assert (len(service.submits), money.spent, caught.value.charged) == (2, 2 * CENT, None)


async def test_an_earlier_attempt_may_have_been_charged() -> None:
    """The last error says so, though the last task itself was not charged."""
    service = OwnService().says("createTask", BY_CODE, refused("ERROR_BAD_PARAMETERS", 400))
    async with at(service) as client:
        with pytest.raises(InvalidTaskError) as caught:
            await client.solve(TURNSTILE, attempts=2)

    assert caught.value.charged is None


@pytest.mark.parametrize("first", [page(502), refused("INTERNAL_ERROR"), Said({"errorId": 1})])
async def test_an_earlier_submit_may_have_been_charged(first: Said) -> None:
    """Resubmitted, then refused: the money of the first stays counted, and an event told of it."""
    events: list[Event] = []
    money = budget()
    service = OwnService().says("createTask", first, refused("ERROR_BAD_PARAMETERS", 400))
    async with at(service, on_uncertain="resubmit", budget=money, on_event=events.append) as client:
        with pytest.raises(InvalidTaskError) as caught:
            await client.solve(TURNSTILE)

    assert (caught.value.charged, money.spent, money.reserved) == (None, CENT, 0)
    assert [attempt.uncertain for attempt in caught.value.attempts] == [True, False]
    assert len([event for event in events if isinstance(event, Uncertain)]) == 1


async def test_a_named_refusal_is_not_submitted_again() -> None:
    """Even where that was asked for: the task that it names can be waited for."""
    money = budget()
    service = OwnService().says("createTask", NAMED)
    async with at(service, on_uncertain="resubmit", budget=money) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE)
        assert (await client.job(caught.value.task_id or "").wait()).token == TOKEN

    assert (len(service.submits), money.spent) == (1, CENT)


@pytest.mark.parametrize("error", [TaskNotFoundError, SubmitUncertainError])
async def test_no_further_attempt_is_made_of_what_may_be_paid(error: type[UCaptchaError]) -> None:
    """Attempts follow failures, not doubts."""
    service = OwnService()
    service.says(*(("getTaskResult", NOT_FOUND) if error is TaskNotFoundError else ("createTask", page(502))))
    async with at(service) as client:
        with pytest.raises(error):
            await client.solve(TURNSTILE, attempts=5)

    assert len(service.submits) == 1


# --- a refusal that names a task --------------------------------------------------------------------------------------


async def test_a_named_refusal_is_taken_up() -> None:
    """The row knows the id: the second call with the key asks for that task, and pays for no other."""
    journal, money = MemoryJournal(), budget()
    service = OwnService().says("createTask", NAMED)
    async with at(service, journal=journal, budget=money) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE, key="work")
        (row,) = await rows(journal)
        assert (caught.value.task_id, caught.value.charged, row.task_id) == ("t-1", None, "t-1")
        assert (money.spent, money.reserved, client.abandoned) == (CENT, 0, ("t-1",))

        solution = await client.solve(TURNSTILE, key="work")

    assert (solution.task_id, len(service.submits)) == ("t-1", 1)


async def test_a_named_refusal_that_comes_to_nothing() -> None:
    """Asked for, and unknown: the key stays taken until somebody gives it up."""
    journal = MemoryJournal()
    service = OwnService().says("createTask", NAMED).says("getTaskResult", NOT_FOUND)
    async with at(service, journal=journal) as client:
        for expected in (SubmitUncertainError, TaskNotFoundError, SubmitUncertainError):
            with pytest.raises(expected) as caught:
                await client.solve(TURNSTILE, key="work")
            assert caught.value.task_id == "t-1"
        (row,) = await rows(journal)
        assert await journal.forget(row.submit_id)
        assert (await client.solve(TURNSTILE, key="work")).token == TOKEN

    assert len(service.submits) == 2


async def test_a_named_refusal_in_a_stream() -> None:
    """The id is in the outcome, and in `client.abandoned` where nobody reads it."""
    service = OwnService().says("createTask", NAMED)
    async with at(service) as client:
        (outcome,) = await client.gather([TURNSTILE])

    assert (outcome.task_id, [attempt.uncertain for attempt in outcome.attempts]) == ("t-1", [True])


@pytest.mark.parametrize(
    ("said", "state", "charged", "spent"),
    [
        (accepted("t-1"), State.ACCEPTED, True, CENT),
        (NAMED, State.ACCEPTED, None, CENT),
        (page(500), State.UNCERTAIN, None, CENT),
        (refused("ERROR_NEW_WORD", 400), State.REFUSED, False, Decimal(0)),
        (BY_CODE, State.FAILED, None, CENT),
        (FAILED, State.FAILED, False, Decimal(0)),
        (ready(taskId="t-1"), State.ACCEPTED, True, CENT),
    ],
)
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_answers_within_the_grace(
    said: Said, state: State, charged: bool | None, spent: Decimal, how: str
) -> None:
    """Given up during `createTask`: the answer that still comes settles money and row as any other."""
    journal, money = MemoryJournal(), budget()
    service = OwnService().says("createTask", attrs.evolve(said, after=3))
    named = (said.body.get("taskId") or None) if isinstance(said.body, dict) else None
    async with at(service, journal=journal, budget=money) as client:
        if how == "timeout":
            with pytest.raises(SolveTimeoutError) as caught:
                await client.solve(TURNSTILE, timeout=1, key="work")
            assert (caught.value.charged, caught.value.task_id) == (charged, named)
        else:
            with anyio.move_on_after(1):
                await client.solve(TURNSTILE, key="work")
        at_rest(client)
        (row,) = await rows(journal)
        assert client.abandoned == (() if named is None else (named,))

    assert (row.state, row.task_id) == (state, named)
    assert (money.spent, money.reserved) == (spent, 0)


# --- the service does not know the task any more ----------------------------------------------------------------------


async def test_lost_tasks_use_the_budget_up() -> None:
    """Twelve tasks at one cent do not pass a budget of five."""
    money = budget(max_spend="0.05")
    service = OwnService().says("getTaskResult", always=NOT_FOUND)
    async with at(service, budget=money) as client:
        outcomes = await client.gather([TURNSTILE] * 12)

    kinds = [type(outcome.error) for outcome in outcomes]
    assert (kinds.count(TaskNotFoundError), kinds.count(BudgetExceededError)) == (5, 7)
    assert (money.spent, money.reserved, len(service.submits)) == (5 * CENT, 0, 5)


async def test_a_lost_task_after_its_waiter_gave_up() -> None:
    """Kept, then found to be lost: the money stays spent."""
    money, journal = budget(), MemoryJournal()
    service = OwnService().says("getTaskResult", *[PENDING] * 3)
    async with at(service, budget=money, journal=journal, polling=Polling(first=5)) as client:
        job = await client.submit(TURNSTILE, key="work")
        with pytest.raises(SolveTimeoutError):
            await job.wait(timeout=12)
        assert (money.spent, money.reserved) == (CENT, 0)
        service.says("getTaskResult", always=NOT_FOUND)
        with pytest.raises(TaskNotFoundError) as caught:
            await job.wait()
        (row,) = await rows(journal)
        with pytest.raises(SubmitUncertainError) as again:
            await client.solve(TURNSTILE, key="work")

    assert (money.spent, money.reserved) == (CENT, 0)
    assert (row.state, row.task_id, caught.value.charged, again.value.task_id) == (
        State.UNCERTAIN,
        "task-1",
        True,
        "task-1",
    )


async def test_a_lost_task_may_be_submitted_again() -> None:
    """By setting; and its first payment stays counted."""
    money, journal = budget(), MemoryJournal()
    service = OwnService().says("getTaskResult", NOT_FOUND)
    async with at(service, budget=money, journal=journal, on_uncertain="resubmit") as client:
        with pytest.raises(TaskNotFoundError):
            await client.solve(TURNSTILE, key="work")
        solution = await client.solve(TURNSTILE, key="work")
        states = [row.state for row in await rows(journal)]

    assert (solution.task_id, money.spent, states) == ("task-2", 2 * CENT, [State.FORGOTTEN, State.SOLVED])


async def test_recover_tells_of_a_lost_task() -> None:
    """With its id, and without a request: nothing is to be learned of it."""
    journal = MemoryJournal()
    service = OwnService().says("getTaskResult", NOT_FOUND)
    async with at(service, journal=journal) as client:
        with pytest.raises(TaskNotFoundError):
            await client.solve(TURNSTILE, key="work")
    async with at(service, journal=journal) as client:
        async with client.recover() as outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
        assert client.abandoned == ()
        (row,) = await rows(journal)
        assert row.state is State.UNCERTAIN
        assert await journal.forget(row.submit_id)
        assert (await client.solve(TURNSTILE, key="work")).token == TOKEN

    assert isinstance(outcome.error, SubmitUncertainError)
    assert (outcome.key, outcome.task_id, outcome.error.charged) == ("work", "task-1", None)
    assert [task_id for _, task_id in service.polls] == ["task-1", "task-2"]


async def test_recover_finds_a_task_lost() -> None:
    """A task of an earlier process that the service does not know: its row stays, uncertain."""
    journal = MemoryJournal()
    service = OwnService()
    async with at(service, journal=journal) as client:
        await client.submit(TURNSTILE, key="work")
    service.says("getTaskResult", NOT_FOUND)
    async with at(service, journal=journal) as client:
        async with client.recover() as outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
        with pytest.raises(SubmitUncertainError) as again:
            await client.solve(TURNSTILE, key="work")
        (row,) = await rows(journal)

    assert isinstance(outcome.error, TaskNotFoundError)
    assert (outcome.task_id, row.state, again.value.task_id) == ("task-1", State.UNCERTAIN, "task-1")
    assert len(service.submits) == 1


async def test_a_task_of_somebody_else_is_not_called_charged() -> None:
    """Taken up by its id alone: nobody here knows."""
    service = OwnService().says("getTaskResult", NOT_FOUND)
    async with at(service) as client:
        with pytest.raises(TaskNotFoundError) as caught:
            await client.job("t-9").wait()

    assert (caught.value.charged, caught.value.task_id) == (None, "t-9")


@pytest.mark.parametrize(
    ("end", "error"), [(NOT_FOUND, TaskNotFoundError), (FAILED, UnsolvableError), (BY_CODE, UnsolvableError)]
)
async def test_several_who_wait_for_one_task(end: Said, error: type[UCaptchaError]) -> None:
    """Each hears of the end; money is counted once."""
    money = budget()
    service = OwnService().says("getTaskResult", PENDING, end, always=end)
    errors: list[UCaptchaError] = []

    async def wait(job: Any) -> None:
        with pytest.raises(UCaptchaError) as caught:
            await job.wait()
        errors.append(caught.value)

    async with at(service, budget=money) as client:
        job = await client.submit(TURNSTILE)
        async with anyio.create_task_group() as tasks:
            for each in (job, client.job("task-1"), client.job("task-1")):
                tasks.start_soon(wait, each)

    assert [type(each) for each in errors] == [error] * 3
    assert (money.spent, money.reserved) == (Decimal(0) if end is FAILED else CENT, 0)
    assert all(gap >= 5 - 1e-9 for gap in gaps(service))


async def test_a_job_that_is_waited_for_already_is_charged() -> None:
    """The error for a second waiter does not say that nothing was paid."""
    async with opened(LocalService(solve_time=10)) as client:
        job = await client.submit(V2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(job.wait)
            await anyio.sleep(1)
            with pytest.raises(ClientStateError) as caught:
                await job.wait()

    assert (caught.value.task_id, caught.value.charged) == (job.task_id, True)


async def test_several_who_wait_for_one_solution() -> None:
    """Named solves at once: one submit, one cost, the same token for each."""
    money, journal = budget(), MemoryJournal(store_solutions=True)
    service = OwnService()
    async with at(service, budget=money, journal=journal) as client:
        outcomes = await client.gather([TURNSTILE] * 5, key=lambda task: "work")

    assert {outcome.solution.token for outcome in outcomes} == {TOKEN}
    assert (len(service.submits), money.spent, client.spent) == (1, CENT, {TURNSTILE.kind: CENT})


async def test_a_lost_task_under_callbacks() -> None:
    """The net's poll learns of it, and nothing is waited for afterwards."""
    receiver = CallbackReceiver("https://example.com/hook")
    service = OwnService().says("getTaskResult", always=NOT_FOUND)
    async with at(service, callbacks=receiver) as client:
        with pytest.raises(TaskNotFoundError) as caught:
            await client.solve(TURNSTILE)

    assert (caught.value.charged, receiver.statistics().expected) == (True, 0)


# --- money is counted before it can be lost ---------------------------------------------------------------------------


@attrs.define(eq=False, init=False)
class SlowJournal(MemoryJournal):
    """Takes a while to write each id and each end."""

    async def accepted(self, *arguments: Any) -> None:
        await anyio.sleep(3)
        await super().accepted(*arguments)

    async def finished(self, *arguments: Any, **details: Any) -> bool:
        await anyio.sleep(3)
        return await super().finished(*arguments, **details)


async def test_spent_counts_before_the_last_line_is_written() -> None:
    """Cancelled while the journal writes the end: not a cent is missing, anywhere."""
    money, journal = budget(), SlowJournal()
    service = OwnService()
    async with at(service, budget=money, journal=journal, polling=Polling(first=5, jitter=0)) as client:
        with anyio.move_on_after(9.5):
            await client.solve(TURNSTILE)
        assert client.spent == {TURNSTILE.kind: CENT}
        assert client.statistics().spent == {TURNSTILE.kind: CENT}
        (row,) = await rows(journal)

    assert (money.spent, money.reserved, row.state, row.cost) == (CENT, 0, State.SOLVED, CENT)


@pytest.mark.parametrize("after", [1, 7])
async def test_cancelled_by_asyncios_own_means_during_a_write(after: float, anyio_backend_name: str) -> None:
    """No shield keeps that out: the id is kept, and the money counted, all the same."""
    if anyio_backend_name != "asyncio":
        return
    money = budget()
    service = OwnService()
    async with at(service, budget=money, journal=SlowJournal(), polling=Polling(first=5, jitter=0)) as client:
        task = asyncio.ensure_future(client.solve(TURNSTILE))
        await anyio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.abandoned == ("task-1",)
        assert client.statistics().in_flight == 0

    assert (money.spent, money.reserved) == (CENT, 0)
    assert client.spent == ({} if after == 1 else {TURNSTILE.kind: CENT})


# --- late polls -------------------------------------------------------------------------------------------------------


def gaps(service: OwnService) -> list[float]:
    times = [at for at, _ in service.polls]
    return [late - early for early, late in itertools.pairwise(times)]


async def test_faults_stretch_the_spacing_to_four_intervals() -> None:
    """Not further, of a token that lives two minutes; what the user sets is kept."""
    service = OwnService().says("getTaskResult", *[page(502)] * 8)
    async with at(service) as client:
        await client.solve(TURNSTILE)
    assert max(gaps(service)) == pytest.approx(20, abs=1)

    service = OwnService().says("getTaskResult", *[page(502)] * 8)
    async with at(service, polling=Polling(max_spacing=60)) as client:
        await client.solve(TURNSTILE)
    assert 55 < max(gaps(service)) <= 60 + 1e-9


NOW = "Thu, 26 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ("12", 13.5),
        (" 12.5 ", 14.0),
        ("3600", 20.5),
        ("99999999", 20.5),
        ("Thu, 26 Nov 2026 10:00:12 GMT", 13.5),
        ("Thu, 26 Nov 2026 11:00:00 GMT", 20.5),
        ("Thu, 26 Nov 2026 09:00:00 GMT", 6.5),
        ("-12", 6.5),
        ("soon", 6.5),
    ],
)
async def test_retry_after_is_obeyed_up_to_the_bound(asked: str, most: float) -> None:
    """In seconds, or as a date by the service's own clock. An hour is not waited for."""
    headers = {"retry-after": asked, "date": NOW}
    service = OwnService().says("getTaskResult", Said(b"later", 503, headers=headers))
    async with at(service) as client:
        await client.solve(TURNSTILE)

    assert most - 1.5 <= gaps(service)[0] <= most


async def test_retry_after_as_a_date_without_a_clock() -> None:
    """Where the answer has no `Date`, this machine's clock tells how long it is until then."""
    asked = formatdate(time.time() + 13, usegmt=True)
    service = OwnService().says("getTaskResult", Said(b"later", 503, headers={"retry-after": asked}))
    async with at(service) as client:
        await client.solve(TURNSTILE)

    assert 10 <= gaps(service)[0] <= 14.5


async def test_one_good_answer_brings_all_polls_back() -> None:
    """Whoever's it is; each keeps its interval."""
    service = OwnService()

    async def away(body: dict[str, Any]) -> Said:
        return page(502) if anyio.current_time() < over else ready()

    service.says("getTaskResult", always=away)
    async with at(service, timeout=200) as client:
        over = anyio.current_time() + 60
        jobs = [await client.submit(TURNSTILE) for _ in range(40)]
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(job.wait)
        ended = anyio.current_time()

    by_task: dict[str, list[float]] = {}
    for moment, task_id in service.polls:
        by_task.setdefault(task_id, []).append(moment)
    assert all(b - a >= 5 - 1e-9 for times in by_task.values() for a, b in itertools.pairwise(times))
    first_good = min(moment for moment, _ in service.polls if moment >= over)
    assert ended - first_good <= 5.1


async def test_a_last_poll_before_the_deadline() -> None:
    """A solution that is there is not missed for the spacing of polls."""
    service = OwnService().says("getTaskResult", *[page(502)] * 4)
    async with at(service, polling=Polling(first=5, jitter=0)) as client:
        solution = await client.solve(TURNSTILE, timeout=52)

    assert solution.token == TOKEN
    assert service.polls[-1][0] == pytest.approx(51)


async def test_a_last_poll_keeps_the_interval() -> None:
    """Where the deadline comes right after a poll, there is no other."""
    service = OwnService().says("getTaskResult", always=PENDING)
    async with at(service, polling=Polling(first=5, jitter=0)) as client:
        with pytest.raises(SolveTimeoutError):
            await client.solve(TURNSTILE, timeout=17)

    assert min(gaps(service)) >= 5 - 1e-9


async def test_a_last_poll_keeps_the_interval_from_others() -> None:
    """Short waits in a row, by one job and by others for the same id: five seconds between two polls, whoever's."""
    service = OwnService().says("getTaskResult", always=attrs.evolve(PENDING, after=3))
    async with at(service, polling=Polling(first=5, jitter=0)) as client:
        job = await client.submit(TURNSTILE)
        for timeout in (6, 3, 1, 1.5, 4, 2, 2, 9):
            for each in (job, client.job("task-1")):
                with pytest.raises(SolveTimeoutError):
                    await each.wait(timeout=timeout)

    assert len(service.polls) > 5
    assert min(gaps(service)) >= 5 - 1e-9


async def test_a_429_to_a_poll_pauses_through_the_limiter() -> None:
    """All requests wait, not the one poll alone."""
    events: list[Event] = []
    service = OwnService().says("getTaskResult", Said(b"", 429, headers={"retry-after": "8"}))
    async with at(service, polling=Polling(first=5, jitter=0), on_event=events.append) as client:
        job = await client.submit(TURNSTILE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(job.wait)
            await anyio.sleep(6)
            before = anyio.current_time()
            await client.get_balance()
            waited = anyio.current_time() - before

    assert waited == pytest.approx(7, abs=1.1)
    assert len([event for event in events if isinstance(event, Retried)]) == 1


# --- duplicates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [accepted("t-1"), ready(taskId="t-1"), FAILED_TOO, NAMED, refused("X", 429, taskId="t-1")]
)
async def test_an_id_that_another_submit_got(said: Said) -> None:
    """The answer is another request's: of unknown fate, and not the other's task."""
    service = OwnService().says("createTask", accepted("t-1"), said, accepted("t-2"))
    journal = MemoryJournal()
    async with at(service, journal=journal) as client:
        job = await client.submit(TURNSTILE)
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(V2, key="work")
        assert client.abandoned == ()
        (row,) = [entry for entry in await rows(journal) if entry.key == "work"]
        assert (row.state, row.task_id) == (State.UNCERTAIN, None)
        assert (await job.wait()).task_id == "t-1"
        assert (await client.solve(V2)).task_id == "t-2"
        at_rest(client)

    assert (caught.value.task_id, caught.value.charged) == (None, None)


# --- what was not asked for, or is not waited for ---------------------------------------------------------------------


async def test_a_forgotten_row_that_is_solved_after_all() -> None:
    """What it cost is counted, once; its key stays free."""
    service, journal = OwnService().says("getTaskResult", PENDING), MemoryJournal()
    async with at(service, journal=journal) as client:
        job = await client.submit(TURNSTILE, key="work")
        with pytest.raises(SolveTimeoutError):
            await job.wait(timeout=7)
        (row,) = await rows(journal)
        assert await journal.forget(row.submit_id)
        await job.wait()
        (row,) = await rows(journal)
        assert (row.state, row.cost, client.spent) == (State.FORGOTTEN, CENT, {"Turnstile": CENT})
        assert not await journal.finished(row.submit_id, State.SOLVED, cost=CENT)
        await client.solve(TURNSTILE, key="work")

    assert len(service.submits) == 2


@pytest.mark.parametrize("setting", ["few digits", "inexact", "rounded"])
async def test_a_decimal_context_of_the_callers_own(setting: str) -> None:
    """No cent and no token is lost to its precision and traps."""
    costs = ("123.45", "0.00001", "0.00001")
    service = OwnService().says("getTaskResult", *(ready(cost=cost) for cost in costs))
    journal, money = MemoryJournal(), budget(max_spend="1000")
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.Inexact] = setting == "inexact"
        context.traps[decimal.Rounded] = setting == "rounded"
        async with at(service, journal=journal, budget=money) as client:
            for _ in costs:
                await client.solve(TURNSTILE)
            spent = client.spent
        (total,) = await journal.totals()

    assert spent == {"Turnstile": Decimal("123.45002")}
    assert money.spent == total.cost == Decimal("123.45002")


@pytest.mark.parametrize("end", ["forgotten", "client closed"])
async def test_a_job_that_nobody_waits_for(end: str) -> None:
    """Its money is spent, so that nobody waits for it to come back; and others may take its row up."""
    journal, money = MemoryJournal(), budget(max_spend="0.01")
    async with journal, at(OwnService(), journal=journal, budget=money) as other:
        async with at(OwnService(), journal=journal, budget=money) as client:
            job = await client.submit(TURNSTILE, key="work")
            if end == "forgotten":
                del job
                gc.collect()
                await anyio.sleep(0.1)
                assert (money.spent, money.reserved) == (CENT, 0)
        assert (money.spent, money.reserved) == (CENT, 0)
        assert client.abandoned == ("task-1",)
        (outcome,) = await other.gather([V2], timeout=None)
        assert isinstance(outcome.error, BudgetExceededError)
        async with other.recover() as outcomes:
            assert [outcome.key async for outcome in outcomes] == ["work"]


async def test_a_limiter_that_fails_once_a_task_is_paid_for() -> None:
    """The id that came with the answer is not lost to it."""

    class Broken(RateLimiter):
        def observe(self, *args: Any, **options: Any) -> None:
            super().observe(*args, **options)
            raise LookupError("a defect")

    journal, money = MemoryJournal(), budget()
    async with at(OwnService(), journal=journal, budget=money, rate_limit=Broken(100)) as client:
        with pytest.raises(LookupError) as caught:
            await client.solve(TURNSTILE)
        assert client.abandoned == ("task-1",)
        at_rest(client)
        (row,) = await rows(journal)

    assert caught.value.__notes__ == ["ucaptcha_async: task task-1 (charged)"]
    assert (row.state, row.task_id, money.spent) == (State.ACCEPTED, "task-1", CENT)


@pytest.mark.parametrize("solution", [{}, {"solution": None}, {"solution": {}}, {"solution": ""}])
async def test_ready_at_once_without_a_solution(solution: dict[str, Any]) -> None:
    """What is paid for is asked for."""
    service = OwnService().says("createTask", accepted("t-1", status="ready", **solution))
    async with at(service) as client:
        assert (await client.solve(TURNSTILE)).token == TOKEN

    assert len(service.submits) == 1


NAMED_TWICE = [b'"taskId":"t-1","taskId":null', b'"taskId":0,"taskId":"t-1"', b'"errorId":0,"taskId":"t-1"']


@pytest.mark.parametrize("said", NAMED_TWICE)
async def test_a_refusal_that_says_two_things(said: bytes) -> None:
    """A name that stands twice in an object: a task that it names once is named."""
    service = OwnService().says("createTask", Said(b'{"errorId":1,"errorCode":"ERROR_NEW",' + said + b"}"))
    async with at(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE)

    assert (caught.value.task_id, caught.value.charged) == ("t-1", None)
