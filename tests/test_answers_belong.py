"""Whose answer is it? A service that at random sends answers twice, over real sockets: each request gets its own."""

from __future__ import annotations

import random
import socket
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from tests.helpers import KEY, TURNSTILE, httpx
from tests.transport_kit import answered, certificate, exchange, request, response, server, unanswered
from ucaptcha_async import (
    AsyncClient,
    ClientStateError,
    Job,
    MemoryJournal,
    Polling,
    Solution,
    SolveTimeoutError,
    SubmitUncertainError,
)
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.transport import pool as pool_module
from ucaptcha_async.transport.exchange import Sender
from ucaptcha_async.transport.senders import open_sender
from ucaptcha_async.transport.wires import Waiting

ways = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


def sender(port: int, tls: bool, **options: object) -> Sender:
    settings = {"transport": "fast", "max_connections": 20, "ssl_context": certificate().client, "proxy": None}
    url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    return open_sender(url, clock=current().time, **(settings | options))  # type: ignore[arg-type]


class Repeating:
    """Answers each request with the number in it, now and then twice: at once, a little later, or much later."""

    def __init__(self, rng: random.Random, share: float) -> None:
        self.rng, self.share = rng, share
        self.twice: Counter[str] = Counter()

    async def __call__(self, stream: ByteStream) -> None:
        writing = anyio.Lock()
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    number = (await request(stream)).rpartition(b"\r\n\r\n")[2]
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                answer = response(number)
                kind = self.rng.choice(["packet", "soon", "late"]) if self.rng.random() < self.share else ""
                self.twice["packet"] += kind == "packet"
                async with writing:
                    await stream.send(answer * 2 if kind == "packet" else answer)
                if kind in ("soon", "late"):
                    tasks.start_soon(self._again, stream, answer, kind, writing)

    async def _again(self, stream: ByteStream, answer: bytes, kind: str, writing: anyio.Lock) -> None:
        await anyio.sleep(self.rng.uniform(0, 0.002 if kind == "soon" else 0.05))
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            async with writing:
                await stream.send(answer)
            self.twice[kind] += 1


@ways
async def test_each_request_gets_its_own_answer(tls: bool) -> None:
    """Of 10,000 requests (2,000 over TLS, for its handshakes) to a service that sends one answer in fifty twice,
    a handful at most gets another's.

    Nobody can tell a second answer that comes between our write and the true answer. Each connection that was kept when
    the first extra byte was noticed may have carried one such request; after that, none.
    """
    service, wrong, each = Repeating(random.Random(1), 0.02), 0, 100 if tls else 500
    async with server(service, tls=tls) as port:
        way = sender(port, tls)

        async def ask(first: int) -> None:
            nonlocal wrong
            for number in range(first, first + each):
                reply = await answered(way, exchange(body=b'{"number":%d}' % number))
                wrong += bytes(reply.content) != b'{"number":%d}' % number

        async with anyio.create_task_group() as tasks:
            for first in range(0, 20 * each, each):
                tasks.start_soon(ask, first)
        await way.aclose()

    assert wrong <= 20
    assert service.twice["packet"] > 5


@ways
async def test_without_distrust(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second answers that are there before the next request are never taken, even if connections are trusted again at
    once."""
    monkeypatch.setattr(pool_module, "DISTRUST", 0.0)
    twice, rng, all_sent = 0, random.Random(1), anyio.Event()

    async def handle(stream: ByteStream) -> None:
        nonlocal twice
        while True:
            answer = response((await request(stream)).rpartition(b"\r\n\r\n")[2])
            await stream.send(answer)
            if rng.random() < 0.2:
                twice += 1
                await stream.send(answer)
            all_sent.set()

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        for number in range(1_000):
            body = b'{"number":%d}' % number
            assert body == bytes((await answered(way, exchange(body=body))).content)
            await all_sent.wait()
            all_sent = anyio.Event()
        await way.aclose()

    assert twice > 100


def until_sent(port: int) -> None:
    """Hold up the event loop until the service's thread has sent what it sends late."""
    with socket.create_connection(("127.0.0.1", port)) as gate:
        gate.recv(1)


@ways
async def test_a_blocked_event_loop_does_not_hide_it(tls: bool) -> None:
    """Bytes that the system holds, because the loop was held up by other code, are seen before the next write."""
    import threading

    listener, gate = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def serve() -> None:
        for number in range(2):
            stream: socket.socket = listener.accept()[0]
            if tls:
                stream = certificate().server.wrap_socket(stream, server_side=True)
            with stream:
                seen.append(stream.recv(65_536))
                stream.sendall(response(b'{"number":%d}' % number))
                if number == 0:
                    held = gate.accept()[0]  # the event loop is blocked from here
                    stream.sendall(response(b'{"number":"extra"}'))
                    held.sendall(b"x")
                    held.close()
                    stream.recv(65_536)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener, gate:
        way = sender(listener.getsockname()[1], tls)
        first = await answered(way, exchange())
        until_sent(gate.getsockname()[1])
        second = await answered(way, exchange())
        await way.aclose()
        await anyio.to_thread.run_sync(thread.join)

    assert [b'{"number":0}', b'{"number":1}'] == [bytes(first.content), bytes(second.content)]
    assert second.first
    assert all(data.count(b"POST") == 1 for data in seen)


@ways
async def test_an_idle_connection_that_the_service_closes(tls: bool) -> None:
    """It is no extra byte: the next request goes over a new connection, and connections stay trusted."""

    async def handle(stream: ByteStream) -> None:
        await request(stream)
        await stream.send(response(b"{}"))
        await anyio.sleep(0.01)

    told: list[str] = []
    async with server(handle, tls=tls) as port:
        way = sender(port, tls, on_extra_bytes=lambda: told.append("extra"))
        for _ in range(5):
            assert (await answered(way, exchange(submit=True))).first
            await anyio.sleep(0.05)
        await way.aclose()

    assert told == []


@pytest.mark.parametrize(
    "said", [b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 408 Request Timeout\r\n\r\n"], ids=["alert", "plain text"]
)
async def test_an_idle_connection_on_which_tls_breaks(said: bytes) -> None:
    """An alert, or what is no TLS at all: the next request goes over a new connection."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    context = certificate().server

    async def handle(plain: ByteStream) -> None:
        async with plain:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                stream = await TLSStream.wrap(plain, server_side=True, ssl_context=context, standard_compatible=False)
                await request(stream)
                await stream.send(response(b"{}"))
                await anyio.sleep(0.01)
                await plain.send(said)
                await plain.receive()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        way = sender(listener.extra(anyio.abc.SocketAttribute.local_port), tls=True)
        for submit in (True, False, True):
            assert (await answered(way, exchange(submit=submit))).first
            await anyio.sleep(0.05)
        await way.aclose()
        tasks.cancel_scope.cancel()


@ways
async def test_session_tickets_are_no_answer(tls: bool) -> None:
    """What TLS itself sends behind a handshake leaves connections in use: 50 requests, one connection."""

    async def handle(stream: ByteStream) -> None:
        while True:
            await request(stream)
            await stream.send(response(b"{}"))

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        for _ in range(50):
            await answered(way, exchange())
            await anyio.sleep(0.001)
        statistics = way.statistics()
        await way.aclose()

    assert statistics is not None
    assert 1 == statistics.opened


@ways
async def test_a_service_that_speaks_first(tls: bool) -> None:
    """Nothing is sent to it."""

    async def handle(stream: ByteStream) -> None:
        await stream.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await stream.receive()

    async with server(handle, tls=tls) as port:
        way = sender(port, tls)
        made, connected = way.connect, []  # type: ignore[attr-defined]

        async def connect() -> object:
            connected.append(await made())
            while connected[-1].waiting() is Waiting.NOTHING:
                await anyio.sleep(0.001)
            return connected[-1]

        way.connect = connect  # type: ignore[attr-defined]
        sent = exchange(submit=True)
        error = await unanswered(way, sent)
        await way.aclose()

    assert "the service spoke before it was asked" == error.reason
    assert not sent.sent


@ways
@pytest.mark.parametrize("between", [0, 2], ids=["at once", "two requests later"])
async def test_a_solution_that_comes_twice(tls: bool, between: int) -> None:
    """Read as the answer to another createTask, it is not that task's, and the connection is closed."""
    solved = b'{"errorId":0,"taskId":"t-%d","status":"ready","solution":{"token":"token-%d"}}'
    said = [solved % (number, number) for number in range(9)]
    numbers = iter(range(9))
    connections = 0

    async def handle(stream: ByteStream) -> None:
        nonlocal connections
        connections += 1
        while True:
            createtask = b"createTask" in await request(stream)
            number = next(numbers) if createtask else None
            if number == 1:  # again, and too late to be seen before the request
                await stream.send(response(said[0]))
            await stream.send(response(b'{"errorId":0,"balance":1}' if number is None else said[number]))

    async with server(handle, tls=tls) as port:
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        async with AsyncClient(KEY, base_url=url, transport="fast", ssl_context=certificate().client) as client:
            first = await client.solve(TURNSTILE)
            for _ in range(between):
                await client.get_balance()
            with pytest.raises(SubmitUncertainError) as caught:
                await client.solve(TURNSTILE)
            last = await client.solve(TURNSTILE)

    assert (first.token, caught.value.task_id, last.token) == ("token-0", None, "token-2")
    assert connections == 2


@pytest.mark.parametrize("waits", [False, True], ids=["given up", "asked for by its id"])
async def test_a_late_answer_about_a_task_that_has_not_ended(waits: bool) -> None:
    """In front of the answer to a createTask: it is not that task's, and the connection does not stay one off."""
    createtasks, late = 0, b""

    async def handle(stream: ByteStream) -> None:
        nonlocal createtasks, late
        while True:
            if b"createTask" in await request(stream):
                createtasks += 1
                said = b'{"errorId":0,"taskId":"t-%d"}' % createtasks
                late, again = b"", late  # too late to be seen before the request
                await stream.send(response(again) + response(said) if again else response(said))
            else:
                late = b'{"errorId":0,"status":"processing","taskId":"other"}'
                await stream.send(response(late))

    async with server(handle) as port, anyio.create_task_group() as tasks:
        options: dict[str, Any] = {"transport": "fast", "polling": Polling(interval=9, first=0, jitter=0)}
        async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", **options) as client:
            tasks.start_soon(_waits, client.job("other"), 9.0 if waits else 0.1)
            await anyio.sleep(0.3)
            with pytest.raises(SubmitUncertainError) as caught:
                await client.submit(TURNSTILE)
            job = await client.submit(TURNSTILE)

    assert (caught.value.task_id, caught.value.charged) == (None, None)
    assert job.task_id == "t-2"


async def _waits(job: Job[Solution], seconds: float) -> None:
    with suppress(SolveTimeoutError, ClientStateError):
        await job.wait(timeout=seconds)


BROKEN_OFF = {
    "all of its text": (b'{"errorId":0,"taskId":"t-1","status":"processing"}', "t-1", True),
    "behind the id": (b'{"errorId":0,"taskId":"t-1","stat', "t-1", False),
    "behind a number": (b'{"errorId":0,"taskId":12,', "12", False),
    "within a number": (b'{"errorId":0,"taskId":12', None, False),
    "within the id": (b'{"errorId":0,"taskId":"t-', None, False),
    "a refusal": (b'{"errorId":1,"errorCode":"ERROR_NEW","taskId":"t-1"}', "t-1", False),
    "a page": (b'<html>{"taskId":"t-1"}', None, False),
}


@pytest.mark.parametrize("way", ["fast", "httpx", "injected"])
@pytest.mark.parametrize("name", BROKEN_OFF)
async def test_an_answer_that_breaks_off(name: str, way: str) -> None:
    """The id of a task that was paid for is not lost with the rest of the answer."""
    said, task_id, accepted = BROKEN_OFF[name]

    async def handle(stream: ByteStream) -> None:
        if b"createTask" in await request(stream):
            await stream.send(response(said + b"     ").removesuffix(b"     "))
        else:
            await stream.send(response(b'{"errorId":0,"status":"ready","solution":{"token":"token"}}'))

    journal = MemoryJournal()
    async with server(handle) as port, httpx.AsyncClient() as http:
        options = {"http_client": http} if way == "injected" else {"transport": way}
        polling = Polling(interval=0.05, first=0, jitter=0)
        url = f"http://127.0.0.1:{port}"
        async with AsyncClient(KEY, base_url=url, journal=journal, polling=polling, **options) as client:  # type: ignore[arg-type]
            if not accepted:
                with pytest.raises(SubmitUncertainError) as caught:
                    await client.solve(TURNSTILE, key="work")
                assert (caught.value.task_id, caught.value.charged) == (task_id, None)
            if task_id is not None:
                assert (await client.solve(TURNSTILE, key="work")).task_id == task_id
        (row,) = [entry async for entry in journal.entries()]

    assert row.task_id == task_id
