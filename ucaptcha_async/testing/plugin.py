"""The pytest plugin: test programs that use this library without key, money or network.

pytest loads it by itself (`-p no:ucaptcha_async` keeps it out). All of its imports are inside the fixtures: who does
not use them does not pay for them.

This is the one place where the local service and the client meet. It imports the client when a fixture needs one, and
only to wire it up: the service still shares no code with what it tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from ucaptcha_async import AsyncClient

    from .server import Server
    from .service import LocalService

BASE_URL = "http://localhost"
"""In-process nobody listens there: the requests never reach a socket."""

API_KEY = "ucap_00000000000000000000000000000000"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "ucaptcha(**options): options of `ucaptcha_service`, such as solve_time=30, failure_rate=0.1"
    )


@pytest.fixture
def ucaptcha_options() -> Mapping[str, Any]:
    """Options of the local service for all tests: override it. The marker `ucaptcha` goes before it."""
    return {}


@pytest.fixture
def ucaptcha_client_options() -> Mapping[str, Any]:
    """Options of `ucaptcha_client`, such as `{"attempts": 2}`: override it."""
    return {}


@pytest.fixture
def ucaptcha_service(request: pytest.FixtureRequest, ucaptcha_options: Mapping[str, Any]) -> LocalService:
    """A uCaptcha of your own in this process: script its answers and faults, and read its books.

    `@pytest.mark.ucaptcha(solve_time=30)` sets its options; `ucaptcha_async.testing.Options` describes them.
    """
    from .service import LocalService

    return LocalService(**{**ucaptcha_options, **_marked(request.node)})


@pytest.fixture
def ucaptcha_api_key(ucaptcha_service: LocalService) -> str:
    """The API key of the tests: the first that the service knows, or one that is valid nowhere else."""
    return next(iter(ucaptcha_service.keys or ()), API_KEY)


@pytest.fixture
def ucaptcha_http_client(ucaptcha_service: LocalService) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` whose requests reach `ucaptcha_service` without a socket.

    For programs that take one: `AsyncClient(ucaptcha_api_key, http_client=ucaptcha_http_client)`. It needs not be
    closed, and works on whatever event loop uses it.
    """
    import httpx

    from .wire import ConnectionDroppedError

    if ucaptcha_service.drop_error is ConnectionDroppedError:
        ucaptcha_service.drop_error = httpx.ReadError
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=ucaptcha_service), trust_env=False)


@pytest.fixture
async def ucaptcha_client(
    ucaptcha_http_client: httpx.AsyncClient, ucaptcha_api_key: str, ucaptcha_client_options: Mapping[str, Any]
) -> AsyncIterator[AsyncClient]:
    """An entered `AsyncClient` that talks to `ucaptcha_service`; `ucaptcha_client_options` sets its options."""
    from ucaptcha_async import AsyncClient

    options: dict[str, Any] = {"api_key": ucaptcha_api_key, "base_url": BASE_URL, "http_client": ucaptcha_http_client}
    async with AsyncClient(**{**options, **ucaptcha_client_options}) as client:
        yield client


@pytest.fixture
def ucaptcha_in_process(
    monkeypatch: pytest.MonkeyPatch, ucaptcha_http_client: httpx.AsyncClient, ucaptcha_api_key: str
) -> None:
    """Let every `AsyncClient` that the program makes itself talk to `ucaptcha_service`, without a socket.

    `UCAPTCHA_BASE_URL` and `UCAPTCHA_API_KEY` are set, and what would open connections is replaced for the test. A
    client that is given an `http_client` keeps it.
    """
    from ucaptcha_async import client
    from ucaptcha_async.transport.exchange import Sender
    from ucaptcha_async.transport.through_httpx import Injected

    def open_sender(base_url: str, **_: object) -> Sender:
        return Injected(ucaptcha_http_client, base_url)

    monkeypatch.setattr(client, "open_sender", open_sender)
    _set_environment(monkeypatch, BASE_URL, ucaptcha_api_key)


@pytest.fixture
def ucaptcha_server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    ucaptcha_service: LocalService,
    ucaptcha_api_key: str,
) -> Iterator[Server]:
    """`ucaptcha_service` on a real socket, in a thread: for programs in other processes and for all that is about
    sockets.

    `UCAPTCHA_BASE_URL` and `UCAPTCHA_API_KEY` are set. Time is real, so let solves take none: see `immediate_types`.
    Needs the extra `testing`.
    """
    if "anyio_backend" in request.fixturenames:
        _check_real_time(request.getfixturevalue("anyio_backend"))
    from .server import Server

    with Server(ucaptcha_service) as server:
        _set_environment(monkeypatch, server.url, ucaptcha_api_key)
        yield server


@pytest.fixture
def ucaptcha_url(ucaptcha_server: Server) -> str:
    """The base URL of `ucaptcha_server`."""
    return ucaptcha_server.url


def _set_environment(monkeypatch: pytest.MonkeyPatch, url: str, key: str) -> None:
    monkeypatch.setenv("UCAPTCHA_BASE_URL", url)
    monkeypatch.setenv("UCAPTCHA_API_KEY", key)


def _marked(node: pytest.Item) -> dict[str, Any]:
    """The options in the markers of a test, of its class and of its module; the nearest wins."""
    import difflib

    import attrs

    from .options import Options

    known = [field.name for field in attrs.fields(Options)]
    options: dict[str, Any] = {}
    for mark in node.iter_markers("ucaptcha"):
        if mark.args:
            pytest.fail("the marker ucaptcha takes keywords only: @pytest.mark.ucaptcha(solve_time=30)", pytrace=False)
        for name in mark.kwargs.keys() - set(known):
            match = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {match[0]!r}?" if match else f"there are {', '.join(known)}"
            pytest.fail(f"the local service has no option {name!r}; {hint}", pytrace=False)
        options = {**mark.kwargs, **options}
    return options


def _check_real_time(backend: object) -> None:
    """A clock that jumps would jump past the sockets: every timeout would be over before an answer arrives."""
    _, options = backend if isinstance(backend, tuple) else (backend, {})
    from .virtual import VirtualLoop

    if "clock" in options or options.get("loop_factory") is VirtualLoop:
        pytest.fail(
            "ucaptcha_server needs real time, and the clock of this test jumps; let anyio_backend be 'asyncio' or "
            "'trio' here, or use ucaptcha_client or ucaptcha_in_process",
            pytrace=False,
        )
