"""What the tests of the local service share: tasks, and a caller that speaks plain HTTP to it in-process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx

from ucaptcha_async.testing import LocalService

KEY = "ucap_0123456789abcdef0123456789abcdef"
V2 = {"type": "RecaptchaV2TaskProxyless", "websiteURL": "https://example.com/login", "websiteKey": "6Le-site"}
IMAGE = {"type": "ImageToTextTask", "body": "aGVsbG8gd29ybGQ="}


@attrs.frozen
class Heard:
    status: int
    json: Any
    headers: httpx.Headers


@attrs.frozen
class Caller:
    """Sends requests with one API key; an answer is its HTTP status, JSON and headers."""

    http: httpx.AsyncClient
    key: str = KEY

    async def __call__(self, endpoint: str, /, **body: Any) -> Heard:
        answer = await self.http.post(f"/{endpoint}", json={"clientKey": self.key, **body})
        return Heard(answer.status_code, answer.json(), answer.headers)

    async def create(self, task: dict[str, Any] | None = None, **fields: Any) -> Any:
        """Create a task that must be accepted and return its id."""
        heard = await self("createTask", task=task or V2, **fields)
        assert (heard.status, heard.json["errorId"]) == (200, 0), heard.json
        return heard.json["taskId"]

    async def poll(self, task_id: Any) -> Any:
        return (await self("getTaskResult", taskId=task_id)).json


@asynccontextmanager
async def calling(service: LocalService, key: str = KEY, client: str = "127.0.0.1") -> AsyncIterator[Caller]:
    transport = httpx.ASGITransport(app=service, client=(client, 1234))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        yield Caller(http, key)
