"""What is imported, and what is not before it is needed.

A full pass of the garbage collector stops the event loop for as long as it takes to look at all objects, and most of
them are functions and classes of modules.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import ucaptcha_async
from ucaptcha_async import tasks
from ucaptcha_async.testing import running_service

PROGRAM = """
import asyncio, sys
before = set(sys.modules)
from ucaptcha_async import AsyncClient, Polling, RecaptchaV2

async def main(url, transport, way):
    async with AsyncClient("ucap_key", base_url=url, transport=transport, polling=Polling(first=0.1)) as client:
        if way == "solve":
            await client.solve(RecaptchaV2(website_url="https://example.com", website_key="6Le-wvkSAAAAAPBMRTvw"))

asyncio.run(main(*sys.argv[1:]))
print(*sorted(set(sys.modules) - before))
"""
HTTPX = {"httpx", "httpx2", "httpcore"}
LIBRARIES = {*HTTPX, "certifi", "rich", "trio"}
PYTHON = {"email.utils", "http.client", "sqlite3", "urllib.request"}
OWN = {
    *("ucaptcha_async.callbacks", "ucaptcha_async.journal.memory", "ucaptcha_async.journal.sqlite"),
    *("ucaptcha_async.solving.prefetch", "ucaptcha_async.tasks.pictures", "ucaptcha_async.testing"),
}


def imported(url: str, transport: str, way: str) -> set[str]:
    """What a program imports that enters a client, and perhaps solves a task."""
    command = [sys.executable, "-c", PROGRAM, url, transport, way]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(ended.stdout.split())


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names neither certificates nor a proxy."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.usefixtures("no_settings")
def test_a_fast_client_over_http() -> None:
    """A whole solve needs no other client, no certificates, no proxy, no store and no parser but one."""
    with running_service(solve_time=0.01) as service:
        found = imported(service.url, "fast", "solve")

    assert "ucaptcha_async.solving.job" in found
    assert found.isdisjoint(LIBRARIES | PYTHON | OWN)
    assert "h11" not in found or importlib.util.find_spec("httptools") is None


@pytest.mark.usefixtures("no_settings")
def test_a_fast_client_over_tls() -> None:
    """Certificates are what TLS adds."""
    found = imported("https://ucaptcha.example", "fast", "enter")

    assert "certifi" in found
    assert found.isdisjoint((LIBRARIES | OWN) - {"certifi"})


def test_names_are_loaded_on_first_use() -> None:
    """Each public name is found, and a wrong one is an `AttributeError`."""
    for module in (ucaptcha_async, tasks):
        assert all(getattr(module, name).__name__ for name in module.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'Recaptcha'"):
            _ = module.Recaptcha
