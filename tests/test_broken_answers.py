"""Answers that were read, in part or whole, before something failed: an id that came is kept."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from tests.helpers import KEY, TURNSTILE, httpx
from tests.transport_kit import always, request, response, server
from ucaptcha_async import AsyncClient, UCaptchaError
from ucaptcha_async.transport.wires import AsyncioWire

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.parametrize("body", [b'{"message":"thank you"}', b"{}"])
async def test_what_feedback_is_answered_says_nothing_of_a_poll(body: bytes) -> None:
    """JSON that is not the protocol's proves nothing of a task, whatever else was answered with it."""

    async def told(*, feedback: bool) -> str:
        async with (
            server(always(body)) as port,
            AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}") as client,
        ):
            if feedback:
                await client.feedback("t-1", accepted=True, message="fine")
            try:
                return (await client.get_task_result("t-1")).status
            except UCaptchaError as error:
                return type(error).__name__

    assert await told(feedback=True) == await told(feedback=False)


@on_asyncio
@pytest.mark.parametrize("transport", ["fast", "httpx"])
async def test_an_answer_that_was_read_is_not_lost(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends while the connection of a submit is closed: its answer was read, and names the task."""
    body = b'{"errorId":0,"taskId":"t-77"}'

    async def handle(stream: ByteStream) -> None:
        await request(stream)
        await stream.send(response(body, b"Connection: close"))
        await anyio.sleep_forever()

    close, mine = AsyncioWire.aclose, set[Any]()

    async def aclose(self: AsyncioWire) -> None:
        def end() -> None:
            for task in asyncio.all_tasks() - mine:
                task.cancel()

        asyncio.get_running_loop().call_soon(end)
        await close(self)

    async with server(handle) as port:
        client = AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", transport=transport)
        async with client:
            mine |= asyncio.all_tasks()
            monkeypatch.setattr(AsyncioWire, "aclose", aclose)
            task = asyncio.create_task(client.solve(TURNSTILE))
            await asyncio.wait([task])
            monkeypatch.undo()
        named = getattr(None if task.cancelled() else task.exception(), "task_id", None)

    assert "t-77" in (*client.abandoned, named)


ACCEPTED = b'{"errorId":0,"taskId":"t-77"}'


async def ids_after(client: AsyncClient) -> tuple[str | None, ...]:
    """Where a solve that fails leaves its task's id."""
    named = None
    async with client:
        try:
            await client.solve(TURNSTILE, timeout=2)
        except Exception as error:
            named = getattr(error, "task_id", None)
    return *client.abandoned, named


@pytest.mark.parametrize("failure", [OSError("closing"), RuntimeError("closing")], ids=["os", "runtime"])
async def test_a_stream_that_cannot_be_closed_loses_no_answer(failure: Exception) -> None:
    """An injected client's own stream gives the whole answer, and fails when it is closed."""

    class Stream(httpx.AsyncByteStream):  # type: ignore[misc,name-defined]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield ACCEPTED

        async def aclose(self) -> None:
            raise failure

    class Transport(httpx.AsyncBaseTransport):  # type: ignore[misc,name-defined]
        async def handle_async_request(self, _: Any) -> Any:
            return httpx.Response(200, stream=Stream())

    async with httpx.AsyncClient(transport=Transport()) as http:
        found = await ids_after(AsyncClient(KEY, base_url="http://127.0.0.1:9", http_client=http))

    assert "t-77" in found


async def test_what_fails_after_the_answer_loses_no_id() -> None:
    """httpx tells its log of an answer that was read already, and a filter of the caller's raises there."""

    def fails(_: logging.LogRecord) -> bool:
        raise RuntimeError("a filter")

    log = logging.getLogger("httpx")
    level = log.level
    log.setLevel(logging.INFO)
    log.addFilter(fails)
    try:
        async with server(always(ACCEPTED)) as port:
            found = await ids_after(AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}"))
    finally:
        log.removeFilter(fails)
        log.setLevel(level)

    assert "t-77" in found


def sends(data: bytes) -> Callable[[ByteStream], Awaitable[None]]:
    """A service that answers a submit with these bytes, closes, and answers nothing else."""

    async def handle(stream: ByteStream) -> None:
        if b"/createTask" in await request(stream):
            await stream.send(data)

    return handle


PADDED = gzip.compress(ACCEPTED[:-1] + b',"pad":"' + bytes(range(35, 91)) * 9 + b'"}')
ODD_ANSWERS = {
    "too large": response(ACCEPTED[:-1] + b',"pad":"' + b"x" * 2_000_000 + b'"}'),
    "packed, broken off": response(PADDED, b"Content-Encoding: gzip")[:-12],
    "packed, cut": response(PADDED[:-12], b"Content-Encoding: gzip"),
    "said to be packed": response(ACCEPTED, b"Content-Encoding: gzip"),
    "one byte short": response(ACCEPTED).replace(b"Length: 29", b"Length: 28"),
}


@pytest.mark.parametrize("way", ["fast", "injected"])
@pytest.mark.parametrize("answer", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_an_id_that_came_is_kept(answer: bytes, way: str) -> None:
    """The service took the task, and all of its id came, in an answer that cannot be read to its end."""
    async with server(sends(answer)) as port, httpx.AsyncClient() as http:
        options: dict[str, Any] = {"http_client": http} if way == "injected" else {"transport": "fast"}
        found = await ids_after(AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", **options))

    assert "t-77" in found
