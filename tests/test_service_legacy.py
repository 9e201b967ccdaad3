"""The older dialect, `/in.php` and `/res.php`."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from .legacy_service import LegacyService
from .service_helpers import KEY, calling

pytestmark = pytest.mark.virtual_time

V2 = {"key": KEY, "method": "userrecaptcha", "googlekey": "k", "pageurl": "https://example.com"}


async def submit(http: httpx.AsyncClient, **fields: Any) -> str:
    answer = await http.post("/in.php", data=fields)
    assert answer.text.startswith("OK|"), answer.text
    return answer.text.removeprefix("OK|")


async def test_a_solve_as_text() -> None:
    """`OK|id`, then `CAPCHA_NOT_READY`, then `OK|solution`."""
    service = LegacyService(solve_time=10)
    async with calling(service) as call:
        task_id = await submit(call.http, **V2)
        pending = await call.http.get("/res.php", params={"key": KEY, "action": "get", "id": task_id})
        await anyio.sleep(10)
        ready = await call.http.get("/res.php", params={"key": KEY, "action": "get", "id": task_id})

    task = service.books.tasks[task_id]
    assert pending.text == "CAPCHA_NOT_READY"
    assert ready.text == f"OK|{task.code}"
    assert (task.type, len(task.polls)) == ("RecaptchaV2TaskProxyless", 2)
    assert service.books.delivered == (task_id,)
    assert dict(service.books.request_counts) == {"in.php": 1, "res.php": 2}


async def test_a_solve_as_json() -> None:
    """With `json=1` every answer is `{status, request}`, and the query does as well as a form."""
    async with calling(LegacyService(solve_time=5)) as call:
        created = (await call.http.get("/in.php", params={**V2, "json": "1"})).json()
        query = {"key": KEY, "action": "get", "id": created["request"], "json": "1"}
        pending = (await call.http.get("/res.php", params=query)).json()
        await anyio.sleep(5)
        ready = (await call.http.get("/res.php", params=query)).json()
        wrong = (await call.http.get("/res.php", params={**query, "id": "1"})).json()

    assert created["status"] == 1
    assert pending == {"status": 0, "request": "CAPCHA_NOT_READY"}
    assert (ready["status"], ready["request"][:8]) == (1, "03AGdBq2")
    assert wrong == {"status": 0, "request": "ERROR_WRONG_CAPTCHA_ID"}


async def test_balance_and_reports() -> None:
    """The balance has four decimals, and reports are on record."""
    service = LegacyService(balance="50.25")  # type: ignore[arg-type]
    async with calling(service) as call:
        query = {"key": KEY, "action": "getbalance", "header_acao": "1"}
        balance = await call.http.get("/res.php", params=query)
        as_json = (await call.http.get("/res.php", params={**query, "json": "1"})).json()
        task_id = await submit(call.http, **V2)
        reports = [
            (await call.http.get("/res.php", params={"key": KEY, "action": action, "id": task_id})).text
            for action in ("reportbad", "reportgood")
        ]

    assert (balance.text, balance.headers["access-control-allow-origin"]) == ("50.2500", "*")
    assert as_json == {"status": 1, "request": "50.2500"}
    assert reports == ["OK_REPORT_RECORDED"] * 2
    assert [entry["invalid"] for entry in service.books.tasks[task_id].feedback] == [True, False]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (V2, "RecaptchaV2TaskProxyless"),
        ({**V2, "enterprise": "1"}, "RecaptchaV2EnterpriseTaskProxyless"),
        ({**V2, "version": "v3", "min_score": "0.3"}, "RecaptchaV3TaskProxyless"),
        ({**V2, "proxy": "u:p@1.2.3.4:80", "proxytype": "HTTP"}, "RecaptchaV2Task"),
        ({**V2, "method": "hcaptcha", "sitekey": "k"}, "HCaptchaTaskProxyless"),
        ({**V2, "method": "turnstile", "sitekey": "k"}, "TurnstileTaskProxyless"),
        ({**V2, "method": "funcaptcha", "publickey": "k"}, "FunCaptchaTaskProxyless"),
        ({**V2, "method": "geetest", "gt": "g", "challenge": "c"}, "GeeTestTaskProxyless"),
        ({**V2, "method": "geetest_v4", "captcha_id": "g"}, "GeeTestTaskProxyless"),
        ({"key": KEY, "method": "base64", "body": "aGVsbG8="}, "ImageToTextTask"),
    ],
)
async def test_methods_are_translated(fields: dict[str, str], kind: str) -> None:
    """Each method is a task type of the JSON API."""
    service = LegacyService()
    async with calling(service) as call:
        task_id = await submit(call.http, **fields)

    assert service.books.tasks[task_id].type == kind


async def test_images_may_be_uploaded() -> None:
    """A file in a multipart form is an image to read; other parts are fields."""
    service = LegacyService()
    async with calling(service) as call:
        answer = await call.http.post("/in.php", data={"key": KEY}, files={"file": ("a.png", b"\x89PNG\xff")})
        task_id = answer.text.removeprefix("OK|")
        ready = await call.http.get("/res.php", params={"key": KEY, "action": "get", "id": task_id})

    assert ready.text == f"OK|{service.books.tasks[task_id].code}"


@pytest.mark.parametrize(
    ("path", "fields", "code"),
    [
        ("in.php", {**V2, "key": "ucap_wrong"}, "ERROR_KEY_DOES_NOT_EXIST"),
        ("in.php", {**V2, "pageurl": "example.com"}, "ERROR_PAGEURL"),
        ("in.php", {**V2, "googlekey": ""}, "ERROR_SITEKEY"),
        ("in.php", {**V2, "method": "telepathy"}, "ERROR_BAD_PARAMETERS"),
        ("in.php", {**V2, "version": "v3", "min_score": "high"}, "ERROR_BAD_PARAMETERS"),
        ("res.php", {"key": KEY}, "ERROR_EMPTY_ACTION"),
        ("res.php", {"key": KEY, "action": "dance"}, "ERROR_BAD_PARAMETERS"),
        ("res.php", {"key": KEY, "action": "get", "id": "1"}, "ERROR_WRONG_CAPTCHA_ID"),
        ("res.php", {"key": KEY, "action": "reportbad", "id": "1"}, "ERROR_WRONG_CAPTCHA_ID"),
    ],
)
async def test_errors_are_bare_codes(path: str, fields: dict[str, str], code: str) -> None:
    """Whatever is wrong, the answer is HTTP 200 and the bare code."""
    async with calling(LegacyService(keys=[KEY])) as call:
        answer = await call.http.post(f"/{path}", data=fields)

    assert (answer.status_code, answer.text) == (200, code)


async def test_failed_solves_are_codes() -> None:
    """A failed solve is its code, and refunded."""
    service = LegacyService(failure_rate=1, solve_time=0)
    async with calling(service) as call:
        task_id = await submit(call.http, **V2)
        answer = await call.http.get("/res.php", params={"key": KEY, "action": "get", "id": task_id})

    assert answer.text == "ERROR_CAPTCHA_UNSOLVABLE"
    assert service.books.spent == 0


async def test_pingbacks_are_callbacks() -> None:
    """`pingback` is the callback's address."""
    heard: list[str] = []

    async def sender(url: str) -> int:
        heard.append(url)
        return 200

    service = LegacyService(callback_sender=sender, allow_private_callbacks=True, solve_time=3)
    async with service, calling(service) as call:
        task_id = await submit(call.http, **V2, pingback="http://127.0.0.1/cb")
        await anyio.sleep(4)

    assert [f"captcha_id={task_id}" in url for url in heard] == [True]
