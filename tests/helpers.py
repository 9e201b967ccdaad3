"""What the tests of the client share."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ucaptcha_async import AsyncClient, RateLimiter, RecaptchaV2, Turnstile
from ucaptcha_async.polling import SolveTimes
from ucaptcha_async.testing import LocalService

httpx = importlib.import_module(os.environ.get("TEST_HTTP", "httpx"))
"""The library of the client that is injected: `httpx`, or its twin `httpx2`."""

KEY = "ucap_0123456789abcdef0123456789abcdef"
V2 = RecaptchaV2(website_url="https://example.com/login", website_key="6Le-wvkSAAAAAPBMRTvw0Q4Muexq9bi0DJwx_mJ-")
TURNSTILE = Turnstile(website_url="https://example.com/", website_key="0x4AAAAAAA")


@asynccontextmanager
async def opened(service: LocalService, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client that talks to the service in-process."""
    service.drop_error = httpx.ReadError
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=service)) as http:
        async with AsyncClient(options.pop("api_key", KEY), http_client=http, **options) as client:
            yield client


def at_rest(client: AsyncClient) -> None:
    """Assert that a client holds nothing."""
    now = client.statistics()

    assert (now.in_flight, now.queued, now.waiting) == (0, 0, 0)
    assert (now.rate_limit.waiting, now.rate_limit.in_transit) == (0, 0)
    if now.connections is not None:
        assert (now.connections.busy, now.connections.waiting) == (0, 0)


def count_looks(limiter: RateLimiter, patch: pytest.MonkeyPatch) -> list[float]:
    """The times at which a limiter looks whether a request may depart: it grows."""
    looks: list[float] = []
    depart = limiter._depart

    def counted(self: RateLimiter, now: float) -> float:
        looks.append(now)
        return depart(now)

    patch.setattr(type(limiter), "_depart", counted)
    return looks


class _Solve:
    """A solve that is watched."""


def observe(times: SolveTimes, kind: str, solve_time: float) -> None:
    """Let a memory of solve times learn of one solve."""
    solve, history = _Solve(), times.history(kind)
    assert history.watch(solve)
    history.ready(solve, solve_time, solve_time)
