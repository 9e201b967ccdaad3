"""Whatever comes in, from the service or from a caller: a proper result or one of our own errors, in time.

And whatever the service says: when its answer to a submit has a task id, the id is in the solution or in the error.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import math
import pickle
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import attrs
import httpx
import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers import KEY, TURNSTILE, V2, at_rest
from ucaptcha_async import (
    AsyncClient,
    ConfigurationError,
    CoordinatesSolution,
    GeeTestV3Solution,
    GeeTestV4Solution,
    ImageToText,
    InvalidTaskError,
    Polling,
    Proxy,
    ProxyError,
    RateLimiter,
    RotateSolution,
    Solution,
    SolutionError,
    Task,
    TaskResult,
    TencentSolution,
    TextSolution,
    TokenSolution,
    UCaptchaError,
)
from ucaptcha_async.checks import seconds
from ucaptcha_async.transport.network import Origin
from ucaptcha_async.transport.pool import Heads, Pool
from ucaptcha_async.transport.through_httpx import ThroughHttpx
from ucaptcha_async.transport.wires import Waiting

T = TypeVar("T")
E = TypeVar("E", bound=UCaptchaError)

virtual = pytest.mark.virtual_time
TOLERANCE = 1e-6  # s; sums of floating-point times
TIMEOUT = 60.0
GRACE = 5.0


def fuzzed(examples: int = 100) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# --- what may come ----------------------------------------------------------------------------------------------------

ODD_NUMBERS = (
    *("1e400", "1E+999999999", "1E+99999999999999999999", "-1e-400", "-0", "1e-999999999", "NaN", "-Infinity"),
    *("1" * 4000, "1" * 5000, "0." + "3" * 3000),
)
ODD_TEXTS = (
    *("", " ", "\0", "\ud800", "ready", "failed", "processing", "idle", "READY", "0", "1E+999999999", "NaN", "-1"),
    *("ERROR_CAPTCHA_UNSOLVABLE", "CAPCHA_NOT_READY", "ERROR_ZERO_BALANCE", "ERROR_NO_SLOT_AVAILABLE"),
    *("ERROR_KEY_DOES_NOT_EXIST", "INTERNAL_ERROR", "ERROR_WRONG_CAPTCHA_ID", "ERROR_TOO_MUCH_REQUESTS"),
    *("5f1c", "7000000001", "x" * 3000),
)


class Number(str):
    """A number as it is written in JSON, where Python could not write it."""


texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
numbers = st.integers() | st.floats() | st.sampled_from(ODD_NUMBERS).map(Number) | st.integers(0, 3)
scalars = st.none() | st.booleans() | numbers | texts


def nested(scalar: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)

    return st.recursive(scalar, deeper, max_leaves=6)


values = nested(scalars)


def written(value: Any) -> str:
    """JSON, odd numbers included."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


names = st.sampled_from(
    (
        *("gRecaptchaResponse", "token", "text", "challenge", "validate", "seccode", "lot_number", "pass_token"),
        *("gen_time", "captcha_output", "captcha_id", "appid", "ret", "ticket", "randstr", "coordinates", "rotate"),
        *("angle", "userAgent", "respKey", "odd"),
    )
)
places = st.dictionaries(st.sampled_from("xyz"), scalars, max_size=3) | st.lists(scalars, max_size=3)
solutions = st.dictionaries(names, values | st.lists(places, max_size=3), max_size=5)

bodies_of_objects = st.fixed_dictionaries(
    {},
    optional={
        "errorId": st.sampled_from((0, 1, 2, 12, False, True, None, "0", "", [])) | values,
        "errorCode": texts | values,
        "errorDescription": texts | values,
        "taskId": st.sampled_from(("5f1c", 7000000001, 0, "", None, 10**30)) | values,
        "status": st.sampled_from(("ready", "failed", "processing", "idle", "dreaming")) | values,
        "solution": solutions | values,
        "cost": numbers | texts | values,
        "solveTime": numbers | texts | values,
        "balance": numbers | texts | values,
        "message": texts | values,
    },
)
deep = st.sampled_from((100, 300, 450, 900, 5000, 100_000)).map(
    lambda depth: (
        b'{"errorId":0,"taskId":"5f1c","status":"ready","solution":{"token":' + b"[" * depth + b"]" * depth + b"}}"
    )
)
bodies = (
    bodies_of_objects.map(lambda value: written(value).encode("utf-8", "surrogatepass"))
    | values.map(lambda value: written(value).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=60)
    | deep
)

statuses = st.sampled_from(
    (200, 200, 200, 200, 201, 204, 301, 307, 400, 401, 402, 403, 404, 405, 418, 429, 500, 503, 599)
)
header_texts = (
    st.sampled_from(
        (
            *("0", "1", "5", "10000", "-1", "1e308", "1e400", "nan", "inf", "-inf", "0x10", "٣", "1_000", "", " 7 "),
            *("Wed, 25 Nov 2026 01:00:00 GMT", "Wed, 99 Nov 2026 99:99:99 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"),
            *("Mon, 01 Jan 0001 00:00:00 +9999", "9" * 400, "99999999999999999999"),
        )
    )
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
)
headers = st.dictionaries(
    st.sampled_from(
        ("date", "retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "server")
    ),
    header_texts,
    max_size=5,
)


@attrs.frozen
class Said:
    """One answer of a service that may say anything."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def task_id(self) -> str | None:
        """The task id that a reader of the protocol finds in it, whatever else is there."""
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(self.body.decode(), parse_float=lambda text: None)
            found = value.get("taskId") if isinstance(value, dict) else None
            if isinstance(found, str | int) and not isinstance(found, bool) and found not in ("", "0", 0):
                return str(found)
        return None


answers = st.builds(Said, statuses, bodies, headers)
ACCEPTED = Said(200, b'{"errorId":0,"taskId":"5f1c","status":"processing"}', {})


class Oracle:
    """A service that says what it is told to, in order, and then the last over and over again."""

    def __init__(self, *created: Said, polled: tuple[Said, ...] = (ACCEPTED,)) -> None:
        self._lines = {"createTask": list(created), "*": list(polled)}
        self.said: dict[str, list[Said]] = {}

    def handle(self, request: httpx.Request) -> httpx.Response:
        endpoint = request.url.path.strip("/")
        line = self._lines["createTask" if endpoint == "createTask" else "*"]
        said = line.pop(0) if len(line) > 1 else line[0]
        self.said.setdefault(endpoint, []).append(said)
        raw = [(name.encode(), value.encode("utf-8")) for name, value in said.headers.items()]
        return httpx.Response(said.status, headers=raw, content=said.body)

    def ids(self) -> list[str]:
        """The ids that it gave out for submits."""
        return [said.task_id for said in self.said.get("createTask", []) if said.task_id is not None]

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.handle)) as http:
            async with AsyncClient(KEY, http_client=http, timeout=TIMEOUT, cancel_grace=GRACE, **options) as client:
                yield client
                at_rest(client)


@contextlib.contextmanager
def ours_alone() -> Iterator[list[UCaptchaError]]:
    """Nothing but errors of ours come out, and they can be shown, kept and raised again."""
    caught: list[UCaptchaError] = []
    try:
        yield caught
    except UCaptchaError as error:
        caught.append(error)
    for error in caught:
        assert str(error)
        assert repr(error)
        assert error.charged in (True, False, None)
        assert type(pickle.loads(pickle.dumps(error))) is type(error)


def attempt(kind: type[E], call: Callable[[], T]) -> tuple[T, None] | tuple[None, E]:
    """What a call gives, or the error of one kind that it raises."""
    try:
        return call(), None
    except kind as error:
        return None, error


# --- answers of the service -------------------------------------------------------------------------------------------


@virtual
@fuzzed(150)
@given(created=st.lists(answers, min_size=1, max_size=3), polled=st.lists(answers, min_size=1, max_size=4))
@example([Said(200, b'{"errorId":1,"errorCode":"INTERNAL_ERROR","taskId":"5f1c"}', {})], [ACCEPTED])
@example([Said(500, b'{"errorId":0,"taskId":"5f1c","status":"processing"}', {})], [ACCEPTED])
@example([Said(429, b'{"taskId":"5f1c"}', {})], [ACCEPTED])
@example([Said(429, b'{"errorId":1,"errorCode":"ERROR_TOO_MUCH_REQUESTS","taskId":"5f1c"}', {}), ACCEPTED], [ACCEPTED])
async def test_a_solve(created: list[Said], polled: list[Said]) -> None:
    """A solve ends in time, as a solution or an error of ours; an id that was given is in either."""
    oracle = Oracle(*created, polled=tuple(polled))
    began = anyio.current_time()
    solution = None
    async with oracle.client() as client:
        with ours_alone() as caught:
            solution = await client.solve(V2)
            assert solution.token
            assert repr(solution)
        assert client.spent == {} or all(cost >= 0 for cost in client.spent.values())
        assert client.statistics()
        submits = client.statistics().submitted

    assert anyio.current_time() - began <= TIMEOUT + GRACE + TOLERANCE
    known = {solution.task_id} if solution else ids_of(caught[0])
    assert set(oracle.ids()) <= known
    assert submits <= 1


def ids_of(error: UCaptchaError) -> set[str | None]:
    return {error.task_id, *(attempt.task_id for attempt in error.attempts)}


@virtual
@fuzzed(60)
@given(created=st.lists(answers, min_size=1, max_size=6))
async def test_attempts_and_resubmits(created: list[Said]) -> None:
    """With several attempts and resubmission, each id that was given is in the list of attempts."""
    oracle = Oracle(*created, polled=(Said(200, b'{"errorId":0,"status":"failed"}', {}),))
    async with oracle.client(attempts=3, on_uncertain="resubmit") as client:
        async with client.solve_many([V2]) as outcomes:
            with ours_alone():
                async for outcome in outcomes:
                    assert set(oracle.ids()) <= {attempt.task_id for attempt in outcome.attempts}


@virtual
@fuzzed(100)
@given(said=answers)
async def test_one_state(said: Said) -> None:
    """`get_task_result` gives a state that can be read and shown, or raises."""
    async with Oracle(ACCEPTED, polled=(said,)).client() as client:
        with ours_alone():
            result = await client.get_task_result("5f1c")
            assert isinstance(result, TaskResult)
            assert [result.pending, result.ready, result.failed].count(True) == 1
            assert (result.solution is not None) == result.ready
            assert repr(result)


@virtual
@fuzzed(100)
@given(said=answers)
async def test_balance_and_feedback(said: Said) -> None:
    """A balance is a finite `Decimal` that is not negative; a confirmation is text."""
    async with Oracle(ACCEPTED, polled=(said,)).client() as client:
        with ours_alone():
            balance = await client.get_balance()
            assert isinstance(balance, Decimal)
            assert balance.is_finite()
            assert balance >= 0
        with ours_alone():
            assert isinstance(await client.feedback("5f1c", accepted=True, message="good"), str)


@virtual
@fuzzed(60)
@given(said=answers)
@example(said=Said(200, b'{"errorId":0,"status":"failed","taskId":"other"}', {}))
async def test_a_job_taken_up(said: Said) -> None:
    """Waiting for a task by its id never loses the id."""
    async with Oracle(ACCEPTED, polled=(said,)).client() as client:
        with ours_alone() as caught:
            await client.job("5f1c", type(TURNSTILE)).wait(timeout=20)
    assert all(error.task_id == "5f1c" for error in caught)


# --- bytes on the wire ------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BODY = b'{"errorId":0,"taskId":"5f1c","status":"ready","solution":{"gRecaptchaResponse":"03AG"}}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
FRAMED = (
    WHOLE,
    HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    HEAD + b"connection: close\r\n\r\n" + BODY,
    b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
    b"HTTP/1.0 503 Service Unavailable\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """An answer as it goes over the wire: whole, cut, with a byte changed or put in; or noise."""
    data = bytearray(draw(st.sampled_from(FRAMED) | st.binary(max_size=40)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data[at : at + draw(st.integers(0, 1))] = draw(st.binary(max_size=2))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


class Peer:
    """A service that says its piece to each connection, and then closes it or says nothing."""

    def __init__(self, said: bytes, *, closes: bool) -> None:
        self.said, self.closes, self.submits = said, closes, 0

    async def connect(self) -> PeerWire:
        await anyio.lowlevel.checkpoint()
        return PeerWire(self)


class PeerWire:
    def __init__(self, peer: Peer) -> None:
        self.peer, self.left, self.asked = peer, peer.said, False

    async def send(self, data: bytes) -> None:
        self.peer.submits += b"POST /createTask" in data
        self.asked = True

    async def receive(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        data, self.left = self.left[:7], self.left[7:]
        if not data and not self.peer.closes:
            await anyio.sleep_forever()
        return data

    def waiting(self) -> Waiting:
        # It answers once, so that each request gets a connection of its own.
        return Waiting.CLOSED if self.asked else Waiting.NOTHING

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


@virtual
@fuzzed(100)
@given(said=wires(), closes=st.booleans(), library=st.sampled_from(("httpx", "httpx2", "fast")))
@example(WHOLE, False, "httpx")
async def test_bytes_on_the_wire(said: bytes, closes: bool, library: Any) -> None:
    """Whatever bytes come: a solution, or an error of ours; and a submit that was not refused in so many words is never
    called "not charged".
    """
    peer = Peer(said, closes=closes)
    base_url = "http://127.0.0.1"
    pools: list[Pool] = []

    def open_sender(*_: Any, clock: Any, **__: Any) -> Any:
        heads = Heads(Origin.of(base_url))
        pools.append(Pool(peer.connect, heads, max_connections=8, clock=clock))
        modules = {"httpx": httpx, "httpx2": httpx2}
        return pools[0] if library == "fast" else ThroughHttpx(modules[library], base_url, pools[0])

    began = anyio.current_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ucaptcha_async.client.open_sender", open_sender)
        async with AsyncClient(KEY, base_url=base_url, timeout=TIMEOUT) as client:
            with ours_alone() as caught:
                assert (await client.solve(V2)).token
            at_rest(client)

    assert anyio.current_time() - began <= TIMEOUT + GRACE + TOLERANCE
    assert peer.submits == 1 or said.startswith((b"HTTP/1.1 429", b"HTTP/1.0 429"))
    assert pools[0].statistics().busy == 0
    if b'"errorId":0' in said or BODY[:8] not in said:
        assert all(error.charged is not False or refused_by_status(said) for error in caught)


def refused_by_status(said: bytes) -> bool:
    return re.match(rb"HTTP/1\.[01] 429", said) is not None


# --- what the limiter hears -------------------------------------------------------------------------------------------


@virtual
@fuzzed(150)
@given(heard=st.lists(st.tuples(statuses, headers, st.floats(0, 3)), max_size=6))
async def test_headers_of_the_limit(heard: list[tuple[int, dict[str, str], float]]) -> None:
    """No header stops the client for longer than a few windows, or breaks it."""
    limiter = RateLimiter(limit=100, window=10)
    for status, fields, latency in heard:
        await limiter.acquire()
        sent_at = anyio.current_time()
        await anyio.sleep(latency)
        limiter.observe(status, fields, sent_at=sent_at, received_at=anyio.current_time())

    began = anyio.current_time()
    for _ in range(3):
        await limiter.acquire()
        limiter.lost()

    assert anyio.current_time() - began <= 3 * 60
    assert math.isfinite(limiter.statistics().others)
    assert (limiter.statistics().waiting, limiter.statistics().in_transit) == (0, 0)


# --- what callers pass ------------------------------------------------------------------------------------------------

hosts = st.sampled_from(
    ("example.com", "198.51.100.7", "[2001:db8::1]", "2001:db8::1", "exa mple", "", "[::", "host.", "1.2")
)
logins = st.sampled_from(("", "user:password@", "user@", ":@", "a:b:c@", "%40:%3A@", "user:%zz@", "@", "%ff:x@"))
ports = st.sampled_from(("", ":8080", ":0", ":65535", ":65536", ":-1", ":x", ":٣", ": 80"))
urls = (
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(("http://", "https://", "socks5://", "socks4://", "ftp://", "", "//", "HTTP://", "http:")),
        logins,
        hosts,
        ports,
        st.sampled_from(("", "/", "/path", "?query", "#fragment", "\n")),
    )
    | st.text(max_size=30)
    | scalars
)


@fuzzed(400)
@given(url=urls)
def test_proxies(url: Any) -> None:
    """A proxy's URL gives a proxy that says the same again, or a `ProxyError` that does not show it."""
    proxy, error = attempt(ProxyError, lambda: Proxy.parse(url))
    if proxy is None:
        assert not isinstance(url, str) or len(url) < 12 or url not in str(error)
        return
    assert Proxy.parse(proxy.to_url()) == proxy
    assert json.dumps(proxy.to_wire())
    assert proxy.password is None or len(proxy.password) < 3 or proxy.password not in repr(proxy)


@fuzzed(300)
@given(url=urls)
def test_addresses_of_the_service(url: Any) -> None:
    """A base URL is good for a client, or a `ConfigurationError`."""
    for field in ("base_url", "proxy"):
        client, error = attempt(ConfigurationError, partial(AsyncClient, KEY, **{field: url or "x"}))
        assert repr(client)
        assert error is None or field in str(error)


pictures = st.binary(max_size=40) | st.builds(
    lambda head, rest: head + rest,
    st.sampled_from((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF0000WEBP", b"BM")),
    st.binary(max_size=40),
)
images = (
    pictures
    | pictures.map(lambda data: base64.b64encode(data).decode())
    | pictures.map(lambda data: "data:image/png;base64," + base64.b64encode(data).decode())
    | pictures.map(bytearray)
    | st.text(max_size=40)
    | scalars
)


@fuzzed(400)
@given(image=images)
def test_images(image: Any) -> None:
    """An image is sent as base64 that says the same, or refused."""
    task, error = attempt(InvalidTaskError, lambda: ImageToText(image=image))
    if task is None:
        assert error is not None
        assert error.field == "image"
        return
    body = task.to_wire()["body"]
    assert isinstance(body, str)
    assert base64.b64decode(body, validate=True) == task.image.data
    assert body not in repr(task)


KINDS = (
    *(Solution, TokenSolution, TextSolution, GeeTestV3Solution, GeeTestV4Solution, TencentSolution),
    *(CoordinatesSolution, RotateSolution),
)
raw_values = nested(st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | texts)
raw_solutions = st.dictionaries(names, raw_values | st.lists(places, max_size=3), max_size=5) | raw_values


@pytest.mark.parametrize("kind", KINDS)
@fuzzed(150)
@given(raw=raw_solutions)
def test_solutions(kind: type[Solution], raw: Any) -> None:
    """A solution has all that its type promises, each of its type; or a `SolutionError` keeps what came."""
    cost = Decimal("0.003")
    solution, error = attempt(SolutionError, lambda: kind.parse(raw, task_id="5f1c", cost=cost, lifetime=120))
    if solution is None:
        assert error is not None
        assert error.raw is raw or error.raw == raw or raw != raw
        assert (error.task_id, error.charged, error.cost) == ("5f1c", True, cost)
        return
    assert repr(solution)
    assert solution.is_fresh() is True
    for name in properties_of(kind):
        with contextlib.suppress(SolutionError):
            value = getattr(solution, name)
            assert name not in kind.promised or value is not None


def properties_of(kind: type) -> list[str]:
    return [name for name in dir(kind) if isinstance(getattr(kind, name), property)]


durations = scalars | st.timedeltas() | st.sampled_from((math.inf, -math.inf, math.nan, 10**400, Decimal(3), 3j, b"3"))


@fuzzed(300)
@given(value=durations)
def test_durations(value: Any) -> None:
    """A duration is a number of seconds that is not negative, or refused."""
    for field in ("timeout", "request_timeout", "cancel_grace"):
        with contextlib.suppress(ConfigurationError):
            assert AsyncClient(KEY, **{field: value})
    for field in ("interval", "first", "jitter", "poll_price", "max_spacing", "callback_net"):
        with contextlib.suppress(ConfigurationError):
            assert Polling(**{field: value})
    with contextlib.suppress(ConfigurationError):
        assert RateLimiter(window=value)
    number, error = attempt(ConfigurationError, lambda: seconds("timeout", value, allow_inf=True))
    assert "timeout" in str(error) if number is None else type(number) is float and number >= 0


fields = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name not in ("type", "lifetime", "self")),
    nested(scalars | st.binary(max_size=4) | st.sampled_from((Proxy.parse("http://u:p@host:1"), datetime.date.min))),
    max_size=3,
)


@fuzzed(300)
@given(type_name=texts | scalars, fields=fields)
def test_tasks(type_name: Any, fields: dict[str, Any]) -> None:
    """A raw task is sent as JSON, or refused."""
    task, error = attempt(InvalidTaskError, lambda: Task(type_name, **fields))
    if task is None:
        assert str(error)
        return
    assert json.loads(json.dumps(task.to_wire(), allow_nan=False))["type"] == type_name
    assert hash(task) == hash(Task(type_name, **fields))
    assert repr(task)


@fuzzed(100)
@given(key=texts | scalars)
def test_api_keys(key: Any) -> None:
    """A key is text that can be printed, or a `ConfigurationError` that does not show it."""
    client, error = attempt(ConfigurationError, lambda: AsyncClient(key))
    assert not isinstance(key, str) or len(key) < 12 or key not in f"{client!r}{error}"


@virtual
@fuzzed(80)
@given(task_id=texts)
async def test_ids_given_by_hand(task_id: str) -> None:
    """Any text that is not empty may be a task id, and goes out as JSON."""
    async with Oracle(ACCEPTED).client() as client:
        with ours_alone():
            assert (await client.job(task_id).wait(timeout=7)).token
