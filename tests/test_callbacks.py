"""The receiver of callbacks: alone, fuzzed, mounted, and as the client and the local service use it."""

from __future__ import annotations

import hmac
import logging
import pickle
import re
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
import anyio.to_thread
import attrs
import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers import KEY, TURNSTILE, V2, at_rest, opened
from ucaptcha_async import AsyncClient, ConfigurationError, Polling, RecaptchaV2, SolveTimeoutError, UnsolvableError
from ucaptcha_async.callbacks import LONGEST_QUERY, REMEMBERED_FOR, REMEMBERED_IDS, CallbackReceiver
from ucaptcha_async.testing import CallbackPlan, LocalService, LogNormal, start_service

URL = "https://hooks.example.com/captcha"
SECRET = "Zr4u7x-AaDgKbPeShVmYq3t6w9z_CFJN"
ID = "5a1c1c9e-0f0b-4a39-9d8e-3d0b6a9c7e11"

TOLERANCE = 1e-9  # s; sums of floating-point times

virtual = pytest.mark.virtual_time
fuzzed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def new() -> CallbackReceiver:
    return CallbackReceiver(URL, path_secret=SECRET)


async def ask(receiver: CallbackReceiver, query: bytes = b"", **scope: Any) -> tuple[int, dict[bytes, bytes]]:
    """Send one request as a server would; the body must stay unread and the answer empty."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    known = {"type": "http", "method": "GET", "path": f"/captcha/{SECRET}", "root_path": "", "query_string": query}
    await receiver({**known, **scope}, receive, send)

    start, body = sent
    assert (body["body"], body.get("more_body", False)) == (b"", False)
    return start["status"], dict(start["headers"])


async def call_back(receiver: CallbackReceiver, task_id: str = ID) -> None:
    status, _ = await ask(receiver, b"captcha_id=" + task_id.encode() + b"&status=1&code=solution")

    assert status == 200


async def heard(receiver: CallbackReceiver, task_id: str = ID, within: float = 0.0) -> bool:
    return await receiver.wait_until(task_id, anyio.current_time() + within)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_url() -> None:
    """The URL is the public one and a secret of its own for each receiver, of 256 bits."""
    one, other = CallbackReceiver(URL), CallbackReceiver(URL + "/")

    assert one.url != other.url
    assert all(re.fullmatch(re.escape(URL) + "/[A-Za-z0-9_-]{43}", receiver.url) for receiver in (one, other))
    assert f"{URL}/{SECRET}" == new().url


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com",
        "https://hooks.example.com:8443/a/b/",
        "http://127.0.0.1:8000",
        "https://[2001:db8::1]/x",
    ],
)
def test_public_urls(url: str) -> None:
    """A public URL may have a port and a path, and be an address; whether it is public is for the service to say."""
    assert CallbackReceiver(url, path_secret=SECRET).url == f"{url.rstrip('/')}/{SECRET}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "ftp://hooks.example.com",
        "https://",
        "https:///captcha",
        "https://user:password@hooks.example.com",
        "https://@hooks.example.com",
        "https://hooks.example.com/?a=1",
        "https://hooks.example.com/?",
        "https://hooks.example.com/#",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\x00",
        "https://bücher.example",
        "https://hooks.example.com:99999",
        None,
        b"https://hooks.example.com",
    ],
)
def test_wrong_public_urls(url: Any) -> None:
    """What the service could not call, or what the secret could not be added to, is refused without being shown."""
    with pytest.raises(ConfigurationError, match="public_url must be") as caught:
        CallbackReceiver(url)

    assert caught.value.field == "public_url"  # type: ignore[attr-defined]
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("secret", ["", "short", "a" * 21, "a" * 201, "ü" * 30, "a/" * 20, "a" * 30 + "\n", b"a" * 30])
def test_wrong_secrets(secret: Any) -> None:
    """A secret must be long, and the same text in a path as outside of one."""
    with pytest.raises(ConfigurationError, match="path_secret must be"):
        CallbackReceiver(URL, path_secret=secret)


def test_misspelt_argument() -> None:
    """A wrong argument name is refused, in Python's own words."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'pathsecret'"):
        CallbackReceiver(URL, pathsecret=SECRET)  # type: ignore[call-arg]


def test_secrecy() -> None:
    """The secret is in no `repr`, neither of the receiver nor of its URL, and in no pickle."""
    receiver = new()

    assert SECRET not in repr(receiver) + repr([receiver.url]) + repr(attrs.asdict(receiver))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(receiver)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(receiver.url)
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        receiver.public_url = "https://other.example"


# --- waiting ----------------------------------------------------------------------------------------------------------


@virtual
async def test_wake() -> None:
    """A callback wakes whoever waits for its task, at that moment, and nobody else."""
    receiver = new()
    woken: dict[str, tuple[bool, float]] = {}

    async def wait(name: str, task_id: str) -> None:
        woken[name] = (await heard(receiver, task_id, 30), round(anyio.current_time() - start, 3))

    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for name, task_id in [("a", ID), ("b", ID), ("c", "another")]:
            tasks.start_soon(wait, name, task_id)
        await anyio.sleep(7)
        await call_back(receiver)

    assert woken == {"a": (True, 7), "b": (True, 7), "c": (False, 30)}
    assert attrs.asdict(receiver.statistics()) == {
        "received": 1,
        "woken": 1,
        "repeated": 0,
        "unknown": 0,
        "early": 0,
        "refused": 0,
        "expected": 0,
        "remembered": 1,
    }


@virtual
async def test_heard_while_nobody_waited() -> None:
    """What was heard of an expected task is told at once, again and again, until it is forgotten and its time is up."""
    receiver = new()
    receiver.expect(ID)
    await call_back(receiver)
    await anyio.sleep(10 * REMEMBERED_FOR)

    assert await heard(receiver)
    await anyio.sleep(10 * REMEMBERED_FOR)
    assert await heard(receiver)
    receiver.forget(ID)
    assert await heard(receiver, within=5)
    await anyio.sleep(REMEMBERED_FOR + 1)
    assert not await heard(receiver, within=5)


@virtual
@pytest.mark.parametrize(("later", "found"), [(0, True), (REMEMBERED_FOR - 1, True), (REMEMBERED_FOR + 1, False)])
async def test_heard_before_it_was_expected(later: float, found: bool) -> None:
    """A callback that comes before its task is known is remembered for a minute."""
    receiver = new()
    await call_back(receiver)
    await anyio.sleep(later)
    receiver.expect(ID)

    assert await heard(receiver, within=1) is found
    assert (receiver.statistics().unknown, receiver.statistics().early) == (1, int(found))


@virtual
async def test_deadline() -> None:
    """Waiting ends at the deadline; one in the past does not wait, but still tells what was heard."""
    receiver, start = new(), anyio.current_time()

    assert not await receiver.wait_until(ID, start + 3)
    assert anyio.current_time() == pytest.approx(start + 3)
    assert not await receiver.wait_until(ID, start - 1)
    await call_back(receiver)
    assert await receiver.wait_until(ID, start - 1)


@virtual
async def test_cancelled_waiter() -> None:
    """A waiter that is cancelled leaves nothing behind, and takes nothing from the others."""
    receiver = new()
    with anyio.move_on_after(1):
        await heard(receiver, within=30)
    assert receiver.statistics().expected == 0

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heard, receiver, ID, 30)
        with anyio.move_on_after(1):
            await heard(receiver, within=30)
        assert receiver.statistics().expected == 1
        tasks.cancel_scope.cancel()
    assert receiver.statistics().expected == 0


@virtual
async def test_forget_does_not_harm_others() -> None:
    """Two jobs of one task: the end of one neither wakes nor deafens the other, whatever that is doing just then."""
    receiver, results = new(), []

    async def wait() -> None:
        receiver.expect(ID)
        results.append(await heard(receiver, within=30))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(1)
        receiver.expect(ID)
        receiver.forget(ID)
        receiver.forget(ID)
        await anyio.sleep(1)
        assert results == []
        await call_back(receiver)
    receiver.expect(ID)
    receiver.forget(ID)
    results.append(await heard(receiver))

    assert results == [True, True]


def test_forget_nothing() -> None:
    """What was never expected can be forgotten."""
    receiver = new()
    receiver.forget(ID)

    assert receiver.statistics().expected == 0


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope",
    [
        {"path": f"/captcha/{SECRET}", "root_path": ""},  # served alone, behind a proxy that keeps the prefix
        {"path": f"/{SECRET}", "root_path": ""},  # behind a proxy that strips it
        {"path": f"/{SECRET}", "root_path": "/captcha"},  # mounted by a framework that cuts the path
        {"path": f"/api/captcha/{SECRET}", "root_path": "/api/captcha"},  # mounted by one that does not
    ],
)
async def test_prefixes(scope: dict[str, Any]) -> None:
    """Only the last segment of the path counts, so that any prefix works."""
    receiver = new()

    assert (await ask(receiver, b"captcha_id=1&status=1&code=x", **scope))[0] == 200
    assert (await ask(receiver, b"captcha_id=1&status=1&code=x", **{**scope, "path": scope["path"] + "/"}))[0] == 404
    assert receiver.statistics().received == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "get"])
@pytest.mark.parametrize(
    "path", ["/captcha/", "/", "", f"/captcha/{SECRET[:-1]}", f"/{SECRET}x", f"/{SECRET.upper()}", "/é\ud800", None]
)
async def test_wrong_paths_learn_nothing(path: Any, method: str) -> None:
    """Every wrong path gets the same answer, whatever else is right or wrong."""
    receiver = new()
    for query in (b"", b"captcha_id=1&status=1&code=x", b"x" * (LONGEST_QUERY + 1)):
        assert await ask(receiver, query, path=path, method=method) == (404, {b"content-length": b"0"})

    assert (receiver.statistics().received, receiver.statistics().refused) == (0, 3)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS", "get", None])
async def test_wrong_methods(method: Any) -> None:
    """On the right path anything but GET is told so."""
    receiver = new()

    assert await ask(receiver, b"captcha_id=1", method=method) == (405, {b"content-length": b"0", b"allow": b"GET"})
    assert receiver.statistics().refused == 1


async def test_long_queries() -> None:
    """A query of 64 KiB is heard, however long its solution; a longer one is refused."""
    receiver = new()
    query = b"captcha_id=1&status=1&code="
    fits = query + b"x" * (LONGEST_QUERY - len(query))

    assert (await ask(receiver, fits))[0] == 200
    assert (await ask(receiver, fits + b"x"))[0] == 414
    assert (receiver.statistics().received, receiver.statistics().refused) == (1, 1)


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"status=1&code=x",
        b"captcha_id",
        b"captcha_id=",
        b"captcha_id=&captcha_id=1",
        b"captcha_id=a%20b",
        b"captcha_id=a%00",
        b"captcha_id=%ff",
        b"captcha_id=" + b"a" * 129,
        b"captcha_id=" + b"%41" * 129,
        b"captcha_id=" + b"%41" * 10_000,
        b"captcha_id[]=1",
        b"xcaptcha_id=1",
        b"CAPTCHA_ID=1",
        b"id=1&code=x",
        b"a=1&" * 16 + b"captcha_id=1",
    ],
)
async def test_unusable_ids(query: bytes) -> None:
    """A request without one usable id among its first fields is refused like a wrong path."""
    receiver = new()

    assert (await ask(receiver, query))[0] == 404
    assert (receiver.statistics().refused, receiver.statistics().remembered) == (1, 0)


@pytest.mark.parametrize("task_id", [ID, "1234567", "a:b/c=d+e", "x" * 128])
async def test_ids(task_id: str) -> None:
    """Ids come as any client writes them into a query, in any place."""
    receiver = new()
    receiver.expect(task_id)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=receiver)) as http:
        answer = await http.get(receiver.url, params={"code": "a&b=c", "status": "0", "captcha_id": task_id})

    assert (answer.status_code, answer.content) == (200, b"")
    assert await heard(receiver, task_id)


async def test_no_query_string() -> None:
    """A server may leave out an empty query."""
    assert (await ask(new(), query_string=None))[0] == 404


async def test_repeated() -> None:
    """Repetitions are answered alike and change nothing, before and while and after the task is expected."""
    receiver = new()
    for _ in range(3):
        await call_back(receiver)
    receiver.expect(ID)
    for _ in range(3):
        await call_back(receiver)
    receiver.forget(ID)
    for _ in range(3):
        await call_back(receiver)
    receiver.expect("another")
    await call_back(receiver, "another")
    await call_back(receiver, "another")

    now = receiver.statistics()
    assert (now.received, now.woken, now.repeated, now.unknown, now.early) == (11, 1, 9, 1, 1)


@pytest.mark.parametrize("path", [f"/{SECRET}", "/" + "x" * 32, "/x"])
async def test_constant_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong paths alike are compared as bytes, whole, once, by the function that takes constant time."""
    compared: list[tuple[Any, Any]] = []

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return bool(a == b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    await ask(new(), b"captcha_id=1", path=path)

    assert compared == [(path[1:].encode(), SECRET.encode())]
    assert all(type(side) is bytes for pair in compared for side in pair)


async def test_nothing_is_logged_or_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the solution nor the secret is in a log line or in the receiver."""
    caplog.set_level(logging.DEBUG)
    receiver = new()
    receiver.expect(ID)
    for task_id in (ID, "unknown"):
        await ask(receiver, b"captcha_id=%s&status=1&code=03AGdBq24" % task_id.encode())
    await ask(receiver, b"captcha_id=1&code=03AGdBq24", path="/wrong")

    assert not any(word in caplog.text for word in ("03AGdBq24", SECRET, ID))
    assert "03AGdBq24" not in str(attrs.asdict(receiver))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_flood() -> None:
    """A hundred thousand forged ids take bounded memory, and hide nothing of what is expected."""
    receiver = new()
    await call_back(receiver, "heard-in-vain")
    receiver.expect("heard-before")
    await call_back(receiver, "heard-before")
    receiver.expect("heard-after")
    scope = {"type": "http", "method": "GET", "path": f"/{SECRET}"}

    async def send(message: Any) -> None:
        pass

    sizes = []
    tracemalloc.start()
    for number in range(100_000):
        query = b"captcha_id=%0128d&status=1&code=x" % number
        await receiver({**scope, "query_string": query}, send, send)  # type: ignore[arg-type]
        if number in (2 * REMEMBERED_IDS, 99_999):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    await call_back(receiver, "heard-after")

    assert receiver.statistics().remembered == REMEMBERED_IDS
    assert sizes[1] <= sizes[0] + 100_000
    assert sizes[1] < 6_000_000
    assert [await heard(receiver, name) for name in ("heard-before", "heard-after", "heard-in-vain")] == [
        True,
        True,
        False,
    ]


pieces = st.sampled_from(
    [
        b"captcha_id",
        b"=",
        b"&",
        b"status=1",
        b"code=",
        ID.encode(),
        ID[:-1].encode(),
        b"%",
        b"%35",
        b"+",
        b"#",
        b"?",
        b";",
        b"captcha_id=" + ID.encode(),
        b"&captcha_id=",
        b"\x00",
        b"\xff",
        b"CAPTCHA_ID=" + ID.encode(),
        b"x" * LONGEST_QUERY,
    ]
)
queries = st.one_of(st.binary(max_size=200), st.lists(pieces, max_size=12).map(b"".join))
paths = st.one_of(
    st.text(st.characters(), max_size=80),
    st.sampled_from(
        [f"/{SECRET}", f"/a/b/{SECRET}", SECRET, f"//{SECRET}", f"/{SECRET}/", f"/{SECRET}?", f"/x{SECRET}"]
    ),
)
methods = st.one_of(st.just("GET"), st.sampled_from(["POST", "HEAD", "get", "", "G\ud800T"]), st.text(max_size=8))


@fuzzed
@given(path=paths, method=methods, query=queries, root_path=paths)
@example(path=f"/{SECRET}", method="GET", query=b"captcha_id=" + ID.encode(), root_path="")
@example(path=f"/{SECRET}", method="GET", query=b"captcha_id=%35" + ID[1:].encode(), root_path=f"/{SECRET}")
async def test_no_request_breaks_it(path: str, method: str, query: bytes, root_path: str) -> None:
    """Whatever is asked, there is an answer, and only a callback on the right path for the right task wakes it."""
    receiver = new()
    receiver.expect(ID)
    status, _ = await ask(receiver, query, path=path, method=method, root_path=root_path)

    values = [value for name, _, value in (f.partition(b"=") for f in query.split(b"&")) if name == b"captcha_id"]
    named = [unquote_to_bytes(value) for value in values] + [b""]
    right = path.split("/")[-1] == SECRET and method == "GET" and len(query) <= LONGEST_QUERY
    assert await heard(receiver) == (right and named[0] == ID.encode())
    assert status in (200, 404, 405, 414)
    assert (receiver.statistics().received == 1) == (status == 200)


@fuzzed
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["call", "expect", "forget", "wait"])), max_size=30))
async def test_any_order(steps: list[tuple[str, str]]) -> None:
    """In any order of calls: once a task was called back it counts as heard, never before, and nothing stays behind."""
    receiver, called = new(), set()
    for task_id, step in steps:
        if step == "call":
            await call_back(receiver, task_id)
            called.add(task_id)
        elif step == "wait":
            assert await heard(receiver, task_id) == (task_id in called)
        else:
            getattr(receiver, step)(task_id)
    for task_id in "abc":
        receiver.forget(task_id)

    now = receiver.statistics()
    assert (now.expected, now.remembered) == (0, len(called))
    assert now.received == now.woken + now.repeated + now.unknown == [step for _, step in steps].count("call")


# --- as an ASGI app ---------------------------------------------------------------------------------------------------


async def test_lifespan() -> None:
    """A server that starts and stops it gets the answers that it waits for."""
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.else"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await new()({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert inbox == []


async def test_other_protocols() -> None:
    """A WebSocket is closed before it opens; what the specification does not know is refused aloud, as it asks."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await new()({"type": "websocket", "path": f"/{SECRET}"}, send, send)  # type: ignore[arg-type]
    assert sent == ["websocket.close"]
    with pytest.raises(ValueError, match="http and lifespan only"):
        await new()({"type": "smtp"}, send, send)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["/captcha", "/api/captcha", ""])
async def test_mounted(prefix: str) -> None:
    """It can be mounted in a Starlette app under any prefix, nested or none."""
    starlette = pytest.importorskip("starlette.applications")
    routing = pytest.importorskip("starlette.routing")
    receiver = CallbackReceiver("https://hooks.example.com" + prefix)
    route = routing.Mount(prefix.removeprefix("/api"), app=receiver)
    app = starlette.Starlette(routes=[routing.Mount("/api", routes=[route]) if prefix.startswith("/api") else route])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app, root_path="")) as http:
        right = await http.get(receiver.url, params={"captcha_id": ID, "status": 1, "code": "x"})
        wrong = await http.get(receiver.url + "x", params={"captcha_id": "other", "status": 1, "code": "x"})
        posted = await http.post(receiver.url, json={"captcha_id": "other"})

    assert (right.status_code, wrong.status_code, posted.status_code) == (200, 404, 405)
    assert [await heard(receiver, ID), await heard(receiver, "other")] == [True, False]


# --- with the client --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def pushed(receiver: CallbackReceiver, client_options: Any = None, **options: Any) -> AsyncIterator[Any]:
    """A service whose callbacks reach the receiver in-process, and a client that listens to it."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=receiver)) as web:

        async def send(url: str) -> int:
            return (await web.get(url)).status_code

        service = LocalService(callback_sender=send, allow_private_callbacks=True, **options)
        async with service, opened(service, callbacks=receiver, **(client_options or {})) as client:
            yield service, client
            at_rest(client)
    assert receiver.statistics().expected == 0


def delays(service: LocalService) -> list[float]:
    """How long after it was ready each solution was fetched, in seconds."""
    tasks = service.books.tasks.values()
    return [task.first_delivered_at - task.ready_at for task in tasks if task.first_delivered_at is not None]


@virtual
async def test_thousand_pushed_solves() -> None:
    """With callbacks, 1,000 solves take at most 2.1 requests each, and find the solution as soon as it is there."""
    receiver = new()
    async with pushed(receiver, solve_time=LogNormal(12, 0.5)) as (service, client):
        outcomes = await client.gather([V2] * 1_000)

    assert all(outcome.ok for outcome in outcomes)
    assert service.books.total_requests <= 2.1 * 1_000
    assert (receiver.statistics().received, receiver.statistics().woken) == (1_000, 1_000)
    assert sum(delay > 0.1 for delay in delays(service)) < 0.05 * 1_000
    assert max(delays(service)) <= 5  # those whose net was due just before


@virtual
async def test_slow_solves_need_no_more() -> None:
    """Once the client knows that a type is slow, the net is spread later, so that solves of 40 s cost no more."""
    receiver = new()
    async with pushed(receiver, solve_time=LogNormal(40, 0.2)) as (service, client):
        await client.gather([V2] * 100)
        before = service.books.total_requests
        await client.gather([V2] * 500)

    assert service.books.total_requests - before <= 2.1 * 500


@virtual
@pytest.mark.parametrize(("loss", "count"), [(0.5, 1_000), (1.0, 100)])
async def test_lost_callbacks(loss: float, count: int) -> None:
    """Whatever share of the callbacks is lost, all tasks are solved, by the slow polls beside them."""
    receiver = new()
    plan = CallbackPlan(loss=loss, seed=7)
    async with pushed(receiver, solve_time=LogNormal(12, 0.5), callback_plan=plan) as (service, client):
        outcomes = await client.gather([V2] * count)

    lost = sum(record.outcome == "lost" for record in service.books.callbacks)
    assert lost == pytest.approx(loss * count, abs=60)
    assert all(outcome.ok for outcome in outcomes)
    assert (service.books.smallest_poll_gap() or 5) >= 5 - TOLERANCE
    assert service.books.total_requests <= 2.2 * count


@virtual
@pytest.mark.parametrize("delay", [4, 25])
async def test_repeated_and_late_callbacks(delay: float) -> None:
    """Repetitions cost no request, and neither do callbacks that come when their tasks are done."""
    receiver = new()
    plan = CallbackPlan(repeat=3, delay=delay)
    async with pushed(receiver, solve_time=LogNormal(12, 0.3), callback_plan=plan) as (service, client):
        outcomes = await client.gather([V2] * 300)
        await anyio.sleep(delay + 1)

    assert all(outcome.ok for outcome in outcomes)
    assert service.books.total_requests <= 2.1 * 300
    assert receiver.statistics().woken + receiver.statistics().unknown == 300
    assert (receiver.statistics().unknown > 200) == (delay == 25)
    assert receiver.statistics().repeated == 600


@virtual
async def test_callbacks_before_the_answer_of_the_submit() -> None:
    """A callback that overtakes the answer of createTask is not lost: the solve polls as soon as it knows its id."""
    receiver = new()
    late = {"createTask": 3.0}
    async with pushed(receiver, solve_time=1, latency=lambda name: late.get(name, 0.0)) as (service, client):
        outcomes = await client.gather([V2] * 300)

    assert all(outcome.ok for outcome in outcomes)
    assert service.books.total_requests == 600
    assert (receiver.statistics().early, receiver.statistics().woken) == (300, 0)
    assert max(delays(service)) < 2.5


@virtual
async def test_failed_tasks_are_pushed_too() -> None:
    """The callback of a failed task wakes its solve, which learns the cause by asking."""
    receiver = new()
    async with pushed(receiver) as (service, client):
        service.fail_next(after=4)
        with pytest.raises(UnsolvableError):
            await client.solve(V2)

    assert service.books.total_requests == 2
    assert delays(service) == [pytest.approx(0, abs=0.1)]


@virtual
async def test_a_forged_hint_costs_a_poll_and_no_more() -> None:
    """Whoever knew the path could make a solve ask once too early; it goes on by polling, never too fast."""
    receiver = new()
    async with pushed(receiver, solve_time=22) as (service, client):
        job = await client.submit(V2)
        for wait in (1, 1, 1):
            await anyio.sleep(wait)
            await call_back(receiver, job.task_id)
        solution = await job.wait()

    assert solution.token
    assert service.books.smallest_poll_gap() >= 5 - TOLERANCE
    assert solution.polls <= 5


@virtual
async def test_two_jobs_of_one_task() -> None:
    """Two clients that share a receiver may wait for the same task: one callback wakes both.

    The one that took it up asks at once, as it does not know how old the task is.
    """
    receiver = new()
    async with pushed(receiver, solve_time=9) as (service, client), opened(service, callbacks=receiver) as other:
        job = await client.submit(V2)
        twin = other.job(job.task_id, RecaptchaV2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(job.wait)
            tasks.start_soon(twin.wait)

    assert (await job.wait()).token == (await twin.wait()).token
    assert service.books.total_requests == 1 + 1 + 2
    assert receiver.statistics().woken == 1


@virtual
async def test_wait_again() -> None:
    """A job whose time ran out was asked for just before, and hears of its callback when it is waited for again."""
    receiver = new()
    async with pushed(receiver, solve_time=10) as (service, client):
        job = await client.submit(V2)
        with pytest.raises(SolveTimeoutError):
            await job.wait(timeout=5)
        await anyio.sleep(10)
        solution = await job.wait()

    assert solution.polls == 2
    assert delays(service) == [pytest.approx(5, abs=0.1)]


@virtual
async def test_immediate_answers() -> None:
    """A task that is solved by the submit itself takes no further request."""
    receiver = new()
    async with pushed(receiver, lightning={KEY: 3}) as (service, client):
        solution = await client.solve(TURNSTILE)

    assert (solution.polls, service.books.total_requests) == (0, 1)


# --- over real sockets ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: Any, listener: socket.socket) -> AsyncIterator[None]:
    """Serve an app in this event loop."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", ws="none", lifespan="on"))
    server.capture_signals = nullcontext  # the signals belong to the test run
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        yield
        server.should_exit = True


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_real_sockets() -> None:
    """A hundred solves between a service in a process of its own, a receiver behind uvicorn, and a client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = CallbackReceiver(f"http://127.0.0.1:{listener.getsockname()[1]}/hooks")
        service = await anyio.to_thread.run_sync(
            lambda: start_service(allow_private_callbacks=True, solve_time="0.3~0.5", idle_for=0.1)
        )
        try:
            async with (
                served(receiver, listener),
                AsyncClient(KEY, base_url=service.url, callbacks=receiver, polling=Polling(callback_net=20)) as client,
            ):
                outcomes = await client.gather([V2] * 100, timeout=50)
                books: Any = await anyio.to_thread.run_sync(lambda: service.books(full=True))
        finally:
            await anyio.to_thread.run_sync(service.terminate)

    assert all(outcome.ok for outcome in outcomes)
    assert (books["accepted"], books["delivered"]) == (100, 100)
    assert books["requests"] <= 2.1 * 100
    assert [record["outcome"] for record in books["callback_list"]] == ["delivered"] * 100
    assert receiver.statistics().received == 100
