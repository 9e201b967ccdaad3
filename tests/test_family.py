"""Services that speak other dialects of the protocol work by `base_url` alone.

They use integer ids, HTTP 200 whatever happens, `errorId` above 1 or none at all, `cost` as text, `token` in place of
`gRecaptchaResponse`, an error for what could not be solved, and no `status` in the answer of `createTask`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest

from tests.helpers import KEY, TURNSTILE, V2, at_rest
from ucaptcha_async import (
    AsyncClient,
    AuthenticationError,
    FriendlyCaptcha,
    FunCaptcha,
    GeeTestV3,
    GeeTestV4,
    ImageToText,
    InsufficientBalanceError,
    InvalidTaskError,
    MTCaptcha,
    Polling,
    Proxy,
    RecaptchaV2,
    RecaptchaV3,
    Task,
    TaskNotFoundError,
    Tencent,
    TokenSolution,
    UnsolvableError,
    UnsupportedTaskError,
)
from ucaptcha_async.testing import DIALECTS, Amend, Fault, Json, LocalService, Server

virtual = pytest.mark.virtual_time
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)

PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(120)
PAGE = "https://example.com/"
EVERY_KIND: tuple[Task[Any], ...] = (
    V2,
    TURNSTILE,
    RecaptchaV2(website_url=PAGE, website_key="6Le", proxy=Proxy.parse("http://user:password@198.51.100.7:8080")),
    RecaptchaV3(website_url=PAGE, website_key="6Le", min_score=0.7),
    ImageToText(image=PNG),
    GeeTestV3(website_url=PAGE, gt="022397c9", challenge="12345678abc"),
    GeeTestV4(website_url=PAGE, gt="e392e1d7"),
    FunCaptcha(website_url=PAGE, website_public_key="69A21A01"),
    MTCaptcha(website_url=PAGE, website_key="MTPublic-tqNCRE0GS"),
    FriendlyCaptcha(website_url=PAGE, website_key="FCMGEMUD2KTDSQ5H"),
    Tencent(website_url=PAGE, app_id="190014885"),
)


@asynccontextmanager
async def at(service: LocalService) -> AsyncIterator[tuple[AsyncClient, list[dict[str, Any]]]]:
    """A client that knows nothing of the service but its address, and the bodies that it sends there."""
    app = httpx.ASGITransport(app=service)
    bodies: list[dict[str, Any]] = []

    class Listening(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert request.url.host == "solver.example"
            bodies.append(json.loads(request.content))
            return await app.handle_async_request(request)

    async with httpx.AsyncClient(transport=Listening()) as http:
        async with AsyncClient(KEY, base_url="https://solver.example", http_client=http) as client:
            yield client, bodies


def refusal(service: LocalService, code: str) -> Fault:
    """An error as this dialect says it."""
    status, body = service.dialect.error(code)
    return Json(body, status=status)


@virtual
@every_dialect
async def test_solves(dialect: str) -> None:
    """Accepted, pending, ready: the token is the one that was given, and the cost that of the books, if it is told."""
    service = LocalService(dialect=dialect, solve_time=12)
    async with at(service) as (client, bodies):
        solution = await client.solve(V2)
        at_rest(client)

    (task,) = service.books.tasks.values()
    assert isinstance(solution, TokenSolution)
    assert (solution.token, solution.task_id) == (task.code, task.id)
    assert solution.cost == (None if service.dialect.cost is None else Decimal("0.00299"))
    assert solution.solve_time == (12 if service.dialect.solve_time else None)
    assert service.books.delivered == (task.id,)
    assert {type(body["taskId"]) for body in bodies[1:]} == {int if service.dialect.integer_ids else str}


@virtual
@every_dialect
async def test_every_kind(dialect: str) -> None:
    """Each class of tasks gives its typed solution, with and without a proxy."""
    service = LocalService(dialect=dialect)
    async with at(service) as (client, _):
        outcomes = await client.gather(EVERY_KIND)
        at_rest(client)

    for outcome in outcomes:
        assert type(outcome.solution) is type(outcome.task).solution_class
        assert outcome.solution.token in service.books.tasks[outcome.task_id or ""].solution.values()
    assert service.books.paid_not_delivered == ()


@virtual
@every_dialect
async def test_unsolvable(dialect: str) -> None:
    """Whether an error or a status says it: the task could not be solved, and nothing is charged."""
    service = LocalService(dialect=dialect, solve_time=8)
    service.fail_next()
    async with at(service) as (client, _):
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(V2)
        at_rest(client)
        assert client.spent == {}

    assert (caught.value.task_id,) == service.books.accepted
    # A status says that it is refunded; of a code alone nobody knows.
    charged = None if dialect in ("anticaptcha", "capmonster", "2captcha") else False
    assert (caught.value.charged, caught.value.error_code) == (charged, "ERROR_CAPTCHA_UNSOLVABLE")
    assert service.books.spent == 0


@virtual
@every_dialect
async def test_wrong_key(dialect: str) -> None:
    """HTTP 401 or 200: a wrong key is one, said once, and stops further submits."""
    service = LocalService(dialect=dialect, keys=["ucap_other"])
    async with at(service) as (client, _):
        for _ in range(3):
            with pytest.raises(AuthenticationError) as caught:
                await client.solve(V2)
        with pytest.raises(AuthenticationError):
            await client.get_balance()

    assert (caught.value.error_code, caught.value.charged) == ("ERROR_KEY_DOES_NOT_EXIST", False)
    assert service.books.request_counts == {"createTask": 1, "getBalance": 1}


@virtual
@every_dialect
async def test_no_balance(dialect: str) -> None:
    """An empty account is one, by whatever number."""
    service = LocalService(dialect=dialect, balance=Decimal(0))
    async with at(service) as (client, _):
        with pytest.raises(InsufficientBalanceError) as caught:
            await client.solve(V2)

    assert caught.value.error_code == "ERROR_ZERO_BALANCE"


@virtual
@every_dialect
@pytest.mark.parametrize("code", ["ERROR_NO_SLOT_AVAILABLE", "NO_PROVIDERS_AVAILABLE", "ERROR_TOO_MUCH_REQUESTS"])
async def test_refused_for_now(dialect: str, code: str) -> None:
    """No slot, no provider, too many requests: proved refused, so submitted again, and paid once."""
    service = LocalService(dialect=dialect, solve_time=6)
    service.script("createTask", *[refusal(service, code)] * 3)
    async with at(service) as (client, _):
        assert (await client.solve(V2)).token
        at_rest(client)

    assert (len(service.books.accepted), service.books.request_counts["createTask"]) == (1, 4)


@virtual
@every_dialect
async def test_too_many_polls(dialect: str) -> None:
    """A poll that is refused because there were too many is a late poll, whatever its HTTP status."""
    service = LocalService(dialect=dialect, solve_time=6)
    service.script("getTaskResult", refusal(service, "ERROR_TOO_MUCH_REQUESTS"))
    async with at(service) as (client, _):
        assert (await client.solve(V2)).token

    assert service.faults.waiting == 0


@virtual
@every_dialect
async def test_balance(dialect: str) -> None:
    """The balance is a `Decimal` of what was written, as a number or as text."""
    service = LocalService(dialect=dialect, balance=Decimal("12.3456"))
    service.script("getBalance", Amend({"balance": "0.1000"}))
    async with at(service) as (client, _):
        assert await client.get_balance() == Decimal("0.1")
        assert await client.get_balance() == Decimal("12.3456")


@virtual
@every_dialect
async def test_solved_in_stock(dialect: str) -> None:
    """A token from stock and a text come in the answer of `createTask` where the dialect does that, else by polls."""
    service = LocalService(dialect=dialect, lightning={KEY: 1})
    async with at(service) as (client, _):
        token, text = await client.solve(V2), await client.solve(ImageToText(image=PNG))

    polled = [solution.polls > 0 for solution in (token, text)]
    assert polled == [not service.dialect.immediate] * 2
    assert [token.token, text.token] == [task.code for task in service.books.tasks.values()]


@virtual
@every_dialect
async def test_taken_up_by_id(dialect: str) -> None:
    """The id that a job shows is enough to take it up elsewhere; an unknown one is said to be so."""
    service = LocalService(dialect=dialect, solve_time=20)
    async with at(service) as (client, _):
        job = await client.submit(V2)
    async with at(service) as (other, _):
        solution = await other.job(job.task_id or "", RecaptchaV2).wait()
        with pytest.raises(TaskNotFoundError):
            await other.job("7000000001" if service.dialect.integer_ids else "no-such-task").wait()

    assert solution.token == service.books.tasks[job.task_id or ""].code


@virtual
@every_dialect
async def test_one_state(dialect: str) -> None:
    """One question gives one state; a solution of any shape is readable."""
    service = LocalService(dialect=dialect, solve_time=20)
    async with at(service) as (client, _):
        job = await client.submit(V2)
        pending = await client.get_task_result(job.task_id or "")
        await anyio.sleep(20)
        ready = await client.get_task_result(job.task_id or "")

    assert (pending.pending, ready.ready) == (True, True)
    assert ready.solution is not None
    assert ready.solution.token == service.books.tasks[job.task_id or ""].code


@virtual
@every_dialect
async def test_refused_tasks(dialect: str) -> None:
    """A type that the service does not know, and a field that it refuses, under each dialect's code."""
    service = LocalService(dialect=dialect)
    async with at(service) as (client, _):
        with pytest.raises(UnsupportedTaskError) as unknown:
            await client.solve(Task("NoSuchTask"))
        with pytest.raises(InvalidTaskError) as wrong:
            await client.solve(Task("RecaptchaV2TaskProxyless", websiteURL="example.com", websiteKey="6Le"))

    assert (unknown.value.charged, wrong.value.charged) == (False, False)
    assert service.books.accepted == ()


@virtual
@every_dialect
async def test_feedback(dialect: str) -> None:
    """Feedback finds its task by the id of the dialect."""
    service = LocalService(dialect=dialect)
    async with at(service) as (client, _):
        solution = await client.solve(V2)
        await solution.rejected("the site said no")

    (task,) = service.books.tasks.values()
    assert task.feedback == [{"invalid": True, "message": "the site said no"}]


# --- over real sockets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DIALECTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(LocalService(dialect=request.param, solve_time=0.3, idle_for=0.1)) as server:
        yield server


async def test_over_sockets(server: Server) -> None:
    """The same over real connections: solved ones, one that is not, and the balance."""
    service, quick = server.service, Polling(interval=0.2, first=0.3)
    service.fail_next(type=TURNSTILE.type)
    async with AsyncClient(KEY, base_url=server.url, polling=quick, timeout=20) as client:
        outcomes = await client.gather([V2, ImageToText(image=PNG), TURNSTILE, V2])
        balance = await client.get_balance()
        at_rest(client)

    assert [outcome.ok for outcome in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2].error, UnsolvableError)
    for outcome in outcomes:
        assert not outcome.ok or outcome.solution.token == service.books.tasks[outcome.task_id or ""].code
    assert balance == 100 - service.books.spent
