"""The books of the local service say what happened."""

from __future__ import annotations

import json
from decimal import Decimal

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucaptcha_async.testing import Books, Drop, LocalService
from ucaptcha_async.testing.books import most_in_window

from .service_helpers import IMAGE, KEY, V2, calling

pytestmark = pytest.mark.virtual_time


async def test_every_request_is_on_record() -> None:
    """Each request has its time, endpoint, HTTP status, task and a fingerprint of its key."""
    service = LocalService()
    async with calling(service) as call:
        begin = anyio.current_time()
        task_id = await call.create()
        await anyio.sleep(5)
        await call.poll(task_id)
        await call("getBalance", clientKey=None)

    seen = [(round(r.at - begin, 6), r.endpoint, r.status, r.task_id) for r in service.books.requests]
    assert seen == [
        (0, "createTask", 200, task_id),
        (5, "getTaskResult", 200, task_id),
        (5, "getBalance", 401, None),
    ]
    fingerprint = service.fingerprint(KEY)
    assert [r.key for r in service.books.requests] == [fingerprint, fingerprint, None]
    assert dict(service.books.request_counts) == {"createTask": 1, "getTaskResult": 1, "getBalance": 1}


async def test_money_is_accounted_for() -> None:
    """What is spent is what was charged less what came back, to the cent."""
    service = LocalService(solve_time=2)
    async with calling(service) as call:
        solved = await call.create()
        service.fail_next(after=1)
        failed = await call.create()
        await call.create(IMAGE)
        before = service.books.spent
        await anyio.sleep(2)
        await call.poll(solved)

    books = service.books
    assert Decimal("0.00648") == before
    assert (Decimal("0.00648"), Decimal("0.00299"), Decimal("0.00349")) == (books.charged, books.refunded, books.spent)
    assert [failed] == [refund.task_id for refund in books.refunds]
    assert len(books.charges) == 3
    assert (books.tasks[failed].refunded, books.tasks[solved].refunded) == (True, False)


async def test_what_was_paid_and_not_delivered_is_known() -> None:
    """A solution counts as delivered once it was sent; a lost answer or a task never asked for does not."""
    service = LocalService(solve_time=1, drop_error=httpx.ReadError)
    async with calling(service) as call:
        fetched, lost, forgotten = [await call.create() for _ in range(3)]
        service.fail_next()
        failed = await call.create()
        service.script("getTaskResult", Drop(after=True), task_id=lost)
        await anyio.sleep(5)
        await call.poll(fetched)
        with pytest.raises(httpx.ReadError):
            await call.poll(lost)

    books = service.books
    assert (fetched, lost, forgotten, failed) == books.accepted
    assert (fetched,) == books.delivered
    assert (lost, forgotten) == books.paid_not_delivered
    assert books.tasks[fetched].first_delivered_at is not None


async def test_a_cancelled_request_delivers_nothing() -> None:
    """A caller that goes away while its answer is on the way has not got it, though the task is charged."""
    service = LocalService(latency=1)
    async with calling(service) as call:
        with anyio.move_on_after(0.5):
            await call("createTask", task=IMAGE)

    assert len(service.books.accepted) == 1
    assert service.books.delivered == ()


async def test_poll_gaps_are_measured() -> None:
    """The smallest time between two polls of one task is known; polls of different tasks do not count."""
    service = LocalService(solve_time=100)
    async with calling(service) as call:
        first, second = await call.create(), await call.create()
        for pause in (5, 4, 6):
            await call.poll(first)
            await call.poll(second)
            await anyio.sleep(pause)
        await call.poll(first)

    assert pytest.approx(4) == service.books.smallest_poll_gap()
    assert len(service.books.tasks[first].polls) == 4


async def test_the_worst_window_is_found_wherever_it_starts() -> None:
    """Two bursts around a boundary count together."""
    service = LocalService()
    async with calling(service) as call, calling(service, key="ucap_b") as other:
        for pause in (8, 1, 1, 8):
            await call("getBalance")
            await other("getBalance")
            await anyio.sleep(pause)

    assert service.books.worst_window(10.5) == 8
    assert service.books.worst_window() == 6
    assert service.books.worst_window(key=service.fingerprint("ucap_b")) == 3
    assert service.books.worst_window(key="nobody") == 0


@given(st.lists(st.floats(0, 100)), st.floats(0.1, 50))
def test_the_worst_window_agrees_with_counting(times: list[float], window: float) -> None:
    """The sweep finds what looking at the window after every request finds."""
    slow = max((sum(start <= at < start + window - 1e-9 for at in times) for start in times), default=0)

    assert slow == most_in_window(times, window)


@pytest.mark.parametrize("detail", [True, False])
async def test_books_without_detail_keep_the_sums(detail: bool) -> None:
    """Without detail there are no lists of requests and charges; all sums and counts are the same."""
    service = LocalService(books_detail=detail, failure_rate=0.5, solve_time=3, seed=4)
    async with calling(service) as call:
        ids = [await call.create() for _ in range(10)]
        await anyio.sleep(5)
        for task_id in ids:
            await call.poll(task_id)

    books = service.books
    assert (20 if detail else 0) == len(books.requests)
    assert (books.total_requests, books.worst_window(), len(books.accepted), len(books.delivered)) == (20, 20, 10, 10)
    assert Decimal("0.0299") == books.charged
    assert Decimal(0) < books.refunded < books.charged


async def test_books_are_readable_over_http_without_secrets() -> None:
    """`GET /books` gives the sums, `?full=1` all entries; no API key, no solution, and reading leaves no trace."""
    service = LocalService()
    async with calling(service) as call:
        await call.create(IMAGE)
        await call("getBalance")
        summary = (await call.http.get("/books")).json()
        full = await call.http.get("/books?full=1")

    assert tuple(summary[name] for name in ("requests", "accepted", "delivered", "paid_not_delivered", "spent")) == (
        2,
        1,
        1,
        0,
        "0.0005",
    )
    assert "request_list" not in summary
    details = full.json()
    assert [record["endpoint"] for record in details["request_list"]] == ["createTask", "getBalance"]
    assert details["task_list"][0]["type"] == "ImageToTextTask"
    assert details["charge_list"][0]["amount"] == "0.0005"
    task = service.books.tasks[service.books.accepted[0]]
    assert KEY not in full.text
    assert task.code not in full.text


async def test_books_hold_no_keys() -> None:
    """API keys and solutions are in no representation of the books' entries."""
    service = LocalService()
    async with calling(service) as call:
        task_id = await call.create()
    task = service.books.tasks[task_id]
    shown = repr(service.books.requests) + repr(task) + json.dumps(service.books.as_json(full=True))

    assert KEY not in shown
    assert task.code not in shown


def test_empty_books() -> None:
    """Books in which nothing happened say so."""
    books = Books()

    assert (0, None, Decimal(0), ()) == (
        books.worst_window(),
        books.smallest_poll_gap(),
        books.spent,
        books.paid_not_delivered,
    )


async def test_refunds_are_seen_after_the_run() -> None:
    """Books that are read when the event loop is gone know the refunds up to the last request."""
    service = LocalService(solve_time=1, failure_rate=1)
    async with calling(service) as call:
        await call.create(V2)
        await anyio.sleep(1)
        await call("getBalance")

    read = await anyio.to_thread.run_sync(lambda: service.books.refunded)
    assert Decimal("0.00299") == read
