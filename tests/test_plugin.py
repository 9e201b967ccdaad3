"""The pytest plugin: its fixtures, its assertions, and a foreign project that uses them from an installed package."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
import trio.testing
import uvicorn

import ucaptcha_async.testing
from ucaptcha_async.testing import (
    Books,
    assert_nothing_lost,
    assert_paid_once,
    assert_polite,
    virtual_backends,
)
from ucaptcha_async.testing.books import TaskRecord
from ucaptcha_async.testing.virtual import VirtualLoop

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
FOREIGN = ROOT / "tests" / "foreign_project"
PAGE = ROOT / "docs" / "how-to" / "test-your-program.md"

# All modules are imported here: those that a test run within this process is the first to import are forgotten after
# it, and imported again by the next one as different modules.
IMPORTED = (httpx, trio, uvicorn)
for package in (ucaptcha_async, ucaptcha_async.testing):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not module.ispkg and not module.name.endswith("__main__"):
            with suppress(ImportError):  # its extra may not be installed
                importlib.import_module(module.name)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty project with both backends in virtual time, as the documentation sets it up."""
    pytester.makeini("[pytest]\nanyio_mode = auto\nfilterwarnings = error\naddopts = --strict-markers\n")
    pytester.makeconftest("""
        import pytest
        from ucaptcha_async.testing import virtual_backends

        @pytest.fixture(params=virtual_backends())
        def anyio_backend(request):
            return request.param
    """)
    return pytester


HEAD = """
    import pytest
    from ucaptcha_async import AsyncClient, RecaptchaV2
    from ucaptcha_async.testing import Drop, LocalService
    TASK = RecaptchaV2(website_url="https://example.com", website_key="6Le-key")
"""


# --- the fixtures -----------------------------------------------------------------------------------------------------


def test_options_come_from_fixtures_and_markers(project: pytest.Pytester) -> None:
    """The function's marker goes before the module's, and both before the fixture's options."""
    project.makepyfile(
        HEAD
        + """
    pytestmark = pytest.mark.ucaptcha(solve_time=20, failure_rate=0.5)

    @pytest.fixture
    def ucaptcha_options():
        return {"solve_time": 10, "failure_rate": 0.1, "balance": 7}

    @pytest.mark.ucaptcha(solve_time=30)
    def test_options(ucaptcha_service):
        service = ucaptcha_service
        assert (service.solve_time, service.failure_rate, service.balance) == (30, 0.5, 7)
    """
    )
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_misspelled_option_gets_the_near_match(project: pytest.Pytester) -> None:
    """A marker that says nothing the service knows is an error that helps."""
    project.makepyfile(
        HEAD
        + """
    @pytest.mark.ucaptcha(solvetime=30)
    def test_near(ucaptcha_service): ...

    @pytest.mark.ucaptcha(quux=30)
    def test_far(ucaptcha_service): ...

    @pytest.mark.ucaptcha(30)
    def test_positional(ucaptcha_service): ...
    """
    )
    result = project.runpytest_inprocess()

    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "the local service has no option 'solvetime'; did you mean 'solve_time'[?]",
            "the local service has no option 'quux'; there are keys, balance, *",
            "the marker ucaptcha takes keywords only: *",
        ]
    )


def test_the_client_takes_options_and_the_services_key(project: pytest.Pytester) -> None:
    """The client uses a key that the service knows, and the options of the fixture; a setting of the environment does
    not matter.
    """
    project.makepyfile(
        HEAD
        + """
    @pytest.fixture
    def ucaptcha_client_options():
        return {"attempts": 3, "max_in_flight": 4}

    @pytest.fixture(autouse=True)
    def environment(monkeypatch):
        monkeypatch.setenv("UCAPTCHA_BASE_URL", "https://real.invalid")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    @pytest.mark.ucaptcha(keys=["ucap_a", "ucap_b"])
    async def test_client(ucaptcha_client, ucaptcha_service, ucaptcha_api_key):
        ucaptcha_service.fail_next(times=2)
        await ucaptcha_client.solve(TASK)
        assert ucaptcha_client.statistics().max_in_flight == 4
        assert ucaptcha_api_key == "ucap_a"
        assert {t.key for t in ucaptcha_service.books.tasks.values()} == {ucaptcha_service.fingerprint("ucap_a")}
    """
    )
    project.runpytest_inprocess().assert_outcomes(passed=2)


def test_each_test_has_a_service_of_its_own(project: pytest.Pytester) -> None:
    """What one test did is not in the books of the next."""
    project.makepyfile(
        HEAD
        + """
    @pytest.mark.parametrize("again", range(2))
    async def test_books(ucaptcha_client, ucaptcha_service, again):
        await ucaptcha_client.solve(TASK)
        assert len(ucaptcha_service.books.accepted) == 1
    """
    )
    project.runpytest_inprocess().assert_outcomes(passed=4)


def test_in_process_serves_every_client_and_ends_with_the_test(project: pytest.Pytester) -> None:
    """Clients that the program makes reach the service, on any loop; one with its own http_client keeps it; and after
    the test all is as before.
    """
    project.makepyfile(
        HEAD
        + """
    import asyncio, os
    import httpx
    from ucaptcha_async import client

    before = client.open_sender

    async def solve(**options):
        async with AsyncClient(**options) as client:
            return await client.solve(TASK)

    @pytest.mark.ucaptcha(solve_time=60)
    async def test_async(ucaptcha_in_process, ucaptcha_service):
        await solve()
        await solve(api_key="ucap_other", base_url="https://elsewhere.invalid", transport="httpx2")
        assert len(ucaptcha_service.books.accepted) == 2

    async def test_own_http_client(ucaptcha_in_process, ucaptcha_service):
        other = LocalService(solve_time=60)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=other)) as http:
            await solve(http_client=http)
        assert (len(other.books.accepted), len(ucaptcha_service.books.accepted)) == (1, 0)

    @pytest.mark.ucaptcha(immediate_types=["RecaptchaV2TaskProxyless"])
    def test_loop_of_the_program(ucaptcha_in_process, ucaptcha_service):
        asyncio.run(solve())
        asyncio.run(solve())
        assert len(ucaptcha_service.books.accepted) == 2

    def test_after():
        assert client.open_sender is before
        assert "UCAPTCHA_API_KEY" not in os.environ
    """
    )
    project.runpytest_inprocess().assert_outcomes(passed=6)


def test_dropped_connections_look_like_those_of_a_socket(project: pytest.Pytester) -> None:
    """In-process a cut connection is httpx's own error, unless the options say otherwise."""
    project.makepyfile(
        HEAD
        + """
    import httpx

    async def test_default(ucaptcha_http_client, ucaptcha_service):
        ucaptcha_service.script("getBalance", Drop(before=True))
        with pytest.raises(httpx.ReadError):
            await ucaptcha_http_client.post("http://localhost/getBalance", json={"clientKey": "ucap_a"})

    @pytest.mark.ucaptcha(drop_error=httpx.RemoteProtocolError)
    async def test_chosen(ucaptcha_http_client, ucaptcha_service):
        ucaptcha_service.script("getBalance", Drop(before=True))
        with pytest.raises(httpx.RemoteProtocolError):
            await ucaptcha_http_client.post("http://localhost/getBalance", json={"clientKey": "ucap_a"})
    """
    )
    project.runpytest_inprocess().assert_outcomes(passed=4)


def test_a_real_socket_refuses_virtual_time(project: pytest.Pytester) -> None:
    """A clock that jumps would jump past the answers, so that is said at once; in real time it works."""
    project.makepyfile(
        HEAD
        + """
    pytestmark = pytest.mark.ucaptcha(immediate_types=["RecaptchaV2TaskProxyless"])

    async def solve():
        async with AsyncClient() as client:
            return await client.solve(TASK)

    async def test_virtual(ucaptcha_server):
        await solve()

    class TestReal:
        @pytest.fixture(params=["asyncio", ("trio", {})])
        def anyio_backend(self, request):
            return request.param

        async def test_real(self, ucaptcha_url, ucaptcha_service):
            await solve()
            assert len(ucaptcha_service.books.accepted) == 1
    """
    )
    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["ucaptcha_server needs real time, and the clock of this test jumps; *"])


def test_without_the_extra_only_sockets_are_missing(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without uvicorn the fixtures in this process work, and the server says what to install."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    project.makepyfile(
        HEAD
        + """
    async def test_in_process(ucaptcha_client):
        await ucaptcha_client.solve(TASK)

    def test_socket(ucaptcha_server): ...
    """
    )
    result = project.runpytest_inprocess()

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ImportError: * pip install 'ucaptcha_async?testing?'"])


def test_without_trio_there_is_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends have a clock that jumps, and ids that one can read; without trio there is only asyncio."""
    asyncio_only, trio_too = virtual_backends()
    assert [backend.id for backend in (asyncio_only, trio_too)] == ["asyncio", "trio"]
    assert asyncio_only.values == (("asyncio", {"loop_factory": VirtualLoop}),)
    name, options = trio_too.values[0]  # type: ignore[misc]
    assert name == "trio"
    assert isinstance(options["clock"], trio.testing.MockClock)

    monkeypatch.setitem(sys.modules, "trio.testing", None)
    assert [backend.id for backend in virtual_backends()] == ["asyncio"]


def test_unused_it_costs_nothing(project: pytest.Pytester) -> None:
    """A test run that does not use the plugin imports nothing of this package but the plugin itself."""
    project.makeconftest("")
    project.makepyfile("""
        import sys

        def test_modules(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("ucaptcha_async")
            ours = {name for name in sys.modules if name.startswith("ucaptcha_async")}
            assert ours == {"ucaptcha_async", "ucaptcha_async.testing", "ucaptcha_async.testing.plugin"}
            heavy = {"httpx", "httpcore", "httpx2", "uvicorn", "httptools", "aiohttp", "opentelemetry"}
            assert heavy.intersection(sys.modules) == set()
    """)
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_every_public_name_is_found() -> None:
    """Names are loaded on first use, and a wrong one is an AttributeError."""
    assert all(getattr(ucaptcha_async.testing, name) for name in ucaptcha_async.testing.__all__)
    assert set(dir(ucaptcha_async.testing)) >= set(ucaptcha_async.testing.__all__)
    with pytest.raises(AttributeError, match=r"'ucaptcha_async\.testing' has no attribute 'Book'"):
        ucaptcha_async.testing.Book  # type: ignore[attr-defined]  # noqa: B018


# --- the assertions ---------------------------------------------------------------------------------------------------


def record(number: int, **changes: object) -> TaskRecord:
    fields = {
        "id": f"t{number}",
        "type": "RecaptchaV2TaskProxyless",
        "key": "k",
        "created_at": 1.0,
        "ready_at": 9.0,
        "cost": Decimal("0.003"),
        "website_url": f"https://example.com/{number}",
        "website_key": "6Le-key",
        **changes,
    }
    return TaskRecord(**fields)  # type: ignore[arg-type]


def books_of(*tasks: TaskRecord) -> Books:
    books = Books(clock=lambda: 100.0)
    for task in tasks:
        books.note_task(task)
    return books


def message(check: Callable[[], None]) -> str:
    with pytest.raises(AssertionError) as caught:
        check()
    return str(caught.value)


def test_paid_once() -> None:
    """Two paid tasks for one page are one too many, unless one was refunded or several works are announced."""
    page = "https://example.com/login"
    first, second = record(1, website_url=page), record(2, website_url=page, first_delivered_at=12.0)
    refunded = record(3, website_url=page, error_code="ERROR_CAPTCHA_UNSOLVABLE")
    assert_paid_once(books_of(first, refunded, record(4), record(5, website_key="other")))
    assert_paid_once(books_of(first, second), solves=2)

    assert message(lambda: assert_paid_once(books_of(first, second, refunded))) == (
        "one job was paid for 2 times (if these are several, say how many: solves=…):\n"
        "  task t1 (RecaptchaV2TaskProxyless, https://example.com/login): 0.003 USD, accepted at 1.000 s, "
        "never asked for, as if the answer of createTask had not arrived\n"
        "  task t2 (RecaptchaV2TaskProxyless, https://example.com/login): 0.003 USD, accepted at 1.000 s, "
        "delivered at 12.000 s"
    )
    many = books_of(*map(record, range(8)))
    assert message(lambda: assert_paid_once(many, solves=7)).startswith("7 solves were to be paid for, and 8 were:")
    assert message(lambda: assert_paid_once(many, solves=7)).endswith("\n  and 3 more")
    assert message(lambda: assert_paid_once(books_of(), solves=1)) == "1 solves were to be paid for, and 0 were:"


def test_nothing_lost() -> None:
    """A paid task must have been delivered, or be known to the client or to the test, or be announced as uncertain."""
    delivered, refunded = record(1, first_delivered_at=9.0), record(2, error_code="ERROR_CAPTCHA_UNSOLVABLE")
    polled, unheard = record(3, polls=[6.0, 11.0]), record(4, website_url=None)
    books = books_of(delivered, refunded, polled, unheard)

    class Client:
        abandoned = ("t3",)

    assert_nothing_lost(books, Client(), known=["t4", None])
    assert_nothing_lost(books, Client(), uncertain=1)
    assert_nothing_lost(books_of(delivered, refunded))
    assert message(lambda: assert_nothing_lost(books, known=["t4"])) == (
        "1 task was paid for and lost:\n"
        "  task t3 (RecaptchaV2TaskProxyless, https://example.com/3): 0.003 USD, accepted at 1.000 s, "
        "asked for 2 times, last at 11.000 s, and never delivered"
    )
    assert "task t4 (RecaptchaV2TaskProxyless): 0.003" in message(lambda: assert_nothing_lost(books, Client()))
    assert message(lambda: assert_nothing_lost(books)).startswith("2 tasks were paid for and lost:")
    # What was asked for is known to somebody: it cannot be the one whose submit was uncertain.
    assert "task t3" in message(lambda: assert_nothing_lost(books_of(polled), uncertain=1))


def test_polite() -> None:
    """Neither a window nor a task may see more requests than the service allows."""
    books = books_of(record(1, polls=[5.0, 10.0, 15.0]), record(2, polls=[5.0]), record(3))
    for at in (1.0, 2.0, 10.9, 11.0):
        books.note_request(at, "createTask", 200, None, "k")
    assert_polite(books)
    assert_polite(books, limit=3)
    assert message(lambda: assert_polite(books, limit=2)) == "3 requests within 10 s, where 2 are allowed"
    assert_polite(books, limit=2, window=5)
    assert message(lambda: assert_polite(books, interval=6)) == (
        "1 task was polled sooner than every 6 s:\n"
        "  task t1 (RecaptchaV2TaskProxyless, https://example.com/1): after 5 s"
    )
    assert_polite(books, interval=5.4, tolerance=0.5)


# --- as others use it -------------------------------------------------------------------------------------------------


def test_the_page_of_the_documentation(project: pytest.Pytester) -> None:
    """Every test on the page passes, as the files that it shows."""
    (project.path / "conftest.py").unlink()
    files = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE))
    assert files.keys() >= {"conftest.py", "test_token.py"}
    for name, text in files.items():
        (project.path / name).write_text(text)
    result = project.runpytest_inprocess()

    count = sum(len(re.findall("^async def test_", text, re.MULTILINE)) for text in files.values())
    result.assert_outcomes(passed=2 * count + 1)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a copy of the foreign project, in a fresh environment where this package is installed."""
    place = tmp_path_factory.mktemp("foreign")
    project = shutil.copytree(FOREIGN, place / "project", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "conftest.py").unlink()
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    strange = ("PYTHONPATH", "PYTEST_", "UCAPTCHA_", "COVERAGE_", "COV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=600
        )

    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    done = run(*pip, f"ucaptcha_async[testing] @ {ROOT.as_uri()}", "pytest", "pytest-asyncio", "trio")
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_a_foreign_project(foreign: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A project that has the package installed runs its tests on asyncio and trio, all of them."""
    where = foreign("-c", "import ucaptcha_async; print(ucaptcha_async.__file__)").stdout
    assert "site-packages" in where

    done = foreign("-m", "pytest", "-v", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"= 17 passed in ", done.stdout), done.stdout
    for backend in ("asyncio", "trio"):
        for test in ("test_minutes_take_milliseconds", "test_a_client_of_its_own", "test_real_sockets"):
            assert f"{test}[{backend}] PASSED" in done.stdout


def test_a_project_with_pytest_asyncio(foreign: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The fixtures work in pytest-asyncio's auto mode too."""
    options = ("-o", "asyncio_mode=auto", "-o", "anyio_mode=strict", "-p", "no:cacheprovider")
    done = foreign("-m", "pytest", *options, "tests_pytest_asyncio")

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"= 3 passed in ", done.stdout), done.stdout
