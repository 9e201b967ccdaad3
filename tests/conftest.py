"""Backends and clocks: every async test runs on asyncio and on trio; `virtual_time` makes their clocks jump."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio.testing

from ucaptcha_async.solving import type_search
from ucaptcha_async.testing.virtual import VirtualLoop


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: the clock of the event loop jumps instead of waiting")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    virtual = request.node.get_closest_marker("virtual_time") is not None
    if request.param == "asyncio":
        # A virtual clock needs a loop of its own; in real time the loop may be another (TEST_ASYNCIO=uvloop).
        real = {"use_uvloop": os.environ.get("TEST_ASYNCIO") == "uvloop"}
        return ("asyncio", {"loop_factory": VirtualLoop} if virtual else real)
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)} if virtual else {})


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not leak into them."""
    for name in ("UCAPTCHA_API_KEY", "UCAPTCHA_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def _no_memory() -> None:
    """What one test's service was found to take is not true of the next one's."""
    type_search.forget_all()
