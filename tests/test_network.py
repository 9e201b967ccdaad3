"""Opening connections on real sockets: TCP, TLS and proxies; what the environment says; and who sees the secrets."""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
import ssl
import struct
import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from anyio.abc import ByteStream

from tests.helpers import KEY
from tests.transport_kit import answered, certificate, exchange, request, response, server, unanswered
from ucaptcha_async.errors import ClientStateError, ConfigurationError
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.secrecy import SecretStr
from ucaptcha_async.transport.exchange import Sender, UnansweredError
from ucaptcha_async.transport.network import open_tcp
from ucaptcha_async.transport.proxies import ServiceProxy
from ucaptcha_async.transport.senders import check_settings, open_sender
from ucaptcha_async.transport.through_httpx import Injected
from ucaptcha_async.transport.wires import Waiting

BODY = b'{"errorId":0,"balance":1.5}'
PASSWORD = "pa:ss/MARK@word"
LOGIN = "user:pa%3Ass%2FMARK%40word"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode())

schemes = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


async def good(stream: ByteStream) -> None:
    """A service."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await request(stream)
            await stream.send(response(BODY))


def sender(port: int, tls: bool = False, **options: Any) -> Any:
    settings = {"transport": "fast", "max_connections": 5, "ssl_context": certificate().client, "proxy": None}
    url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    return open_sender(url, clock=current().time, **(settings | options))  # type: ignore[arg-type]


# --- streams ----------------------------------------------------------------------------------------------------------


@schemes
@pytest.mark.parametrize("transport", ["fast", "httpx", "httpx2"])
async def test_every_way(transport: str, tls: bool) -> None:
    """The same answer, over one connection that is kept."""
    async with server(good, tls=tls) as port:
        way = sender(port, tls, transport=transport)
        replies = [await answered(way, exchange(submit=bool(number % 2))) for number in range(5)]
        statistics = way.statistics()
        await way.aclose()
        with pytest.raises(ClientStateError):
            await answered(way, exchange())

    assert [True, False, False, False, False] == [reply.first for reply in replies]
    assert {BODY} == {bytes(reply.content) for reply in replies}
    assert {"application/json"} == {reply.headers["content-type"] for reply in replies}
    assert (1, 0, 1, 0) == (statistics.opened, statistics.busy, statistics.idle, statistics.waiting)


@schemes
async def test_large_requests(tls: bool) -> None:
    """A request of megabytes arrives whole."""
    large = b'{"image":"' + b"A" * 5_000_000 + b'"}'
    seen: list[bytes] = []

    async def handle(stream: ByteStream) -> None:
        seen.append((await request(stream)).partition(b"\r\n\r\n")[2])
        await stream.send(response(BODY))

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        reply = await answered(way, exchange(body=large))
        await way.aclose()

    assert BODY == bytes(reply.content)
    assert [large] == seen


@schemes
@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("size", [10, 20_000_000])
async def test_an_answer_before_the_body_was_read(tls: bool, closes: bool, size: int) -> None:
    """A service that refuses without reading is heard, whether or not it closes the connection."""

    async def handle(stream: ByteStream) -> None:
        await stream.receive(10)
        await stream.send(response(BODY, status=b"413 Too Large"))
        if not closes:
            await anyio.sleep_forever()

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        reply = await answered(way, exchange(body=b'{"image":"' + b"A" * size + b'"}'))
        await way.aclose()

    assert (413, BODY) == (reply.status, bytes(reply.content))


@schemes
@pytest.mark.parametrize("read", [0, 1])
async def test_closed_after_the_request(tls: bool, read: int) -> None:
    """However little the service read, the request counts as sent."""

    async def handle(stream: ByteStream) -> None:
        if read:
            await stream.receive(read)

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        sent = exchange(submit=True)
        made = way.connect

        async def connect() -> Any:
            wire = await made()
            wire.waiting = lambda: Waiting.NOTHING  # the closing was under way when it was written
            return wire

        way.connect = connect
        await unanswered(way, sent)
        assert (0, 0) == (way.statistics().busy, way.statistics().idle)
        await way.aclose()

    assert sent.sent


@schemes
async def test_each_request_has_its_own_deadline(tls: bool) -> None:
    """On one connection, the time of an earlier request ends no later one, and a shorter one is kept."""
    delays = iter([0.0, 1.2, 60.0])

    async def handle(stream: ByteStream) -> None:
        with suppress(StopIteration):
            while True:
                await request(stream)
                await anyio.sleep(next(delays))
                await stream.send(response(BODY))

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        await answered(way, exchange(timeout=1))
        assert not (await answered(way, exchange(timeout=60))).first
        with anyio.fail_after(20):
            error = await unanswered(way, exchange(timeout=0.1))
        assert (0, 0) == (way.statistics().busy, way.statistics().idle)
        await way.aclose()

    assert "no answer within 0.1 s" == error.reason


async def test_a_reset_is_no_extra_byte() -> None:
    """A connection that was reset while it was idle is closed, like one that was closed."""

    async def handle(stream: Any) -> None:
        await request(stream)
        await stream.send(response(BODY))
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    extra: list[str] = []
    async with server(handle) as port:
        way = sender(port, on_extra_bytes=lambda: extra.append("extra"))
        for _ in range(3):
            assert (await answered(way, exchange())).first
            await anyio.sleep(0.05)
        await way.aclose()

    assert extra == []


async def test_unread_bytes_are_bounded() -> None:
    """A service that floods an idle connection fills no memory."""
    flood = 0

    async def handle(stream: ByteStream) -> None:
        nonlocal flood
        while True:
            await stream.send(bytes(65_536))
            flood += 65_536

    async with server(handle) as port:
        wire = await open_tcp("127.0.0.1", port)
        with anyio.move_on_after(0.5):
            while flood < 100_000_000:
                await anyio.sleep(0.01)
        assert wire.waiting() is Waiting.BYTES
        await wire.aclose()

    assert 0 < flood < 50_000_000


async def test_nothing_listens() -> None:
    """Said in plain words, and nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    way = sender(port)
    sent = exchange(submit=True)

    error = await unanswered(way, sent)
    await way.aclose()

    assert ("connection refused", False, False) == (error.reason, error.permanent, sent.sent)


@pytest.mark.skipif(os.environ.get("TEST_ASYNCIO") == "uvloop", reason="it looks up names itself")
async def test_a_name_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name cannot be resolved: it may be, later."""

    def lookup(*args: object, **options: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    way = open_sender(
        "http://localhost:9",
        transport="fast",
        max_connections=1,
        ssl_context=None,
        proxy=None,
        clock=current().time,
    )
    error = await unanswered(way, exchange())
    await way.aclose()

    assert "the name cannot be resolved: Name or service not known" == error.reason


@pytest.mark.skipif(os.environ.get("TEST_ASYNCIO") == "uvloop", reason="it looks up names itself")
@pytest.mark.parametrize("dead", [1, 3])
async def test_the_next_address_is_tried(dead: int, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str) -> None:
    """A host with addresses that do not answer is reached over the one that does."""
    if anyio_backend_name == "trio":
        pytest.skip("anyio connects there")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    async with server(good) as port:
        loop_lookup = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", closed))] * dead
        loop_lookup.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: loop_lookup)
        wire = await open_tcp("service.example", 80)
        await wire.send(b"{}\r\n\r\n{}")
        assert (await wire.receive()).startswith(b"HTTP/1.1 200")
        await wire.aclose()


@schemes
async def test_cancelled_connects_leave_nothing(tls: bool) -> None:
    """Whenever a connect is cancelled, its socket is closed. (An unclosed one is an error in these tests.)"""
    async with server(good, tls=tls) as port:
        way = sender(port, tls, max_connections=50)

        async def one(patience: float) -> None:
            with anyio.move_on_after(patience):
                await answered(way, exchange())

        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(one, 0.0001 * number)
        now = way.statistics()
        assert (now.busy, now.waiting) == (0, 0)
        await way.aclose()
    gc.collect()


async def test_a_certificate_that_does_not_verify() -> None:
    """Trying again cannot help."""
    async with server(good, tls=True) as port:
        way = sender(port, True, ssl_context=ssl.create_default_context())
        sent = exchange(submit=True)
        error = await unanswered(way, sent)
        await way.aclose()

    assert error.permanent
    assert error.reason.startswith("the certificate does not verify: ")
    assert not sent.sent


async def test_a_connection_that_is_slow_to_come() -> None:
    """A service that accepts and never shakes hands fails the request unsent."""

    async def handle(stream: ByteStream) -> None:
        await anyio.sleep_forever()

    async with server(handle) as port:
        way = sender(port, True, connect_timeout=0.05)
        sent = exchange(submit=True)
        error = await unanswered(way, sent)
        assert 0 == way.statistics().busy
        await way.aclose()

    assert "no connection within 0.05 s" == error.reason
    assert not sent.sent


# --- proxies ----------------------------------------------------------------------------------------------------------


class HttpProxy:
    """A proxy that opens tunnels, and forwards what is not asked for a tunnel.

    Attributes:
        refuses: What it answers instead.
        behind: What it sends right behind its consent.
        asked: The heads that it was sent.
    """

    def __init__(self, refuses: bytes = b"", behind: bytes = b"") -> None:
        self.refuses, self.behind = refuses, behind
        self.asked: list[bytes] = []

    async def __call__(self, stream: ByteStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
        self.asked.append(head)
        if self.refuses:
            await stream.send(self.refuses)
        elif head.startswith(b"CONNECT "):
            host, _, port = head.split(b" ")[1].rpartition(b":")
            await tunnel(stream, host.decode(), int(port), b"HTTP/1.1 200 Connection established\r\n\r\n" + self.behind)
        else:
            await stream.send(response(BODY))


async def tunnel(stream: ByteStream, host: str, port: int, consent: bytes) -> None:
    async with await anyio.connect_tcp(host, port) as other, anyio.create_task_group() as tasks:
        await stream.send(consent)

        async def pass_on(source: Any, target: Any) -> None:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                async for data in source:
                    await target.send(data)
            tasks.cancel_scope.cancel()

        tasks.start_soon(pass_on, stream, other)
        await pass_on(other, stream)


class SocksProxy:
    """A SOCKS5 proxy (RFC 1928, 1929).

    Attributes:
        login: User and password that it wants.
        code: What it answers to the request for a connection.
        asked: The targets that it was asked for.
    """

    def __init__(self, login: tuple[str, str] | None = None, code: int = 0) -> None:
        self.login, self.code = login, code
        self.asked: list[tuple[int, bytes]] = []

    async def __call__(self, stream: ByteStream) -> None:
        async def read(size: int) -> bytes:
            data = b""
            while len(data) < size:
                data += await stream.receive(size - len(data))
            return data

        _, count = await read(2)
        methods = await read(count)
        if self.login is not None:
            await stream.send(b"\x05\x02" if 2 in methods else b"\x05\xff")
            if 2 not in methods:
                return
            _, size = await read(2)
            user = (await read(size)).decode()
            password = (await read((await read(1))[0])).decode()
            await stream.send(b"\x01\x00" if (user, password) == self.login else b"\x01\x01")
            if (user, password) != self.login:
                return
        else:
            await stream.send(b"\x05\x00")
        *_, kind = await read(4)
        host = await read({1: 4, 4: 16}.get(kind) or (await read(1))[0])
        port = int.from_bytes(await read(2), "big")
        self.asked.append((kind, host))
        consent = bytes([5, self.code, 0, 1, 0, 0, 0, 0, 0, 0])
        if self.code:
            await stream.send(consent)
        else:
            await tunnel(stream, "127.0.0.1", port, consent)


@pytest.mark.parametrize("kind", ["http", "https", "socks5", "socks5h"])
@pytest.mark.parametrize("login", [False, True])
async def test_through_a_proxy(kind: str, login: bool) -> None:
    """A tunnel carries as many requests as a plain connection; the login is sent as it is."""
    socks = SocksProxy(("user", PASSWORD) if login else None)
    http = HttpProxy()
    handle = socks if kind.startswith("socks") else http
    async with server(good, tls=True) as port, server(handle, tls=kind == "https") as between:
        proxy = f"{kind}://{LOGIN + '@' if login else ''}127.0.0.1:{between}"
        way = sender(port, True, proxy=proxy)
        replies = [await answered(way, exchange(submit=True)) for _ in range(5)]
        await way.aclose()

    assert [True, False, False, False, False] == [reply.first for reply in replies]
    assert {BODY} == {bytes(reply.content) for reply in replies}
    if kind.startswith("socks"):
        assert [(1, b"\x7f\0\0\x01")] == socks.asked
    else:
        assert 1 == len(http.asked)
        assert login is (b"Proxy-Authorization: Basic " + BASIC in http.asked[0])
        assert http.asked[0].startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % port)


async def test_a_proxy_resolves_the_name() -> None:
    """A SOCKS proxy is given the name, not an address."""
    socks = SocksProxy()
    async with server(good) as port, server(socks) as between:
        settings: Any = {"transport": "fast", "max_connections": 1, "ssl_context": None, "clock": current().time}
        way = open_sender(f"http://service.example:{port}", proxy=f"socks5://127.0.0.1:{between}", **settings)
        await answered(way, exchange())
        await way.aclose()

    assert [(3, b"service.example")] == socks.asked


async def test_plain_requests_are_forwarded() -> None:
    """A plain `http` service is asked through the proxy itself, which is told the whole URL."""
    http = HttpProxy()
    async with server(http) as between:
        settings: Any = {"transport": "fast", "max_connections": 1, "ssl_context": None, "clock": current().time}
        way = open_sender("http://service.example:81/base", proxy=f"http://{LOGIN}@127.0.0.1:{between}", **settings)
        assert BODY == bytes((await answered(way, exchange())).content)
        await way.aclose()

    head = http.asked[0]
    assert head.startswith(b"POST http://service.example:81/base/getBalance HTTP/1.1\r\nHost: service.example:81\r\n")
    assert b"Proxy-Authorization: Basic " + BASIC + b"\r\n" in head


REFUSED_407 = b"HTTP/1.1 407 No pa:ss/MARK@word for you\r\nContent-Length: 0\r\n\r\n"
PROXIES: dict[str, tuple[Any, str, str, bool]] = {
    "login refused": (HttpProxy(REFUSED_407), "http", "the proxy refuses the login (HTTP 407)", True),
    "tunnel refused": (
        HttpProxy(REFUSED_407.replace(b"407", b"403")),
        "http",
        "the proxy refuses the tunnel (HTTP 403)",
        False,
    ),
    "no HTTP": (HttpProxy(b"SSH-2.0 " + BASIC + b"\r\n\r\n"), "http", "the proxy does not speak HTTP", False),
    "speaks first": (HttpProxy(behind=response(BODY)), "http", "the proxy sent more than it was asked for", False),
    "socks login": (SocksProxy(("user", "other")), "socks5", "the proxy refuses the login", True),
    "socks refused": (SocksProxy(code=5), "socks5", "the proxy cannot connect: connection refused", False),
    "socks rules": (SocksProxy(code=2), "socks5", "the proxy cannot connect: not allowed by its rules", False),
    "no socks": (HttpProxy(), "socks5", "no connection within 0.2 s", False),
}


@pytest.mark.parametrize("name", PROXIES)
async def test_proxies_that_refuse(name: str) -> None:
    """Nothing was sent; what cannot work later says so; and no text shows the password, whoever repeats it."""
    handle, kind, reason, permanent = PROXIES[name]
    async with server(good) as service, server(handle) as between:
        way = sender(service, True, proxy=f"{kind}://{LOGIN}@127.0.0.1:{between}", connect_timeout=0.2)
        sent = exchange(submit=True)
        error = await unanswered(way, sent)
        assert 0 == way.statistics().busy
        await way.aclose()

    assert error.reason.startswith(reason)
    assert (permanent, False) == (error.permanent, sent.sent)


async def test_a_forwarding_proxy_that_refuses_the_login() -> None:
    """It has not passed the request on, so a submit is proved unsent."""
    async with server(HttpProxy(REFUSED_407)) as between:
        settings: Any = {"transport": "fast", "max_connections": 1, "ssl_context": None, "clock": current().time}
        way = open_sender("http://service.example", proxy=f"http://{LOGIN}@127.0.0.1:{between}", **settings)
        sent = exchange(submit=True)
        error = await unanswered(way, sent)
        await way.aclose()

    assert (True, False) == (error.permanent, sent.sent)


# --- settings ---------------------------------------------------------------------------------------------------------

URL = "https://api.example.com"


@pytest.mark.parametrize(
    ("value", "scheme", "host", "port"),
    [
        ("127.0.0.1:8888", "http", "127.0.0.1", 8888),
        ("proxy.example", "http", "proxy.example", 80),
        ("http://proxy.example:3128/", "http", "proxy.example", 3128),
        ("HTTPS://proxy.example", "https", "proxy.example", 443),
        ("socks://proxy.example", "socks5", "proxy.example", 1080),
        ("socks5h://proxy.example:9", "socks5", "proxy.example", 9),
        ("user:secret@[::1]:8080", "http", "::1", 8080),
    ],
)
def test_proxies_as_people_write_them(value: str, scheme: str, host: str, port: int) -> None:
    """Without a scheme it is an HTTP proxy; `socks` means SOCKS5."""
    proxy = ServiceProxy.of("proxy", SecretStr(value))

    assert (scheme, host, port) == (proxy.scheme, proxy.host, proxy.port)
    assert "secret" not in repr(proxy)


MALFORMED = [
    "http://user:secret#1@proxy.example:80",
    "http://user:secret?1@proxy.example:80",
    "http://user:secret/1@proxy.example:80",
    "http://user:secret@proxy.example:port",
    "http://user:secret@proxy.example:99999",
    "http://user:secret@proxy.example:0",
    "http://user:secret@:80",
    "http://user:secret@[::1",
    "http://user:secret@pro xy:80",
    "http://user:secret@proxy.example/path",
    "ftp://user:secret@proxy.example",
    "socks4://user:secret@proxy.example",
    "socks5://user:" + "secret" * 50 + "@proxy.example",
    "user:secret",
]


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", None])
def test_malformed_proxies(value: str, variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting or the variable, and nothing shows a part of the secret."""
    if variable is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        check_settings(URL, None if variable else SecretStr(value))

    assert str(caught.value).startswith(f"{variable or 'proxy'} must be a proxy URL")
    nothing_shown(caught.value, "secret")


def test_hosts_that_need_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """`NO_PROXY` is heard, and a service on this machine is never asked through a proxy of the environment."""
    monkeypatch.setenv("HTTPS_PROXY", "ftp://odd")
    check_settings("https://127.0.0.1", None)
    check_settings("https://localhost", None)
    with pytest.raises(ConfigurationError):
        check_settings(URL, None)
    monkeypatch.setenv("NO_PROXY", "example.com")
    check_settings(URL, None)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the variable."""
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=f"^{variable} must name"):
        check_settings(URL, None)


@pytest.mark.parametrize("transport", ["fast", "httpx", "httpx2"])
async def test_certificates_that_are_none(transport: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that holds no certificate is refused when the client is entered."""
    path = tmp_path / "certificates.pem"
    path.write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE"):
        sender(9, transport=transport, ssl_context=None)


# --- who sees the secrets ---------------------------------------------------------------------------------------------


def frames(error: BaseException | None) -> Iterator[types.FrameType]:
    """All frames of an exception, and of all that hangs on it."""
    todo, seen = [error], set()
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        trace = current.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
        todo += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]


def nothing_shown(error: BaseException, *secrets: str) -> None:
    """No local value of a frame outside the tests, and no text of the error, shows a secret."""
    texts = [repr(error), str(error), repr(error.args), repr(vars(error))]
    for frame in frames(error):
        if "/tests/" not in frame.f_code.co_filename.replace("\\", "/"):
            texts += [f"{name} = {value!r}" for name, value in frame.f_locals.items()]
    for text in texts:
        for secret in secrets:
            assert secret not in text, text[:500]


class Misfortune:
    """A service with which something goes wrong."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.reached = anyio.Event()

    async def __call__(self, stream: ByteStream) -> None:
        if self.kind == "unread":
            await stream.receive(1)
            self.reached.set()
            await anyio.sleep_forever()
        asked = await request(stream)
        self.reached.set()
        if self.kind == "malformed":
            await stream.send(b"HTTP/1.1 200 OK\r\n" + asked.replace(b"POST", b"bad header") * 2)
        elif self.kind == "malformed status":
            await stream.send(asked.partition(b"\r\n\r\n")[2] + b"\r\n\r\n")
        elif self.kind == "cut off":
            await stream.send(response(asked)[:-9])
        elif self.kind == "hook":
            await stream.send(response(asked))
        elif self.kind in ("late", "cancelled"):
            await stream.send(response(asked)[:-9])
            await anyio.sleep_forever()


MISFORTUNES = ["closed", "malformed", "malformed status", "cut off", "late", "cancelled", "unread", "refused"]
WAYS = ["fast", "h11", "httpx", "httpx2", "injected httpx", "injected httpx2"]


@asynccontextmanager
async def any_way(name: str, url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sender]:
    """One of the ways that requests go."""
    if name == "h11":
        monkeypatch.setitem(sys.modules, "ucaptcha_async.transport.with_httptools", None)
    if not name.startswith("injected"):
        settings: Any = {"max_connections": 5, "ssl_context": certificate().client, "proxy": proxy}
        transport: Any = "fast" if name == "h11" else name
        way = open_sender(url, transport=transport, clock=current().time, **settings)
        yield way
        await way.aclose()
        return
    library: Any = httpx2 if name.endswith("2") else httpx
    async with library.AsyncClient(verify=certificate().client, proxy=proxy) as client:
        yield Injected(client, url)


@pytest.mark.parametrize("road", ["plain", "tls", "proxy"])
@pytest.mark.parametrize("kind", MISFORTUNES)
@pytest.mark.parametrize("name", WAYS)
async def test_no_frame_shows_the_key(
    name: str, kind: str, road: str, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """Whatever goes wrong, wherever: neither the error nor a local value of a frame shows key or password."""
    if (name, kind, anyio_backend_name) == ("injected httpx", "unread", "trio"):
        pytest.skip("httpx leaves a generator unfinished")
    service = Misfortune(kind)
    body = b'{"clientKey":"%b","image":"%b"}' % (KEY.encode(), b"A" * (30_000_000 if kind == "unread" else 10))
    sent = exchange(body=body, timeout=0.3 if kind in ("late", "unread") else 20)
    caught: list[BaseException] = []

    async def send(way: Sender) -> None:
        try:
            await way.send(sent)
        except BaseException as error:
            caught.append(error)
            nothing_shown(error, KEY, PASSWORD, "MARK", BASIC.decode())
            raise

    async with server(service, tls=road != "plain") as port, server(HttpProxy()) as between:
        if kind == "refused":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
        proxy = f"http://{LOGIN}@127.0.0.1:{between}" if road == "proxy" else None
        url = f"http{'s' if road != 'plain' else ''}://127.0.0.1:{port}"
        async with any_way(name, url, proxy, monkeypatch) as way:
            with suppress(UnansweredError):
                async with anyio.create_task_group() as tasks:
                    if kind == "cancelled":
                        tasks.start_soon(send, way)
                        await service.reached.wait()
                        await anyio.sleep(0.05)
                        tasks.cancel_scope.cancel()
                    else:
                        with suppress(UnansweredError):
                            await send(way)

    assert 1 == len(caught)
    if kind == "cancelled":
        assert isinstance(caught[0], anyio.get_cancelled_exc_class())
    else:
        assert isinstance(caught[0], UnansweredError)
        assert caught[0].__cause__ is None
        assert caught[0].__context__ is None


# --- an injected client -----------------------------------------------------------------------------------------------

libraries = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


@libraries
async def test_a_defect_in_a_hook_is_no_fault(library: Any) -> None:
    """It passes unchanged, with its traceback, and no frame shows the key."""

    async def hook(_: Any) -> None:
        raise NameError("a typo")

    for which in ("request", "response"):
        async with server(good) as port:
            async with library.AsyncClient(event_hooks={which: [hook]}) as client:
                sent = exchange()
                with pytest.raises(NameError, match="a typo") as caught:
                    await answered(Injected(client, f"http://127.0.0.1:{port}"), sent)
        assert "hook" == list(frames(caught.value))[-1].f_code.co_name
        assert sent.sent  # the client says nothing of what it has done with the request so far
        nothing_shown(caught.value, KEY)


@libraries
async def test_proof_of_sending_of_an_injected_client(library: Any) -> None:
    """Its transport says what was sent; one that says nothing may have sent anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]

    def silent(_: Any) -> Any:
        raise library.ReadError("broken")

    transports = {
        False: library.AsyncHTTPTransport(),
        True: library.MockTransport(silent),
    }
    for sent, transport in transports.items():
        async with library.AsyncClient(transport=transport) as client:
            tried = exchange(submit=True)
            await unanswered(Injected(client, f"http://127.0.0.1:{closed}"), tried)
            assert sent is tried.sent


@libraries
@pytest.mark.parametrize("form", ["long", "packed", "endless"])
async def test_an_injected_client_reads_bounded(library: Any, form: str) -> None:
    """Neither a long answer, nor one that never ends, nor one that is long once it is unpacked is read whole."""
    import gzip

    packed = response(gzip.compress(bytes(200_000_000)), b"Content-Encoding: gzip") if form == "packed" else b""

    async def handle(stream: ByteStream) -> None:
        await request(stream)
        if form == "endless":
            await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await stream.send(b"8000\r\n" + bytes(0x8000) + b"\r\n")
        await stream.send(packed or response(b" " * 2_000_000))

    async with server(handle) as port, library.AsyncClient() as client:
        error = await unanswered(Injected(client, f"http://127.0.0.1:{port}"), exchange())

    assert "an answer of more than 1048576 bytes" == error.reason


@libraries
async def test_an_injected_client_unpacks(library: Any) -> None:
    """A gateway may compress, in the ways that can be undone here: of others that the client knows it is not told."""
    import zlib

    asked: list[bytes] = []

    async def handle(stream: ByteStream) -> None:
        asked.append(await request(stream))
        await stream.send(response(zlib.compress(BODY), b"Content-Encoding: deflate", b"Retry-After: 3"))

    offered = {"accept-encoding": "gzip, br, zstd"}
    async with server(handle) as port, library.AsyncClient(headers=offered) as client:
        reply = await answered(Injected(client, f"http://127.0.0.1:{port}"), exchange())

    assert b"accept-encoding: gzip, deflate\r\n" in asked[0].lower()
    assert {"errorId": 0, "balance": 1.5} == json.loads(reply.content)
    assert ("3", None) == (reply.headers["retry-after"], reply.first)


@libraries
async def test_settings_of_an_injected_client_that_cannot_work(library: Any) -> None:
    """A certificate that does not verify and a refused login are permanent."""
    async with server(good, tls=True) as port, server(HttpProxy(REFUSED_407)) as between:
        url = f"https://127.0.0.1:{port}"
        proxy = f"http://{LOGIN}@127.0.0.1:{between}"
        clients = [library.AsyncClient(verify=ssl.create_default_context()), library.AsyncClient(proxy=proxy)]
        for client in clients:
            async with client:
                sent = exchange(submit=True)
                error = await unanswered(Injected(client, url), sent)
            assert error.permanent
            assert not sent.sent
            nothing_shown(error, PASSWORD, "MARK")
