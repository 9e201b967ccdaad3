"""Faults on order: each goes wrong in the way it says, where it says, and no more often."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from ucaptcha_async.testing import (
    Amend,
    ConnectionDroppedError,
    Delay,
    Drop,
    Error,
    Fault,
    FaultRates,
    Html,
    Huge,
    Json,
    LocalService,
    RateLimit,
    Reply,
    Truncated,
)
from ucaptcha_async.testing.control import fault_from_json, fault_to_json

from .service_helpers import IMAGE, KEY, V2, calling

pytestmark = pytest.mark.virtual_time


def dropping(**options: Any) -> LocalService:
    return LocalService(drop_error=httpx.ReadError, **options)


async def test_the_next_three_polls_answer_503() -> None:
    """A scripted fault meets as many requests in a row as it says, at its endpoint only."""
    service = LocalService()
    service.script("getTaskResult", Reply(status=503, times=3))
    async with calling(service) as call:
        task_id = await call.create()
        answers = [await call.http.post("/getTaskResult", json={"clientKey": KEY, "taskId": task_id}) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [503, 503, 503, 200]
    assert service.books.tasks[task_id].polls == [pytest.approx(anyio.current_time())]
    assert service.faults.fired == {"Reply": 3}


async def test_faults_follow_one_another() -> None:
    """Several faults in one script come in their order."""
    service = dropping()
    service.script("getBalance", Html(502), Json([1, 2]), Drop(before=True), Huge(100_000))
    async with calling(service) as call:
        html = await call.http.post("/getBalance", json={"clientKey": KEY})
        a_list = await call.http.post("/getBalance", json={"clientKey": KEY})
        with pytest.raises(httpx.ReadError):
            await call("getBalance")
        huge = await call.http.post("/getBalance", json={"clientKey": KEY})
        good = await call("getBalance")

    assert (html.status_code, html.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert a_list.json() == [1, 2]
    assert len(huge.content) > 100_000
    assert good.json["balance"] == 100


async def test_faults_may_be_meant_for_one_task_or_type() -> None:
    """A script for a task or a type leaves the others alone."""
    service = LocalService()
    async with calling(service) as call:
        one, other = await call.create(), await call.create()
        service.script("getTaskResult", Error("ERROR_NO_SLOT_AVAILABLE", times=None), task_id=one)
        service.script("*", Error("ERROR_IP_NOT_ALLOWED"), task_type="ImageToTextTask")
        answers = [await call.poll(task_id) for task_id in (one, other, one)]
        image, again = await call("createTask", task=IMAGE), await call("createTask", task=IMAGE)

    assert [answer["errorId"] for answer in answers] == [1, 0, 1]
    assert (image.status, again.status) == (403, 200)


@pytest.mark.parametrize(("fault", "accepted"), [(Drop(before=True), 0), (Drop(after=True), 1), (Drop(during=True), 1)])
async def test_a_dropped_submit_is_charged_or_not(fault: Fault, accepted: int) -> None:
    """Whether a task was created is told by where the connection was cut; the caller cannot know."""
    service = dropping()
    service.script("createTask", fault)
    async with calling(service) as call:
        with pytest.raises(httpx.ReadError):
            await call("createTask", task=V2)

    assert len(service.books.accepted) == accepted
    assert service.books.requests[0].status == (200 if fault == Drop(during=True) else 0)


async def test_a_drop_raises_our_own_error_unless_told_otherwise() -> None:
    """Without `drop_error` the drop is recognisable as the service's own."""
    service = LocalService()
    service.script("getBalance", Drop(before=True))
    async with calling(service) as call:
        with pytest.raises(ConnectionDroppedError):
            await call("getBalance")


async def test_a_503_after_the_task_was_created() -> None:
    """`processed=True` carries the request out before its answer is replaced."""
    service = LocalService()
    service.script("createTask", Reply(status=503, processed=True))
    async with calling(service) as call:
        answer = await call.http.post("/createTask", json={"clientKey": KEY, "task": IMAGE})

    assert answer.status_code == 503
    assert len(service.books.paid_not_delivered) == 1
    assert service.faults.fired == {"Reply.processed": 1}
    assert service.books.requests[0].task_id == service.books.accepted[0]


async def test_answers_may_be_truncated() -> None:
    """A truncated answer is half of the right one, and delivers nothing."""
    service = LocalService()
    service.script("createTask", Truncated())
    async with calling(service) as call:
        answer = await call.http.post("/createTask", json={"clientKey": KEY, "task": IMAGE})

    assert answer.content.startswith(b'{"errorId":0,"taskId":')
    with pytest.raises(ValueError, match="Unterminated"):
        answer.json()
    assert service.books.delivered == ()


async def test_answers_may_be_amended() -> None:
    """Fields of the right answer may be changed, added or left out."""
    service = LocalService()
    service.script(
        "createTask",
        Amend(without=("taskId",)),
        Amend({"solution": None}),
        Amend({"extra": 1}),
        Amend({"status": "queued"}),
    )
    async with calling(service) as call:
        answers = [(await call("createTask", task=IMAGE)).json for _ in range(4)]

    assert "taskId" not in answers[0]
    assert answers[1]["solution"] is None
    assert (answers[2]["extra"], answers[2]["status"]) == (1, "ready")
    assert answers[3]["status"] == "queued"
    assert len(service.books.delivered) == 2


async def test_answers_may_be_late() -> None:
    """`Delay` is the right answer later, and every fault may be held back."""
    service = LocalService()
    service.script("getBalance", Delay(7), Html(504, delay=3))
    async with calling(service) as call:
        begin = anyio.current_time()
        await call("getBalance")
        middle = anyio.current_time()
        await call.http.post("/getBalance")

    assert (middle - begin, anyio.current_time() - middle) == (pytest.approx(7), pytest.approx(3))


async def test_a_429_may_come_in_several_shapes() -> None:
    """With or without the headers, with `Retry-After` or a far reset."""
    service = LocalService(epoch=0)
    service.script(
        "getBalance", RateLimit(), RateLimit(headers=False), RateLimit(retry_after=3), RateLimit(reset_in=500)
    )
    async with calling(service) as call:
        plain, bare, retry, far = [await call("getBalance") for _ in range(4)]

    assert {heard.status for heard in (plain, bare, retry, far)} == {429}
    assert plain.headers["x-ratelimit-remaining"] == "0"
    assert not {"date", "x-ratelimit-reset", "retry-after"} & set(bare.headers)
    assert retry.headers["retry-after"] == "3"
    assert int(far.headers["x-ratelimit-reset"]) - anyio.current_time() == pytest.approx(500, abs=1)


async def test_faults_may_come_at_random() -> None:
    """Rates are kept roughly, come from the seed, and stop when told to."""

    async def run(seed: int) -> list[int]:
        rates = FaultRates(rates=[(Reply(status=503), 0.2), (Html(502), 0.1)], seed=seed, endpoints=("getBalance",))
        service = LocalService(fault_rates=rates)
        async with calling(service) as call:
            statuses = [(await call.http.post("/getBalance", json={"clientKey": KEY})).status_code for _ in range(300)]
            assert (await call("createTask", task=V2)).status == 200
            service.faults.clear()
            assert {(await call("getBalance")).status for _ in range(50)} == {200}
        assert service.faults.fired == {"Reply": statuses.count(503), "Html": statuses.count(502)}
        return statuses

    first = await run(1)
    assert first == await run(1)
    assert first != await run(2)
    assert 30 < first.count(503) < 90
    assert 10 < first.count(502) < 60


async def test_faults_that_have_not_come_are_counted() -> None:
    """A test can see that everything it ordered has come."""
    service = LocalService()
    service.script("getBalance", Html(), Html())
    async with calling(service) as call:
        await call.http.post("/getBalance")

        assert service.faults.waiting == 1
        service.faults.clear()
        assert service.faults.waiting == 0
        assert (await call("getBalance")).status == 200


def test_wrong_orders_are_refused() -> None:
    """A fault that cannot be is refused when it is made, a wrong endpoint when it is ordered."""
    with pytest.raises(ValueError, match="exactly one"):
        Drop()
    with pytest.raises(ValueError, match="exactly one"):
        Drop(before=True, after=True)
    with pytest.raises(ValueError, match="at most 1"):
        FaultRates(rates=[(Html(), 0.6), (Drop(after=True), 0.6)])
    with pytest.raises(ValueError, match="no endpoint"):
        LocalService().script("getResult", Html())


@pytest.mark.parametrize(
    "fault",
    [
        *(Reply(status=500, body=b"\xff", headers=(("a", "b"),), times=2), Html(503), Json({"a": [1]}), Huge(5)),
        *(Amend({"a": 1}, without=("b",)), Error("ERROR_ZERO_BALANCE", status=200), Truncated(), Delay(3)),
        *(RateLimit(retry_after="soon", headers=False), Drop(before=True), Drop(during=True, times=None)),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_faults_travel_as_plain_values(fault: Fault) -> None:
    """A fault that is sent to a service in another process is the same there."""
    assert fault_from_json(fault_to_json(fault)) == fault


async def test_orders_over_http() -> None:
    """Orders over HTTP script faults and fates; a wrong one says what is wrong."""
    service = LocalService()
    async with calling(service) as call:

        async def order(**fields: Any) -> Any:
            return (await call.http.post("/control", json=fields)).json()

        assert await order(do="script", endpoint="getBalance", faults=[fault_to_json(Html(502))]) == {}
        assert await order(do="fail_next", error_code="ERROR_BAD_PROXY", after=0) == {}
        assert await order(do="set", latency=0.5) == {}
        assert (await call.http.post("/getBalance")).status_code == 502
        assert (await call.poll(await call.create()))["errorCode"] == "ERROR_BAD_PROXY"
        assert await order(do="rates", rates=[[fault_to_json(Html(504)), 1.0]]) == {}
        assert (await call.http.post("/getBalance")).status_code == 504
        assert await order(do="clear") == {}
        assert await order(do="solve_next", solution={"text": "x"}) == {}
        assert (await call("createTask", task=IMAGE)).json["solution"] == {"text": "x"}
        for wrong in (
            {"do": "nothing"},
            {"do": "script", "endpoint": "getBalance", "faults": [{"fault": "Nope"}]},
            {"do": "script", "endpoint": "getBalance", "faults": [{"fault": "Html", "colour": 1}]},
            {"do": "script", "endpoint": "getBalance", "faults": 3},
            {"do": "rates", "rates": 3},
            {"do": "set", "keys": []},
        ):
            assert "error" in await order(**wrong), wrong

    assert service.latency == 0.5
    assert "control" not in service.books.request_counts
