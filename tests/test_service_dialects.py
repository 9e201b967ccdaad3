"""The dialects of the family: each differs from the documented answers where its service does."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from ucaptcha_async.testing import DIALECTS, Dialect, LocalService

from .service_helpers import IMAGE, V2, calling

pytestmark = pytest.mark.virtual_time

NUMBERED = ("anticaptcha", "capmonster", "2captcha")


async def solve(dialect: Dialect | str, **options: Any) -> tuple[Any, Any, Any]:
    """Return what a service of this dialect answers to a submit, a poll in between and a poll at the end."""
    async with calling(LocalService(dialect=dialect, solve_time=4, **options)) as call:
        created = await call("createTask", task=V2)
        pending = await call.poll(created.json["taskId"])
        await anyio.sleep(4)
        return created.json, pending, await call.poll(created.json["taskId"])


@pytest.mark.parametrize("name", DIALECTS)
async def test_every_dialect_solves(name: str) -> None:
    """Whatever the words, a task is accepted, pending, and ready with one token."""
    created, pending, ready = await solve(name)

    assert created["errorId"] == 0
    assert pending["status"] in ("idle", "processing")
    assert ready["status"] == "ready"
    assert {"gRecaptchaResponse", "token"} & set(ready["solution"])


@pytest.mark.parametrize("name", NUMBERED)
async def test_ids_may_be_numbers(name: str) -> None:
    """Where ids are numbers, they are in JSON as well, and no two are alike."""
    service = LocalService(dialect=name)
    async with calling(service) as call:
        ids = [await call.create() for _ in range(50)]
        unknown = await call("getTaskResult", taskId=5)

    assert all(isinstance(task_id, int) for task_id in ids)
    assert len(set(ids)) == 50
    assert unknown.json["errorCode"] in ("ERROR_NO_SUCH_CAPCHA_ID", "WRONG_CAPTCHA_ID")


@pytest.mark.parametrize("name", [*NUMBERED, "anysolver"])
async def test_errors_may_come_with_http_200(name: str) -> None:
    """Where the HTTP status is always 200, it is so for wrong keys too."""
    async with calling(LocalService(dialect=name, keys=[])) as call:
        heard = await call("getBalance")

    assert (heard.status, heard.json["errorId"]) == (200, 1)


@pytest.mark.parametrize(("name", "number"), [("anticaptcha", 10), ("2captcha", 10), ("capsolver", 1), ("ucaptcha", 1)])
async def test_error_ids_may_be_numbers_of_errors(name: str, number: int) -> None:
    """`errorId` is the number of the error in some dialects, and always 1 in others."""
    async with calling(LocalService(dialect=name, balance=0)) as call:  # type: ignore[arg-type]
        heard = await call("createTask", task=V2)

    assert (heard.json["errorId"], heard.json["errorCode"]) == (number, "ERROR_ZERO_BALANCE")


@pytest.mark.parametrize(
    ("name", "number"), [("anticaptcha", 12), ("2captcha", 12), ("capsolver", 1), ("capmonster", 1)]
)
async def test_unsolvable_may_be_an_error(name: str, number: int) -> None:
    """A failed solve is an error in some dialects, and refunded all the same."""
    service = LocalService(dialect=name, failure_rate=1, solve_time=0)
    async with calling(service) as call:
        heard = await call("getTaskResult", taskId=await call.create())

    assert (heard.status, heard.json["errorId"]) == (200, number)
    assert heard.json["errorCode"] == "ERROR_CAPTCHA_UNSOLVABLE"
    assert heard.json.get("status") == ("failed" if name == "capsolver" else None)
    assert service.books.spent == 0


@pytest.mark.parametrize("name", ["anticaptcha", "2captcha", "bare"])
async def test_cost_may_be_text(name: str) -> None:
    """A price is text in some dialects."""
    _, _, ready = await solve(name)

    assert ready["cost"] == "0.00299"
    assert "solveTime" not in ready


@pytest.mark.parametrize("name", ["anticaptcha", "capmonster", "2captcha", "bare"])
async def test_create_may_have_no_status(name: str) -> None:
    """The answer of `createTask` is only an id in some dialects, images included."""
    created, pending, _ = await solve(name)

    assert set(created) == {"errorId", "taskId"}
    assert pending["status"] == ("idle" if name == "bare" else "processing")


async def test_results_may_have_no_error_id() -> None:
    """`errorId` may be missing from polls."""
    _, pending, ready = await solve("bare")

    assert "errorId" not in {**pending, **ready}


async def test_tokens_may_have_another_name() -> None:
    """`token` in place of `gRecaptchaResponse`, or both."""
    any_solver, two = (await solve("anysolver"))[2], (await solve("2captcha"))[2]

    assert set(any_solver["solution"]) == {"token"}
    assert two["solution"]["token"] == two["solution"]["gRecaptchaResponse"]


async def test_pending_answers_may_say_more() -> None:
    """AnySolver repeats the task and has a null for the solution."""
    created, pending, _ = await solve("anysolver")

    assert pending["solution"] is None
    assert (pending["taskId"], pending["taskType"]) == (created["taskId"], V2["type"])


@pytest.mark.parametrize("name", NUMBERED)
async def test_images_may_have_to_be_polled(name: str) -> None:
    """Where `createTask` never has a solution, images are polled for like any other task."""
    async with calling(LocalService(dialect=name, solve_time=0)) as call:
        created = await call("createTask", task=IMAGE)
        ready = await call.poll(created.json["taskId"])

    assert "solution" not in created.json
    assert set(ready["solution"]) == {"text"}


async def test_immediate_answers_may_have_no_price() -> None:
    """Whether an immediate answer carries its cost is not documented; both can be had."""
    async with calling(LocalService(dialect=Dialect(immediate_cost=False))) as call:
        created = await call("createTask", task=IMAGE)

    assert set(created.json) == {"errorId", "taskId", "status", "solution"}


@pytest.mark.parametrize("name", ["anticaptcha", "capsolver", "capmonster", "2captcha"])
async def test_proxies_may_be_written_otherwise(name: str) -> None:
    """The others take a task with a proxy's type name but no proxy, and their own spelling of one."""
    async with calling(LocalService(dialect=name)) as call:
        assert await call.create({**V2, "type": "RecaptchaV2Task"})
        assert await call.create({**V2, "type": "RecaptchaV2Task", "proxy": "1.2.3.4:80:user:pass"})


async def test_results_may_say_more() -> None:
    """Where and when a task was solved is in the results of some services."""
    ready = (await solve("anticaptcha"))[2]

    assert ready["endTime"] - ready["createTime"] == pytest.approx(4, abs=1)
    assert (ready["ip"], ready["solveCount"]) == ("127.0.0.1", "0")
    assert "taskId" in (await solve("capsolver"))[2]


@pytest.mark.parametrize("endpoint", ["reportIncorrectRecaptcha", "reportIncorrectImageCaptcha", "reportCorrect"])
async def test_feedback_may_have_endpoints_of_its_own(endpoint: str) -> None:
    """Some services have an address for each kind of feedback, which the others do not have."""
    async with calling(LocalService(dialect="anticaptcha")) as call, calling(LocalService()) as plain:
        heard = await call(endpoint, taskId=await call.create())
        unknown = await call(endpoint, taskId=1)
        nowhere = await plain(endpoint, taskId=await plain.create())

    assert heard.json == {"errorId": 0, "status": "success"}
    assert unknown.json["errorCode"] == "ERROR_NO_SUCH_CAPCHA_ID"
    assert nowhere.status == 404


@pytest.mark.parametrize("nothing", [None, ""])
async def test_nothing_is_as_good_as_absent(nothing: str | None) -> None:
    """Clients of the family send the optional fields that they do not use as null, or as empty text."""
    service = LocalService()
    async with calling(service) as call:
        task = {**V2, "proxy": nothing, "recaptchaDataSValue": nothing}
        task_id = await call.create(task, callbackUrl=nothing, provider=nothing, selectionMode=nothing)
        page = await call("createTask", task={**V2, "websiteURL": nothing})

    assert (service.books.tasks[task_id].provider, service.books.tasks[task_id].selection_mode) == (None, None)
    assert page.json["errorCode"] == "ERROR_PAGEURL"


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({"id_digits": 4}, lambda task_id: isinstance(task_id, str) and task_id == "0012"),
        ({"id_digits": 19, "integer_ids": True}, lambda task_id: isinstance(task_id, int) and task_id > 2**53),
    ],
)
async def test_ids_come_back_as_they_were(options: dict[str, Any], looks: Any) -> None:
    """Ids may be numbers beyond what a double holds, or digits with leading zeros; in another form they are unknown."""
    service = LocalService(dialect=Dialect(**options), solve_time=0)
    async with calling(service) as call:
        task_id = await call.create()
        other = int(task_id) if isinstance(task_id, str) else str(task_id)
        ready, unknown = await call.poll(task_id), await call.poll(other)

    assert looks(task_id)
    assert ready["status"] == "ready"
    assert unknown["errorCode"] == "ERROR_WRONG_CAPTCHA_ID"
    assert len(service.books.tasks[str(task_id)].polls) == 1


async def test_many_ids_with_zeros_differ() -> None:
    """No two tasks share an id, whatever its form."""
    for options in ({"id_digits": 4}, {"id_digits": 19, "integer_ids": True}):
        async with calling(LocalService(dialect=Dialect(**options))) as call:  # type: ignore[arg-type]
            assert len({await call.create() for _ in range(200)}) == 200


@pytest.mark.parametrize(("code", "status"), [("ERROR_CAPTCHA_SOLVE_FAILED", 400), ("ERROR_CAPTCHA_UNSOLVABLE", 200)])
async def test_a_failed_solve_may_be_an_error_with_a_status(code: str, status: int) -> None:
    """CapSolver's error for a failed solve names the task, and has its status."""
    service = LocalService(dialect="capsolver", solve_time=0)  # type: ignore[arg-type]
    service.fail_next(code, after=0)
    async with calling(service) as call:
        task_id = await call.create()
        heard = await call("getTaskResult", taskId=task_id)

    assert heard.status == status
    assert {**heard.json, "errorDescription": ""} == {
        "errorId": 1,
        "errorCode": code,
        "errorDescription": "",
        "status": "failed",
        "taskId": task_id,
    }
    assert service.books.spent == 0
