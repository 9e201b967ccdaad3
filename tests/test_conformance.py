"""Nine legal answers of the protocol, or single passing faults, that a client of it must take in its stride.

After each the books of the service are compared with what the client says: one task, charged once, its outcome
delivered, asked for no more often than every five seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest

from tests.helpers import KEY, V2, at_rest, opened
from ucaptcha_async import AsyncClient, TokenSolution, UnsolvableError
from ucaptcha_async.events import Event, Polled, Retried, Solved, Submitted, Throttled
from ucaptcha_async.testing import Amend, Drop, Error, Fault, Html, LocalService, RateLimit, Reply

pytestmark = pytest.mark.virtual_time

PRICE = Decimal("0.00299")
TYPE = "RecaptchaV2"
INTERVAL = 5.0
TOLERANCE = 1e-9


@attrs.frozen
class Solve:
    """One solve, by both sides."""

    service: LocalService
    client: AsyncClient
    solution: TokenSolution
    events: list[Event]

    def statuses(self) -> list[str]:
        return [event.status for event in self.events if isinstance(event, Polled)]

    def count(self, kind: type[Event]) -> int:
        return sum(type(event) is kind for event in self.events)


async def solve(service: LocalService, **options: Any) -> Solve:
    events: list[Event] = []
    async with opened(service, on_event=events.append, **options) as client:
        solution = await client.solve(V2)
        at_rest(client)
    assert isinstance(solution, TokenSolution)
    solve = Solve(service, client, solution, events)
    balanced(solve)
    return solve


def balanced(solve: Solve) -> None:
    """One task, known, paid once, delivered; and the client's own sums are those of the books."""
    books, solution = solve.service.books, solve.solution
    (task,) = books.tasks.values()

    assert solution.task_id in (task.id, None)
    assert solution.raw == task.solution
    assert solution.token == task.code
    assert books.spent == books.charged == PRICE
    assert solve.client.spent == ({} if solution.cost is None else {TYPE: PRICE})
    assert (books.delivered, books.paid_not_delivered) == ((task.id,), ())
    asked_in_time(solve.service)
    assert (solve.count(Submitted), solve.count(Solved)) == (1, 1)
    assert solve.client.abandoned == ()


def asked_in_time(service: LocalService) -> None:
    gap = service.books.smallest_poll_gap()

    assert gap is None or gap >= INTERVAL - TOLERANCE


# --- the nine cases ---------------------------------------------------------------------------------------------------


async def test_baseline() -> None:
    """Accepted, processing, ready: the token, what it cost, and how long it took."""
    told = await solve(LocalService(solve_time=12))

    assert told.solution.cost == PRICE
    assert told.solution.solve_time == 12
    assert set(told.statuses()) <= {"idle", "processing"}
    assert told.service.books.request_counts["createTask"] == 1
    assert told.service.books.request_counts["getTaskResult"] == told.solution.polls


async def test_uuid_task_ids() -> None:
    """A task id is text, such as a UUID, and goes back as it came."""
    told = await solve(LocalService(solve_time=6))

    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", told.solution.task_id or "")


async def test_idle_then_ready() -> None:
    """`idle` is not an end, and not a reason to ask at once again."""
    told = await solve(LocalService(solve_time=9, idle_for=9))

    assert set(told.statuses()) == {"idle"}


async def test_failed_with_error_id_0() -> None:
    """HTTP 200, `errorId` 0, `status: failed`: an end, refunded, with the service's code."""
    service = LocalService(solve_time=8)
    service.fail_next()
    async with opened(service) as client:
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(V2)
        at_rest(client)
        assert client.spent == {}

    (task,) = service.books.tasks.values()
    assert (caught.value.task_id, caught.value.charged) == (task.id, False)
    assert caught.value.error_code == "ERROR_CAPTCHA_UNSOLVABLE"
    assert (service.books.charged, service.books.refunded, service.books.spent) == (PRICE, PRICE, 0)
    assert service.books.delivered == (task.id,)
    asked_in_time(service)


async def test_ready_in_create_task() -> None:
    """A solution in the answer of `createTask` is one: no poll follows."""
    told = await solve(LocalService(lightning={KEY: 1}))

    assert told.solution.polls == 0
    assert "getTaskResult" not in told.service.books.request_counts


@pytest.mark.parametrize("without", [("cost", "solveTime"), ("taskId",), ("taskId", "cost", "solveTime")])
async def test_ready_in_create_task_with_less(without: tuple[str, ...]) -> None:
    """Neither cost nor times nor, at the worst, an id need be there: the solution is."""
    service = LocalService(lightning={KEY: 1})
    service.script("createTask", Amend(without=without))

    told = await solve(service)

    assert (told.solution.task_id is None) == ("taskId" in without)
    assert (told.solution.cost is None) == ("cost" in without)


async def test_unknown_fields() -> None:
    """Fields that nobody has heard of, in every answer, change nothing; those of the solution are kept in `raw`."""
    service = LocalService(solve_time=7)
    odd = {"queue": {"position": 4}, "worker": None, "errorDescription": "", "errorCode": ""}
    service.script("createTask", Amend(odd))
    service.script("getTaskResult", Amend(odd, times=None))
    service.solve_next(solution={"gRecaptchaResponse": "03AGdBq2", "mood": ["good"]}, after=7)

    told = await solve(service)

    assert told.solution.raw["mood"] == ["good"]


@pytest.mark.parametrize("endpoint", ["createTask", "getTaskResult"])
@pytest.mark.parametrize(
    "refusal",
    [
        RateLimit(),
        RateLimit(retry_after=3),
        RateLimit(retry_after="Wed, 21 Oct 2015 07:28:00 GMT", headers=False),
        Reply(status=429, body=b""),
        Html(429),
        Error("ERROR_TOO_MUCH_REQUESTS", status=200),
    ],
    ids=["in JSON", "with Retry-After", "with a date", "empty", "a page", "as an error of HTTP 200"],
)
async def test_one_429(endpoint: str, refusal: Fault) -> None:
    """One refusal for too many requests is waited out, whatever its form: a submit was refused, a poll is late."""
    service = LocalService(solve_time=7)
    service.script(endpoint, refusal)

    told = await solve(service)

    assert (told.count(Throttled), told.count(Retried)) == (1, 1)
    assert told.service.books.request_counts["createTask"] == 1 + (endpoint == "createTask")


@pytest.mark.parametrize("fault", [Reply(status=503), Html(503)], ids=["text", "a page"])
async def test_one_503(fault: Fault) -> None:
    """One poll that a gateway could not pass on is a late poll."""
    service = LocalService(solve_time=7)
    service.script("getTaskResult", fault)

    told = await solve(service)

    assert told.count(Retried) == 1


@pytest.mark.parametrize(
    "drop", [Drop(before=True), Drop(after=True), Drop(during=True)], ids=["before", "after", "in the answer"]
)
async def test_one_dropped_connection(drop: Drop) -> None:
    """One poll whose connection breaks, before, after or in the answer, is a late poll."""
    service = LocalService(solve_time=7)
    service.script("getTaskResult", drop)

    told = await solve(service)

    assert told.count(Retried) == 1


# --- all at once ------------------------------------------------------------------------------------------------------

TROUBLE: tuple[Callable[[], Fault], ...] = (
    RateLimit,
    lambda: Reply(status=503),
    lambda: Drop(during=True),
    lambda: Amend({"status": "idle", "odd": 1}, without=("solution",)),
    lambda: Html(502),
)


async def test_all_of_it_in_one_solve() -> None:
    """A solve that meets one after the other still costs one task."""
    service = LocalService(solve_time=40)
    service.script("createTask", RateLimit(retry_after=1))
    service.script("getTaskResult", *(trouble() for trouble in TROUBLE))

    told = await solve(service)

    assert service.faults.waiting == 0
    assert told.count(Retried) == len(TROUBLE)
