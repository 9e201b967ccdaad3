"""Money and the account: budgets, the breaker, resubmission of uncertain tasks."""

from __future__ import annotations

from decimal import Decimal

import anyio
import pytest

from tests.helpers import V2, at_rest, opened
from ucaptcha_async import (
    AccountError,
    AuthenticationError,
    Budget,
    BudgetExceededError,
    InsufficientBalanceError,
    SubmitUncertainError,
)
from ucaptcha_async.testing import Drop, Error, Html, LocalService

pytestmark = pytest.mark.virtual_time

TYPE = "RecaptchaV2"


async def test_a_wrong_key_is_tried_once() -> None:
    """A thousand solves at once make one request."""
    service = LocalService(keys=["ucap_other"], latency=0.3)
    refused = 0

    async with opened(service) as client:

        async def one() -> None:
            nonlocal refused
            with pytest.raises(AuthenticationError):
                await client.solve(V2)
            refused += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(1_000):
                tasks.start_soon(one)
        at_rest(client)

    assert 1_000 == refused
    assert 1 == service.books.total_requests


async def test_paid_tasks_are_polled_while_the_breaker_is_open() -> None:
    """A refused account stops submits; what is paid for is solved."""
    service = LocalService(solve_time=30)
    async with opened(service) as client:
        job = await client.submit(V2)
        service.script("createTask", Error("ERROR_ZERO_BALANCE"))
        with pytest.raises(InsufficientBalanceError):
            await client.solve(V2)
        with pytest.raises(InsufficientBalanceError, match="no further task is submitted"):
            await client.solve(V2)
        assert 2 == service.books.request_counts["createTask"]
        assert (await job.wait()).token

        client.reset_breaker()
        assert (await client.solve(V2)).token


async def test_the_breaker_probes_after_its_time() -> None:
    """One getBalance decides: refused keeps it open, answered closes it."""
    service = LocalService(solve_time=6)
    async with opened(service, breaker_reset=60) as client:
        service.script("createTask", Error("ERROR_IP_NOT_ALLOWED", status=403))
        service.script("getBalance", Error("ERROR_IP_NOT_ALLOWED", status=403))
        with pytest.raises(AccountError):
            await client.solve(V2)
        for _ in range(3):
            with pytest.raises(AccountError):
                await client.solve(V2)
        assert "getBalance" not in service.books.request_counts
        await anyio.sleep(61)
        with pytest.raises(AccountError):
            await client.solve(V2)
        assert 1 == service.books.request_counts["getBalance"]
        await anyio.sleep(61)
        assert (await client.solve(V2)).token
        assert 2 == service.books.request_counts["getBalance"]


async def test_budget() -> None:
    """Over the budget there is no request; the real cost replaces the estimate; failures give it back."""
    service = LocalService(solve_time=6)
    budget = Budget(max_spend="0.0100", estimate="0.0050")
    async with opened(service, budget=budget) as client:
        service.fail_next()
        with pytest.raises(Exception, match="refunded"):
            await client.solve(V2)
        assert Decimal(0) == budget.spent == budget.reserved
        for _ in range(2):
            await client.solve(V2)
        before = service.books.total_requests
        with pytest.raises(BudgetExceededError) as caught:
            await client.solve(V2)
        at_rest(client)

    assert False is caught.value.charged
    assert before == service.books.total_requests
    assert 3 == len(service.books.accepted)
    assert service.books.spent == budget.spent == client.spent[TYPE]


async def test_uncertain_money_counts_as_spent() -> None:
    """What may have been charged stays counted."""
    service = LocalService()
    service.script("createTask", Drop(after=True))
    budget = Budget(max_spend=1, estimate="0.0050")
    async with opened(service, budget=budget) as client:
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2)

    assert (Decimal("0.0050"), Decimal(0)) == (budget.spent, budget.reserved)


async def test_resubmission_is_bounded_and_told() -> None:
    """With on_uncertain="resubmit" an uncertain task is submitted again, and the outcome lists each attempt."""
    service = LocalService(solve_time=6)
    service.script("createTask", Drop(after=True), Html(502))
    async with opened(service, on_uncertain="resubmit") as client:
        async with client.solve_many([V2]) as outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
        at_rest(client)

    assert [True, True, False] == [attempt.uncertain for attempt in outcome.attempts]
    assert outcome.solution.task_id in service.books.accepted
    assert 2 == len(service.books.accepted)


async def test_resubmission_ends() -> None:
    """Not more than two times."""
    service = LocalService()
    service.script("createTask", Html(502, times=None))
    async with opened(service, on_uncertain="resubmit") as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(V2)

    assert 3 == service.books.request_counts["createTask"] == len(caught.value.attempts)
