"""A service that says whatever a test wants, and keeps its own books: the local one is too well-behaved for some."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import httpx

from tests.helpers import KEY
from ucaptcha_async import AsyncClient

TOKEN = "03AGdBq25SxXT"
URL = "https://service.example"


@attrs.frozen
class Said:
    """One answer: a body (JSON, or bytes as they are), an HTTP status, headers, and seconds until it comes."""

    body: Any = attrs.field(factory=dict)
    status: int = 200
    after: float = 0.0
    headers: dict[str, str] = attrs.field(factory=dict)

    def response(self) -> httpx.Response:
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return httpx.Response(self.status, content=content, headers=self.headers)


def page(status: int, after: float = 0.0) -> Said:
    """What a gateway, a login page or a proxy in between says."""
    return Said(b"<html><body>Please sign in</body></html>", status, after)


def accepted(task_id: Any, **fields: Any) -> Said:
    """The task is taken."""
    return Said({"errorId": 0, "taskId": task_id, **fields})


def ready(**fields: Any) -> Said:
    """The task is solved, for one cent."""
    return Said({"errorId": 0, "status": "ready", "solution": {"token": TOKEN}, "cost": "0.01", **fields})


def refused(code: Any, status: int = 200, **fields: Any) -> Said:
    """The protocol's own error body."""
    return Said({"errorId": 1, "errorCode": code, **fields}, status)


PENDING = Said({"errorId": 0, "status": "processing"})

Step = Said | Exception | Callable[[dict[str, Any]], Awaitable[Said]]


@attrs.define(eq=False)
class OwnService:
    """Says the steps of each endpoint one after the other; then it takes each task, and has solved it when asked.

    Attributes:
        submits: The bodies of `createTask`, as they came.
        polls: When each `getTaskResult` came, and the id in it, as it came.
        feedbacks: The ids in `feedbackTask`, as they came.
    """

    steps: dict[str, deque[Step]] = attrs.field(factory=dict)
    always: dict[str, Step] = attrs.field(factory=dict)
    submits: list[dict[str, Any]] = attrs.field(factory=list)
    polls: list[tuple[float, Any]] = attrs.field(factory=list)
    feedbacks: list[Any] = attrs.field(factory=list)
    balances: int = 0

    def says(self, endpoint: str, *steps: Step, always: Step | None = None) -> OwnService:
        """Let the next requests meet these steps, and all after them `always`."""
        self.steps.setdefault(endpoint, deque()).extend(steps)
        if always is not None:
            self.always[endpoint] = always
        return self

    async def answer(self, request: httpx.Request) -> httpx.Response:
        endpoint, body = request.url.path.strip("/"), json.loads(request.content)
        self._note(endpoint, body)
        steps = self.steps.get(endpoint)
        step = steps.popleft() if steps else self.always.get(endpoint)
        said = await self._said(endpoint, step, body)
        if said.after:
            await anyio.sleep(said.after)
        return said.response()

    def _note(self, endpoint: str, body: dict[str, Any]) -> None:
        if endpoint == "createTask":
            self.submits.append(body)
        elif endpoint == "getTaskResult":
            self.polls.append((anyio.current_time(), body["taskId"]))
        elif endpoint == "feedbackTask":
            self.feedbacks.append(body["taskId"])
        else:
            self.balances += 1

    async def _said(self, endpoint: str, step: Step | None, body: dict[str, Any]) -> Said:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Said):
            return step
        if step is not None:
            return await step(body)
        if endpoint == "createTask":
            return accepted(f"task-{len(self.submits)}")
        return ready() if endpoint == "getTaskResult" else Said({"errorId": 0, "balance": 5})


@asynccontextmanager
async def at(service: OwnService, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client of it."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(service.answer)) as http:
        async with AsyncClient(KEY, base_url=URL, http_client=http, **options) as client:
            yield client
