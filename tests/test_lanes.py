"""Lanes over real sockets: whole after cancellations, never queueing inside httpx, and fit for submits."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketStream

from tests.helpers import KEY, V2, at_rest
from ucaptcha_async import APIConnectionError, AsyncClient, Polling, ProtocolError, RateLimiter, SubmitUncertainError
from ucaptcha_async.testing import running_service
from ucaptcha_async.transport.channels import TransportName

FREE = RateLimiter(10**6)

transports = pytest.mark.parametrize("transport", ["httpx", "httpx2", "fast"])


@pytest.fixture(autouse=True)
def _asyncio_only(request: pytest.FixtureRequest, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio" and "fast" in request.node.callspec.params.values():
        pytest.skip("aiohttp does not run on trio")


@pytest.mark.parametrize("transport", ["httpx", "httpx2"])
async def test_cancelled_requests_cost_nothing(transport: TransportName) -> None:
    """After 10,000 cancelled requests as many requests succeed at once as before, over as few connections."""
    with running_service(latency=0.01, rate_limit=10**6) as service:
        async with AsyncClient(
            KEY, base_url=service.url, transport=transport, max_connections=20, rate_limit=RateLimiter(10**6)
        ) as client:
            rng, cancelled = random.Random(1), 0

            async def storm() -> None:
                nonlocal cancelled
                while cancelled < 10_000:
                    with anyio.move_on_after(rng.uniform(0, 0.03)) as patience:
                        await client.get_balance()
                    cancelled += patience.cancelled_caught

            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(storm)
            at_rest(client)

            done: list[object] = []

            async def calm() -> None:
                done.append(await client.get_balance())

            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(calm)
            at_rest(client)
            lanes = client.statistics().lanes

    assert 200 == len(done)
    assert lanes is not None
    assert lanes.idle <= 20


@pytest.mark.parametrize("idle_timeout", [1, 5])
async def test_spaced_submits_meet_no_closing_connection(idle_timeout: int) -> None:
    """A service that closes idle connections makes no submit uncertain, whatever the spacing."""
    rng, context = random.Random(2), ssl.create_default_context()
    pauses = [(idle_timeout - 0.1, idle_timeout + 0.1), (0.4, 0.6), (0.02, 0.02)]
    fast: Any = {"lightning": {KEY: 10_000}, "rate_limit": 10**6, "balance": 1_000}
    with running_service(idle_timeout=idle_timeout, **fast) as service:

        async def spaced() -> None:
            options: Any = {"rate_limit": RateLimiter(10**6), "ssl_context": context}
            async with AsyncClient(KEY, base_url=service.url, **options) as client:
                for _ in range(5):
                    await client.solve(V2)
                    await anyio.sleep(rng.uniform(*rng.choice(pauses)))

        async with anyio.create_task_group() as tasks:
            for _ in range(400):
                tasks.start_soon(spaced)
        books = service.books()

    assert 2_000 == books["accepted"]


# --- servers that misbehave, byte by byte -----------------------------------------------------------------------------


@asynccontextmanager
async def server(answer: Any, *, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A TCP server on loopback that treats each connection with `answer(stream)`."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def handle(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                await answer(stream)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"http://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()
    await listener.aclose()


def response(body: bytes, *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 200 OK", b"content-type: application/json", *headers]
    return b"\r\n".join([*head, b"", body])


async def request(stream: SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"}"):
        data += await stream.receive()
    return data


async def test_a_request_is_one_write() -> None:
    """Head and body leave in one piece, and say no more than they must."""
    seen: list[bytes] = []

    async def answer(stream: SocketStream) -> None:
        seen.append(await stream.receive())
        body = b'{"errorId":0,"balance":1.5}'
        await stream.send(response(body, b"content-length: %d" % len(body)))

    async with server(answer) as url, AsyncClient(KEY, base_url=url) as client:
        assert "1.5" == str(await client.get_balance())

    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert b'{"clientKey":"' + KEY.encode() + b'"}' == body
    assert [b"host", b"content-type", b"user-agent", b"content-length"] == [
        line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]
    ]


async def test_an_endless_answer_is_cut_off() -> None:
    """An answer without a length that never ends is refused after a megabyte."""

    async def answer(stream: SocketStream) -> None:
        await request(stream)
        await stream.send(response(b"{"))
        while True:
            await stream.send(b" " * 65_536)

    async with server(answer) as url, AsyncClient(KEY, base_url=url) as client:
        with pytest.raises(APIConnectionError, match="more than 1048576 bytes"):
            await client.get_balance()
        at_rest(client)


@transports
async def test_compressed_answers_are_read(transport: TransportName) -> None:
    """Nobody asked for it, but a gateway may compress."""
    import gzip

    answers = {
        b"/getBalance": b'{"errorId":0,"balance":1.5}',
        b"/createTask": b'{"errorId":0,"taskId":"7","status":"ready","solution":{"token":"a token"}}',
    }

    async def answer(stream: SocketStream) -> None:
        path = (await request(stream)).split(b" ")[1]
        body = gzip.compress(answers[path])
        await stream.send(response(body, b"content-encoding: gzip", b"content-length: %d" % len(body)))

    async with server(answer) as url, AsyncClient(KEY, base_url=url, transport=transport) as client:
        assert "1.5" == str(await client.get_balance())
        assert "a token" == (await client.solve(V2)).token


@transports
@pytest.mark.parametrize("bytes_read", [0, 1])
async def test_a_connection_that_closes_after_reading_is_uncertain(bytes_read: int, transport: TransportName) -> None:
    """The request may have arrived, so the fate of the submit is unknown, even if not a byte was read."""

    async def answer(stream: SocketStream) -> None:
        if bytes_read:
            await stream.receive(bytes_read)

    async with server(answer) as url, AsyncClient(KEY, base_url=url, transport=transport) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(V2)
        at_rest(client)

    assert caught.value.charged is None


async def test_an_early_answer_is_read_although_the_body_cannot_be_sent() -> None:
    """A service that answers and closes at once is heard."""

    async def answer(stream: SocketStream) -> None:
        await stream.receive(10)
        body = b'{"errorId":1,"errorCode":"ERROR_ZERO_BALANCE","errorDescription":"no"}'
        await stream.send(response(body, b"content-length: %d" % len(body), b"connection: close"))

    async with server(answer) as url, AsyncClient(KEY, base_url=url) as client:
        with pytest.raises(Exception, match="balance is too low"):
            await client.get_balance()


async def test_a_slow_answer_is_bounded() -> None:
    """The request timeout covers the whole request, however slowly its answer drips."""

    async def answer(stream: SocketStream) -> None:
        await request(stream)
        await stream.send(response(b"{", b"content-length: 1000"))
        while True:
            await anyio.sleep(0.05)
            await stream.send(b" ")

    async with server(answer) as url, AsyncClient(KEY, base_url=url, request_timeout=0.5) as client:
        with pytest.raises(APIConnectionError, match=r"no answer within 0\.5 s"):
            await client.get_balance()
        at_rest(client)


async def test_not_http_at_all() -> None:
    """A server that speaks something else is a connection error, with nothing of httpx in its type."""

    async def answer(stream: SocketStream) -> None:
        await stream.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

    async with server(answer) as url, AsyncClient(KEY, base_url=url) as client:
        with pytest.raises((APIConnectionError, ProtocolError)):
            await client.get_balance()


async def test_an_injected_client_is_used_as_it_is() -> None:
    """Its hooks and headers apply, and it is left open."""
    seen: list[str] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(request.headers["x-mine"])

    with running_service(solve_time=0.3) as service:
        async with httpx.AsyncClient(headers={"x-mine": "yes"}, event_hooks={"request": [hook]}) as http:
            async with AsyncClient(
                KEY, base_url=service.url, http_client=http, polling=Polling(interval=0.2)
            ) as client:
                assert (await client.solve(V2)).token
            assert not http.is_closed

    assert len(seen) >= 2


async def test_a_full_pool_of_an_injected_client_is_proved_unsent() -> None:
    """PoolTimeout of httpx's own pool: nothing was sent, so the submit is made again."""
    with running_service(solve_time=0.2, latency=0.6) as service:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(5, pool=0.1)) as http:
            options: dict[str, Any] = {"http_client": http, "polling": Polling(interval=0.2)}
            async with AsyncClient(KEY, base_url=service.url, **options) as client:
                outcomes = await client.gather([V2] * 3)
                at_rest(client)
        books = service.books()

    assert [None] * 3 == [outcome.error for outcome in outcomes]
    assert 3 == books["accepted"]
