"""What one would write by hand: a paced loop over one client. No retries, no journal, no learning.

`post` sends one JSON object to a path and returns the JSON object that comes back.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from .meter import Ledger

Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

INTERVAL = 5.0
PAGE = "https://example.com/login"


@asynccontextmanager
async def aiohttp_post(url: str) -> AsyncIterator[Post]:
    """One `aiohttp.ClientSession`, as many connections as it takes."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            async with session.post(url + path, json=body) as answer:
                return await answer.json()  # type: ignore[no-any-return]

        yield post


@asynccontextmanager
async def httpx_post(url: str, library: str = "httpx", timeout: float | None = 30.0) -> AsyncIterator[Post]:
    """One stock `AsyncClient` with its default limits."""
    import importlib

    module = importlib.import_module(library)
    async with module.AsyncClient(timeout=timeout) as client:

        async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            return (await client.post(url + path, json=body)).json()  # type: ignore[no-any-return]

        yield post


@asynccontextmanager
async def bare_post(url: str) -> AsyncIterator[Callable[[str, dict[str, Any]], Awaitable[bytes]]]:
    """The floor: a protocol of asyncio's that writes a ready request and waits for any bytes. No parser, no checks."""
    scheme, _, address = url.partition("://")
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context() if scheme == "https" else None
    free: list[tuple[Any, _Bare]] = []
    opened: list[Any] = []

    async def post(path: str, body: dict[str, Any]) -> bytes:
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        if free:
            transport, protocol = free.pop()
        else:
            transport, protocol = await loop.create_connection(_Bare, host, int(port), ssl=context)
            opened.append(transport)
        protocol.answer = loop.create_future()
        transport.write(head + text)
        try:
            return await protocol.answer
        finally:
            free.append((transport, protocol))

    try:
        yield post
    finally:
        for transport in opened:
            transport.close()


class _Bare(asyncio.Protocol):
    answer: asyncio.Future[bytes]

    def data_received(self, data: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(data)


class Pace:
    """Requests leave evenly, `rate` a second."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._next = 0.0

    async def slot(self) -> None:
        """Wait for the next departure."""
        now = asyncio.get_running_loop().time()
        at = max(self._next, now)
        self._next = at + self._interval
        if at > now:
            await asyncio.sleep(at - now)


async def solve(post: Post, pace: Pace, key: str, site_key: str) -> str:
    """Submit one task and ask for it every five seconds."""
    clock = asyncio.get_running_loop().time
    task = {"type": "RecaptchaV2TaskProxyless", "websiteURL": PAGE, "websiteKey": site_key}
    await pace.slot()
    created = await post("/createTask", {"clientKey": key, "task": task})
    due = clock()
    while True:
        due = max(due + INTERVAL, clock())
        await asyncio.sleep(due - clock())
        await pace.slot()
        answer = await post("/getTaskResult", {"clientKey": key, "taskId": created["taskId"]})
        if answer["status"] == "ready":
            return str(answer["solution"]["gRecaptchaResponse"])


async def solve_all(post: Post, key: str, site_keys: list[str], rate: float, ledger: Ledger) -> None:
    """Solve all at once."""
    pace = Pace(rate)

    async def one(number: int, site_key: str) -> None:
        try:
            await solve(post, pace, key, site_key)
        except Exception as error:
            ledger.failed(error)
        else:
            ledger.solved(number)

    await asyncio.gather(*(one(number, site_key) for number, site_key in enumerate(site_keys)))
