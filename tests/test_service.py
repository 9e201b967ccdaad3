"""The local service answers as the documentation of the real one says."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import anyio
import pytest

from ucaptcha_async.testing import KINDS, Kind, LocalService, LogNormal, Mixture

from .service_helpers import IMAGE, KEY, V2, calling

pytestmark = pytest.mark.virtual_time

PICTURE = {"imageBase64": "data:image/png;base64,aGVsbG8="}
EXAMPLES: dict[str, dict[str, Any]] = {
    "reCAPTCHA v2": V2,
    "reCAPTCHA v2 Enterprise": {**V2, "type": "RecaptchaV2EnterpriseTaskProxyless", "enterprisePayload": {"s": "x"}},
    "reCAPTCHA v3": {**V2, "type": "RecaptchaV3TaskProxyless", "minScore": 0.7},
    "hCaptcha": {**V2, "type": "HCaptchaTaskProxyless"},
    "Turnstile": {**V2, "type": "TurnstileTaskProxyless"},
    "image to text": IMAGE,
    "GeeTest": {"type": "GeeTestTaskProxyless", "websiteURL": "https://a.b", "gt": "g", "challenge": "c"},
    "FunCaptcha": {"type": "FunCaptchaTaskProxyless", "websiteURL": "https://a.b", "websitePublicKey": "p"},
    "MTCaptcha": {**V2, "type": "MtCaptchaTaskProxyLess"},
    "Friendly Captcha": {**V2, "type": "FriendlyCaptchaTaskProxyless"},
    "Yandex SmartCaptcha": {**V2, "type": "YandexCaptchaTaskProxyLess"},
    "Tencent": {"type": "TencentTaskProxyless", "websiteURL": "https://a.b", "appId": "1"},
    "click coordinates": {"type": "CoordinatesRecognition", **PICTURE, "minClicks": 2},
    "rotate": {"type": "RotateRecognition", **PICTURE},
    "human recognition": {"type": "HumanRecognition", **PICTURE},
}
FIELDS: dict[str, set[str]] = {
    "reCAPTCHA v2": {"gRecaptchaResponse"},
    "reCAPTCHA v2 Enterprise": {"gRecaptchaResponse"},
    "reCAPTCHA v3": {"gRecaptchaResponse"},
    "hCaptcha": {"token", "userAgent"},
    "Turnstile": {"token", "userAgent"},
    "image to text": {"text"},
    "GeeTest": {"challenge", "validate", "seccode"},
    "FunCaptcha": {"token"},
    "MTCaptcha": {"token"},
    "Friendly Captcha": {"token", "userAgent"},
    "Yandex SmartCaptcha": {"token"},
    "Tencent": {"appid", "ret", "ticket", "randstr"},
    "click coordinates": {"coordinates"},
    "rotate": {"rotate"},
    "human recognition": {"text"},
}


async def test_a_solve_goes_from_idle_to_ready() -> None:
    """A task is `idle`, then `processing`, then `ready` with its solution, cost and solve time."""
    service = LocalService(solve_time=12, idle_for=2)
    async with calling(service) as call:
        created = await call("createTask", task=V2)
        task_id = created.json["taskId"]
        idle = await call.poll(task_id)
        await anyio.sleep(5)
        processing = await call.poll(task_id)
        await anyio.sleep(7)
        ready = await call.poll(task_id)

    assert {"errorId": 0, "taskId": task_id, "status": "processing"} == created.json
    assert str(uuid.UUID(task_id)) == task_id
    assert idle == {"errorId": 0, "status": "idle"}
    assert processing == {"errorId": 0, "status": "processing"}
    assert {"errorId", "status", "solution", "cost", "solveTime"} == set(ready)
    assert (ready["status"], ready["cost"], ready["solveTime"]) == ("ready", 0.00299, 12_000)
    assert len(ready["solution"]["gRecaptchaResponse"]) > 300


async def test_a_failed_solve_is_no_error_and_is_refunded() -> None:
    """A task that cannot be solved is HTTP 200, errorId 0, `failed` with a code, and its charge comes back."""
    service = LocalService(failure_rate=1, solve_time=3, balance=Decimal(1))
    async with calling(service) as call:
        task_id = await call.create()
        charged = (await call("getBalance")).json
        await anyio.sleep(3)
        failed = await call("getTaskResult", taskId=task_id)
        refunded = (await call("getBalance")).json

    assert failed.status == 200
    assert {"errorId", "status", "errorCode", "errorDescription"} == set(failed.json)
    assert tuple(failed.json[k] for k in ("errorId", "status", "errorCode")) == (
        0,
        "failed",
        "ERROR_CAPTCHA_UNSOLVABLE",
    )
    assert charged == {"errorId": 0, "balance": 0.99701}
    assert refunded == {"errorId": 0, "balance": 1.0}
    assert Decimal(0) == service.books.spent


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_kind_has_its_solution(kind: Kind) -> None:
    """Each kind of CAPTCHA is solved with the fields that its page names."""
    service = LocalService(solve_time=1)
    async with calling(service) as call:
        heard = await call("createTask", task=EXAMPLES[kind.name])
        await anyio.sleep(1)
        ready = await call.poll(heard.json["taskId"])

    assert FIELDS[kind.name] == set(ready["solution"])
    assert all(value not in (None, "") for value in ready["solution"].values())


async def test_geetest_v4_has_five_values() -> None:
    """GeeTest v4 needs no challenge and answers with its own five fields."""
    task = {"type": "GeeTestTaskProxyless", "websiteURL": "https://a.b", "version": 4}
    async with calling(LocalService(solve_time=0)) as call:
        ready = await call.poll(await call.create({**task, "initParameters": {"captcha_id": "abc"}}))

    assert {"captcha_id", "lot_number", "pass_token", "gen_time", "captcha_output"} == set(ready["solution"])
    assert ready["solution"]["captcha_id"] == "abc"


@pytest.mark.parametrize("name", ["ReCaptchaV2TokenProxyLess", "ReCaptchaV2TaskProxyLess", "NoCaptchaTaskProxyless"])
async def test_other_spellings_of_a_type_are_known(name: str) -> None:
    """The spellings of the other services of the family are accepted, as one page of the documentation uses them."""
    async with calling(LocalService(solve_time=0)) as call:
        ready = await call.poll(await call.create({**V2, "type": name}))

    assert "gRecaptchaResponse" in ready["solution"]


async def test_images_are_answered_at_once() -> None:
    """`ImageToTextTask` has its solution in the answer of `createTask`."""
    service = LocalService()
    async with calling(service) as call:
        heard = await call("createTask", task=IMAGE)

    assert {"errorId", "taskId", "status", "solution", "cost", "solveTime"} == set(heard.json)
    assert heard.json["status"] == "ready"
    assert (heard.json["taskId"],) == service.books.delivered


async def test_lightning_keys_draw_from_a_stock() -> None:
    """A Lightning key gets its tokens at once while its stock lasts, then normally; the stock fills up again."""
    service = LocalService(lightning={KEY: 2}, solve_time=10)
    async with calling(service) as call:
        first = [(await call("createTask", task=V2)).json["status"] for _ in range(3)]
        await anyio.sleep(10)
        later = (await call("createTask", task=V2)).json["status"]
    async with calling(service, key="ucap_other") as other:
        normal = (await other("createTask", task=V2)).json["status"]

    assert first == ["ready", "ready", "processing"]
    assert (later, normal) == ("ready", "processing")


@pytest.mark.parametrize(
    ("task", "code", "status"),
    [
        ({**V2, "type": "PerimeterTask"}, "TASK_NOT_SUPPORTED", 400),
        ({**V2, "type": 7}, "TASK_NOT_SUPPORTED", 400),
        ({"websiteURL": "https://a.b"}, "TASK_NOT_SUPPORTED", 400),
        ("RecaptchaV2TaskProxyless", "ERROR_BAD_PARAMETERS", 400),
        ({**V2, "websiteURL": "example.com/login"}, "ERROR_PAGEURL", 400),
        ({**V2, "websiteURL": "ftp://example.com"}, "ERROR_PAGEURL", 400),
        ({**V2, "websiteURL": "http://[::1"}, "ERROR_PAGEURL", 400),
        ({"type": V2["type"], "websiteKey": "k"}, "ERROR_PAGEURL", 400),
        ({**V2, "websiteKey": " "}, "ERROR_SITEKEY", 400),
        ({"type": V2["type"], "websiteURL": "https://a.b"}, "ERROR_SITEKEY", 400),
        ({**V2, "type": "FunCaptchaTaskProxyless"}, "ERROR_SITEKEY", 400),
        ({**V2, "type": "RecaptchaV3TaskProxyless", "minScore": 2}, "ERROR_BAD_PARAMETERS", 400),
        ({**V2, "type": "TencentTaskProxyless"}, "ERROR_BAD_PARAMETERS", 400),
        ({"type": "ImageToTextTask"}, "ERROR_BAD_PARAMETERS", 400),
        ({"type": "ImageToTextTask", "body": "data:image/png;base64,aGVsbG8="}, "ERROR_BAD_PARAMETERS", 400),
        ({"type": "GeeTestTaskProxyless", "websiteURL": "https://a.b", "challenge": "c"}, "ERROR_BAD_PARAMETERS", 400),
        ({"type": "GeeTestTaskProxyless", "websiteURL": "https://a.b", "gt": "g"}, "ERROR_BAD_PARAMETERS", 400),
        ({**EXAMPLES["GeeTest"], "version": 5}, "ERROR_BAD_PARAMETERS", 400),
        ({**V2, "type": "RecaptchaV2Task"}, "ERROR_BAD_PROXY", 400),
        ({**V2, "type": "RecaptchaV2Task", "proxy": "1.2.3.4:80:user:pass"}, "ERROR_PROXY_FORMAT", 400),
        ({**V2, "type": "RecaptchaV2Task", "proxy": "user:pass@1.2.3.4:80"}, "ERROR_PROXY_FORMAT", 400),
        ({**V2, "type": "RecaptchaV2Task", "proxy": 5}, "ERROR_PROXY_FORMAT", 400),
        ({**V2, "type": "RecaptchaV2Task", "proxy": "http://user:pass@1.2.3.4:0"}, "ERROR_BAD_PROXY", 400),
        ({**V2, "type": "RecaptchaV2Task", "proxyAddress": "1.2.3.4", "proxyPort": 80}, "ERROR_BAD_PROXY", 400),
    ],
)
async def test_wrong_tasks_are_refused(task: Any, code: str, status: int) -> None:
    """A wrong task gets the documented code and HTTP status, and costs nothing."""
    service = LocalService()
    async with calling(service) as call:
        heard = await call("createTask", task=task)

    assert (status, 1, code) == (heard.status, heard.json["errorId"], heard.json["errorCode"])
    assert heard.json["errorDescription"]
    assert Decimal(0) == service.books.charged


@pytest.mark.parametrize(
    "proxy",
    [
        {"proxy": "http://user:pass@1.2.3.4:8080"},
        {"proxy": "socks5://proxy.example:1080"},
        {"proxy": "http://user:pass@[2001:db8::1]:8080"},
        {"proxy": "user:pass@1.2.3.4:8080", "proxyType": "http"},
        {"proxyType": "http", "proxyAddress": "1.2.3.4", "proxyPort": 8080, "proxyLogin": "u", "proxyPassword": "p"},
    ],
)
async def test_proxies_are_accepted_in_the_documented_forms(proxy: dict[str, Any]) -> None:
    """A proxy is one text, with or without its type in it, or the fields of the family."""
    async with calling(LocalService()) as call:
        assert await call.create({**V2, "type": "RecaptchaV2Task", **proxy})


@pytest.mark.parametrize("fields", [{"selectionMode": "fastest"}, {"provider": 5}, {"callbackUrl": 5}])
async def test_wrong_routing_is_refused(fields: dict[str, Any]) -> None:
    """The fields beside the task are checked as well."""
    async with calling(LocalService()) as call:
        heard = await call("createTask", task=V2, **fields)

    assert (heard.status, heard.json["errorCode"]) == (400, "ERROR_BAD_PARAMETERS")


async def test_routing_is_on_record() -> None:
    """Selection mode and provider are in the books."""
    service = LocalService()
    async with calling(service) as call:
        task_id = await call.create(V2, selectionMode="autoCheapest", provider="capsolver")

    task = service.books.tasks[task_id]
    assert (task.selection_mode, task.provider) == ("autoCheapest", "capsolver")


@pytest.mark.parametrize("endpoint", ["createTask", "getTaskResult", "getBalance", "feedbackTask"])
@pytest.mark.parametrize("key", ["ucap_wrong", "", None])
async def test_unknown_keys_are_refused(endpoint: str, key: Any) -> None:
    """A key that does not exist is HTTP 401 at every endpoint."""
    async with calling(LocalService(keys=[KEY])) as call:
        heard = await call(endpoint, clientKey=key, task=V2, taskId="x")

    assert (heard.status, heard.json["errorCode"]) == (401, "ERROR_KEY_DOES_NOT_EXIST")


async def test_an_empty_account_is_refused() -> None:
    """A task that costs more than there is is HTTP 402, and is not created."""
    service = LocalService(balance=Decimal("0.005"))
    async with calling(service) as call:
        await call.create()
        heard = await call("createTask", task=V2)
        service.set_balance(KEY, 1)
        await call.create()

    assert (heard.status, heard.json["errorCode"]) == (402, "ERROR_ZERO_BALANCE")
    assert len(service.books.accepted) == 2
    assert Decimal("0.99701") == service.get_balance(KEY)


@pytest.mark.parametrize("task_id", ["00000000-0000-4000-8000-000000000000", 17, None])
@pytest.mark.parametrize("endpoint", ["getTaskResult", "feedbackTask"])
async def test_unknown_tasks_are_not_found(endpoint: str, task_id: Any) -> None:
    """An id that nobody was given is HTTP 404."""
    async with calling(LocalService()) as call:
        heard = await call(endpoint, taskId=task_id, result={"invalid": True, "message": "x"})

    assert (heard.status, heard.json["errorCode"]) == (404, "ERROR_WRONG_CAPTCHA_ID")


async def test_tasks_of_other_keys_are_not_found() -> None:
    """A task belongs to the key that paid for it."""
    service = LocalService()
    async with calling(service) as call, calling(service, key="ucap_other") as other:
        heard = await other("getTaskResult", taskId=await call.create())

    assert heard.status == 404


async def test_results_expire_if_asked_for() -> None:
    """With a retention, a finished task is forgotten after it."""
    async with calling(LocalService(solve_time=5, retention=300)) as call:
        task_id = await call.create()
        await anyio.sleep(304)
        kept = await call.poll(task_id)
        await anyio.sleep(2)
        gone = await call("getTaskResult", taskId=task_id)

    assert (kept["status"], gone.status) == ("ready", 404)


async def test_feedback_is_recorded() -> None:
    """Feedback needs `invalid` and `message`, and is on record."""
    service = LocalService()
    result = {"invalid": True, "message": "the site refused it", "code": "refused"}
    async with calling(service) as call:
        task_id = await call.create()
        heard = await call("feedbackTask", taskId=task_id, result=result)

    assert (0, {"errorId", "message"}) == (heard.json["errorId"], set(heard.json))
    assert [result] == service.books.tasks[task_id].feedback


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"invalid": True},
        {"invalid": "yes", "message": "x"},
        {"invalid": False, "message": ""},
        {"invalid": False, "message": "x", "code": 3},
    ],
)
async def test_wrong_feedback_is_refused(result: Any) -> None:
    """The message is required for praise as well, and the code is text."""
    async with calling(LocalService()) as call:
        heard = await call("feedbackTask", taskId=await call.create(), result=result)

    assert (heard.status, heard.json["errorCode"]) == (400, "ERROR_BAD_PARAMETERS")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'"text"', b"[" * 100_000])
async def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    """A body that cannot be read is HTTP 400 with an error like any other."""
    async with calling(LocalService()) as call:
        answer = await call.http.post("/createTask", content=content)

    assert (answer.status_code, answer.json()["errorCode"]) == (400, "ERROR_BAD_PARAMETERS")


async def test_other_methods_and_addresses_are_refused() -> None:
    """GET at an endpoint is HTTP 405; an address that does not exist is 404."""
    async with calling(LocalService()) as call:
        get = await call.http.get("/getBalance")
        nowhere = await call("getTaskResults")

    assert (get.status_code, get.headers["allow"]) == (405, "POST")
    assert (nowhere.status, nowhere.json["errorId"]) == (404, 1)


async def test_every_answer_tells_the_limit() -> None:
    """`X-RateLimit-*` and `Date` are on every answer; windows begin at multiples of their length."""
    async with calling(LocalService(epoch=1_700_000_000)) as call:
        await anyio.sleep(13 - anyio.current_time() % 10)
        first = await call("getBalance")
        refused = await call("createTask", task={})
        await anyio.sleep(10)
        later = await call("getBalance")

    for heard, remaining in ((first, 9999), (refused, 9998), (later, 9999)):
        assert ("10000", str(remaining)) == tuple(heard.headers[f"x-ratelimit-{n}"] for n in ("limit", "remaining"))
    resets = [int(heard.headers["x-ratelimit-reset"]) for heard in (first, refused, later)]
    assert [reset - resets[0] for reset in resets] == [0, 0, 10]
    assert resets[0] % 10 == 0
    assert "GMT" in first.headers["date"]


async def test_the_clock_may_be_wrong() -> None:
    """With a skew, the service's own clock is ahead, and `Date` and the reset say so alike."""
    async with calling(LocalService(epoch=0)) as call, calling(LocalService(epoch=0, clock_skew=3600)) as skewed:
        right, ahead = await call("getBalance"), await skewed("getBalance")

    assert int(ahead.headers["x-ratelimit-reset"]) - int(right.headers["x-ratelimit-reset"]) == 3600
    assert right.headers["date"] != ahead.headers["date"]


async def test_the_limit_is_kept() -> None:
    """The request after the last of a window is HTTP 429 and is not carried out; the next window is free again."""
    service = LocalService(rate_limit=3, epoch=0)
    async with calling(service) as call:
        await anyio.sleep(10 - anyio.current_time() % 10)
        allowed = [(await call("createTask", task=V2)).status for _ in range(3)]
        refused = await call("createTask", task=V2)
        await anyio.sleep(10)
        again = await call("createTask", task=V2)

    assert allowed == [200, 200, 200]
    assert (refused.status, refused.headers["x-ratelimit-remaining"]) == (429, "0")
    assert (refused.json["errorId"], again.status) == (1, 200)
    assert len(service.books.accepted) == 4


async def test_the_limit_is_counted_by_address() -> None:
    """Two addresses have a limit each; two keys at one address share it."""
    service = LocalService(rate_limit=1, epoch=0)
    async with (
        calling(service) as call,
        calling(service, client="10.0.0.9") as elsewhere,
        calling(service, key="k2") as k2,
    ):
        statuses = [(await one("getBalance")).status for one in (call, elsewhere, k2)]

    assert statuses == [200, 200, 429]


@pytest.mark.parametrize("latency", [0.25, lambda endpoint: 0.25 if endpoint == "getBalance" else 9])
async def test_answers_take_their_time(latency: Any) -> None:
    """Latency holds an answer back; the request is carried out when it arrives."""
    service = LocalService(latency=latency)
    async with calling(service) as call:
        begin = anyio.current_time()
        await call("getBalance")
        taken = anyio.current_time() - begin

    assert pytest.approx(0.25) == taken
    assert pytest.approx(begin) == service.books.requests[0].at


async def test_the_same_seed_gives_the_same_service() -> None:
    """Ids, solve times, solutions and fates come from the seed alone."""

    async def run(seed: int) -> list[Any]:
        service = LocalService(seed=seed, failure_rate=0.3)
        async with calling(service) as call:
            ids = [await call.create() for _ in range(20)]
        tasks = [service.books.tasks[task_id] for task_id in ids]
        return [(t.id, round(t.ready_at - t.created_at, 6), t.solution, t.error_code) for t in tasks]

    first, again, other = await run(1), await run(1), await run(2)
    assert first == again
    assert first != other


async def test_speed_shortens_every_solve() -> None:
    """Solve times are divided by the speed."""
    slow, fast = LocalService(), LocalService(speed=10)
    async with calling(slow) as a, calling(fast) as b:
        x, y = slow.books.tasks[await a.create()], fast.books.tasks[await b.create()]

    assert pytest.approx((x.ready_at - x.created_at) / 10) == y.ready_at - y.created_at


async def test_solve_times_may_be_set_by_type() -> None:
    """A mapping gives each type its own distribution; the others keep theirs."""
    times = {"TurnstileTaskProxyless": 3.0, "reCAPTCHA v2": Mixture(((1, LogNormal(4, 0)), (0, LogNormal(90, 0))))}
    service = LocalService(solve_time=times)
    async with calling(service) as call:
        ids = [await call.create(task) for task in (EXAMPLES["Turnstile"], V2, EXAMPLES["hCaptcha"])]
    turnstile, v2, hcaptcha = (service.books.tasks[i].ready_at - service.books.tasks[i].created_at for i in ids)

    assert (pytest.approx(3), pytest.approx(4)) == (turnstile, v2)
    assert hcaptcha > 4


async def test_prices_may_be_set() -> None:
    """A price by type is what is charged and told."""
    async with calling(LocalService(prices={"ImageToTextTask": Decimal("0.0007")})) as call:
        heard = await call("createTask", task=IMAGE)

    assert heard.json["cost"] == 0.0007


async def test_further_types_may_be_added() -> None:
    """A name alone accepts any fields and gives a token; a kind says what it solves to."""
    kind = Kind(
        name="own", types=("OwnTask",), solution=lambda rng, task: {"answer": task["q"]}, page=False, site_key=None
    )
    async with calling(LocalService(extra_types=["AnyTask", kind], solve_time=0)) as call:
        any_task = await call.poll(await call.create({"type": "AnyTask", "x": 1}))
        own_task = await call.poll(await call.create({"type": "OwnTask", "q": 42}))

    assert list(any_task["solution"]) == ["token"]
    assert own_task["solution"] == {"answer": 42}


async def test_the_next_solution_may_be_decided() -> None:
    """`solve_next` and `fail_next` decide what tasks of a type come to, and when; the others go on as usual."""
    service = LocalService(solve_time=50)
    service.solve_next(type=V2["type"], solution={"gRecaptchaResponse": "as ordered"}, after=1)
    service.fail_next("ERROR_BAD_PROXY", after=2)
    async with calling(service) as call:
        failed = await call.create(EXAMPLES["hCaptcha"])
        solved, usual = await call.create(), await call.create()
        await anyio.sleep(2)
        answers = [await call.poll(task_id) for task_id in (failed, solved, usual)]

    assert [answer["status"] for answer in answers] == ["failed", "ready", "processing"]
    assert answers[0]["errorCode"] == "ERROR_BAD_PROXY"
    assert answers[1]["solution"] == {"gRecaptchaResponse": "as ordered"}


def test_a_wrong_option_is_refused() -> None:
    """Options are checked when the service is made."""
    for options in ({"failure_rate": 2}, {"speed": 0}, {"rate_limit": 0}, {"dialect": "klingon"}, {"idle_for": -1}):
        with pytest.raises(ValueError, match=r"."):
            LocalService(**options)  # type: ignore[arg-type]


def test_keys_stay_out_of_the_representation() -> None:
    """`repr` of the service shows no API key."""
    service = LocalService(keys=[KEY], lightning={KEY: 3})

    assert KEY not in repr(service)


async def test_other_protocols_are_refused() -> None:
    """The app speaks HTTP and the lifespan protocol of ASGI, and says so if it is asked for more."""

    async def nothing() -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match="websocket"):
        await LocalService()({"type": "websocket"}, nothing, nothing)


async def test_the_lifespan_is_that_of_the_callbacks() -> None:
    """A server that speaks the lifespan protocol needs no `async with` around the service."""
    heard: list[str] = []

    async def sender(url: str) -> int:
        heard.append(url)
        return 200

    service = LocalService(callback_sender=sender, allow_private_callbacks=True, solve_time=1)
    stop, said = anyio.Event(), []
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        message = next(messages)
        if message == "lifespan.shutdown":
            await stop.wait()
        return {"type": message}

    async def send(message: Any) -> None:
        said.append(message["type"])

    async with anyio.create_task_group() as group:
        group.start_soon(service, {"type": "lifespan"}, receive, send)
        await anyio.sleep(1)
        async with calling(service) as call:
            await call.create(callbackUrl="http://127.0.0.1/cb")
        await anyio.sleep(2)
        stop.set()

    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(heard) == 1


async def test_a_body_in_pieces_is_read_whole() -> None:
    """A request may come in any number of pieces; one that ends early is no request."""
    service = LocalService()

    async def post(*messages: dict[str, Any]) -> list[Any]:
        waiting, sent = list(messages), []

        async def receive() -> Any:
            return waiting.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await service({"type": "http", "method": "POST", "path": "/getBalance", "headers": []}, receive, send)
        return sent

    pieces = [{"type": "http.request", "body": part, "more_body": True} for part in (b'{"client', b'Key":"k"')]
    whole = await post(*pieces, {"type": "http.request", "body": b"}"})
    broken = await post(*pieces, {"type": "http.disconnect"})
    gone = await post({"type": "http.disconnect"})

    assert b'"balance"' in whole[1]["body"]
    assert (broken, gone) == ([], [])
    assert service.books.total_requests == 1
