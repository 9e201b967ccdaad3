"""The service is away, for a while or because of a setting: over real sockets, with servers that are really gone."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx
import httpx2
import pytest

from tests.helpers import KEY, TURNSTILE
from tests.test_network import LOGIN, PASSWORD, REFUSED_407, HttpProxy, SocksProxy, good
from tests.transport_kit import certificate, server
from ucaptcha_async import (
    APIConnectionError,
    AsyncClient,
    ConfigurationError,
    MemoryJournal,
    Polling,
    TaskNotFoundError,
    UCaptchaError,
)
from ucaptcha_async.events import Event, ServiceReached, ServiceUnreachable, Submitted
from ucaptcha_async.testing import Error, running_service

AT_ONCE = Polling(interval=0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


@asynccontextmanager
async def a_service(port: int, **options: Any) -> AsyncIterator[Any]:
    """The local service; its start and its end keep the event loop free."""
    running = running_service(port=port, **options)
    service = await anyio.to_thread.run_sync(running.__enter__)
    try:
        yield service
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(running.__exit__, None, None, None)


# --- for a while ------------------------------------------------------------------------------------------------------


async def test_one_warning_for_each_outage(caplog: pytest.LogCaptureFixture) -> None:
    """Ten solves begin without a service and end with one: two lines, with cause, next step and length."""
    port, events = free_port(), list[Event]()
    async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", on_event=events.append, polling=AT_ONCE) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(client.solve, TURNSTILE)
            await anyio.sleep(0.3)
            async with a_service(port, speed=100):
                with anyio.fail_after(20):
                    while client.statistics().solved < 10:
                        await anyio.sleep(0.05)

    first, last = warnings(caplog)
    assert first.startswith("the service cannot be reached: createTask: connection refused; submits are tried again")
    assert "next in " in first
    assert last.startswith("the service is reached again, after ")
    away = [event for event in events if isinstance(event, ServiceUnreachable | ServiceReached)]
    assert [type(event) for event in away] == [ServiceUnreachable, ServiceReached]
    assert isinstance(away[0], ServiceUnreachable)
    assert away[0].reason == "createTask: connection refused"


async def test_a_service_that_goes_away_from_paid_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """Failed polls are late polls, told once; the next outage is told anew."""
    port = free_port()
    settings: Any = {"base_url": f"http://127.0.0.1:{port}", "polling": AT_ONCE, "timeout": 1.5}
    accepted: list[Event] = []

    def hear(event: Event) -> None:
        if isinstance(event, Submitted):
            accepted.append(event)

    async with AsyncClient(KEY, on_event=hear, **settings) as client:
        for number in (1, 2):
            accepted.clear()
            async with anyio.create_task_group() as tasks:
                async with a_service(port, speed=0.01):
                    for _ in range(3):
                        tasks.start_soon(_timed_out, client)
                    with anyio.fail_after(10):
                        while len(accepted) < 3:
                            await anyio.sleep(0.02)
            assert sum("cannot be reached" in text for text in warnings(caplog)) == number

    assert sum("reached again" in text for text in warnings(caplog)) == 1
    assert "tasks at the service are asked for until their own deadlines" in warnings(caplog)[0]


async def _timed_out(client: AsyncClient) -> None:
    with pytest.raises(UCaptchaError) as error:
        await client.solve(TURNSTILE)
    assert error.value.charged is True


async def test_a_refusal_ends_an_outage_too(caplog: pytest.LogCaptureFixture) -> None:
    """The service answers: that it has nobody free is another matter."""
    port = free_port()
    async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}") as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.solve, TURNSTILE)
            await anyio.sleep(0.3)
            async with a_service(port) as service:
                service.script("createTask", *[Error("ERROR_NO_SLOT_AVAILABLE")] * 100)
                with anyio.fail_after(10):
                    while not any("reached again" in text for text in warnings(caplog)):
                        await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()


# --- for good ---------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[AsyncClient], Any]] = {
    "solve": lambda client: client.solve(TURNSTILE),
    "named": lambda client: client.solve(TURNSTILE, key="work"),
    "submit": lambda client: client.submit(TURNSTILE),
    "gather": lambda client: _gathered(client),
    "stream": lambda client: _streamed(client),
    "prefetch": lambda client: _prefetched(client),
    "balance": lambda client: client.get_balance(),
    "result": lambda client: client.get_task_result("t-1"),
}


async def _gathered(client: AsyncClient) -> None:
    outcomes = await client.gather([TURNSTILE] * 3)
    assert all(isinstance(outcome.error, APIConnectionError) for outcome in outcomes)
    _ = outcomes[0].solution


async def _streamed(client: AsyncClient) -> None:
    async with client.solve_many([TURNSTILE] * 3) as outcomes:
        async for outcome in outcomes:
            _ = outcome.solution


async def _prefetched(client: AsyncClient) -> None:
    async with client.prefetch(TURNSTILE, ready=1) as tokens:
        await tokens.get()


WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "certificate": ({"ssl_context": ssl.create_default_context()}, "the certificate does not verify"),
    "certificate, fast": (
        {"ssl_context": ssl.create_default_context(), "transport": "fast"},
        "the certificate does not verify",
    ),
    "407": ({"proxy": f"http://{LOGIN}@127.0.0.1:{{http}}"}, r"the proxy refuses the login \(HTTP 407\)"),
    "socks login": ({"proxy": f"socks5://{LOGIN}@127.0.0.1:{{socks}}"}, "the proxy refuses the login"),
    "injected, certificate": ({"http_client": httpx.AsyncClient}, "the certificate does not verify"),
    "injected httpx2, certificate": ({"http_client": httpx2.AsyncClient}, "the certificate does not verify"),
    "injected, 407": (
        {"http_client": lambda: httpx.AsyncClient(proxy=f"http://{LOGIN}@127.0.0.1:{PORTS['http']}")},
        "HTTP 407",
    ),
}
PORTS: dict[str, int] = {}


@pytest.mark.parametrize("way", WAYS)
async def test_what_cannot_pass_fails_at_once(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each call says so in its first second, unsent, without a secret, and without a promise to try again."""
    settings, reason = WAYS[way]
    async with (
        server(good, tls=True) as port,
        server(HttpProxy(REFUSED_407)) as PORTS["http"],
        server(SocksProxy(("user", "other"))) as PORTS["socks"],
    ):
        given = {name: value.format(**PORTS) if isinstance(value, str) else value for name, value in settings.items()}
        http = given.pop("http_client", None)
        given |= {} if http is None else {"http_client": http()}
        async with AsyncClient(KEY, base_url=f"https://127.0.0.1:{port}", journal=MemoryJournal(), **given) as client:
            for name, call in CALLS.items():
                with anyio.fail_after(5), pytest.raises(APIConnectionError, match=reason) as error:
                    await call(client)
                assert not error.value.retryable
                assert error.value.charged is (None if name == "result" else False)
                assert PASSWORD not in str(error.value)
            assert client.statistics().in_flight == 0
            assert client.abandoned == ()
        if http is not None:
            await given["http_client"].aclose()

    assert warnings(caplog) == []


async def test_a_certificate_that_is_trusted() -> None:
    """The same server, with the authority that the settings name."""
    async with server(good, tls=True) as port:
        context = certificate().client
        async with AsyncClient(KEY, base_url=f"https://127.0.0.1:{port}", ssl_context=context) as client:
            assert await client.get_balance() == 1.5


async def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry says which, and how to get it; nothing is left open."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    client = AsyncClient(KEY, base_url="http://127.0.0.1:9", transport="httpx2")

    with pytest.raises(ConfigurationError, match=r"httpx2 is not installed: pip install 'ucaptcha_async\[httpx2\]'"):
        await client.open()
    monkeypatch.undo()
    await client.open()
    await client.aclose()


async def test_charged_is_not_claimed_of_a_task_that_is_known_by_its_id_alone() -> None:
    """Somebody paid for it, or nobody did."""
    async with a_service(0) as service, AsyncClient(KEY, base_url=service.url) as client:
        with pytest.raises(TaskNotFoundError) as error:
            await client.get_task_result("t-1")
    assert error.value.charged is None
    assert "not charged" not in str(error.value)
