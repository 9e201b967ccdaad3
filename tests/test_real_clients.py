"""Clients that others made talk to the local service on a real socket, so that it is not merely our own idea.

Each is installed as published, into an environment of its own (`.venv-real/`, made when first needed), and runs in a
process that can reach this machine only. See `tests/real_clients/`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from ucaptcha_async.testing import DIALECTS, Dialect, LocalService, Server

HERE = Path(__file__).parent
SCRIPTS = HERE / "real_clients"
ENVIRONMENTS = HERE.parent / ".venv-real"
KEY = "ucap_0123456789abcdef0123456789abcdef"

INSTALL_TIMEOUT = 300  # s
RUN_TIMEOUT = 90  # s

SOLVES = ("v2", "v3", "proxy", "image", "geetest")


@attrs.frozen
class Client:
    """A package and the script that uses it."""

    requirement: str
    script: str

    @property
    def home(self) -> Path:
        return ENVIRONMENTS / self.requirement.partition("~")[0]


ANTICAPTCHA = Client("anticaptchaofficial~=1.0", "with_anticaptcha.py")
CAPMONSTER = Client("capmonstercloudclient~=4.3", "with_capmonster.py")
CAPSOLVER = Client("python3-capsolver~=1.2", "with_capsolver.py")

# uCaptcha's own answers, without what a client of another service cannot stand: an `idle` (`TypeError`).
BUSY_AT_ONCE = attrs.evolve(DIALECTS["ucaptcha"], name="ucaptcha, busy at once", idle=False)

RUNS: Mapping[str, tuple[Client, Dialect]] = {
    "anticaptcha": (ANTICAPTCHA, DIALECTS["anticaptcha"]),
    "anticaptcha at ucaptcha": (ANTICAPTCHA, BUSY_AT_ONCE),
    "capmonster": (CAPMONSTER, DIALECTS["capmonster"]),
    "capmonster at ucaptcha": (CAPMONSTER, BUSY_AT_ONCE),
    "capsolver": (CAPSOLVER, DIALECTS["capsolver"]),
}


@attrs.frozen
class Run:
    """What a client said of its scenarios, and the service that it talked to."""

    report: Mapping[str, Any]
    service: LocalService

    def returned(self, scenario: str) -> Any:
        told = self.report[scenario]
        assert "returned" in told, told["traceback"]
        return told["returned"]

    def solution(self, scenario: str) -> Any:
        """The solution as the client hands it out: the whole object, or the one value that it picks."""
        return self.returned(scenario)["solution"]

    def solutions(self, *types: str) -> list[Any]:
        """What the service gave out for tasks of these types."""
        return [task.solution for task in self.service.books.tasks.values() if task.type in types]


class UnreachableError(Exception):
    """There is no package index to install from."""


def installed(client: Client) -> Path:
    """The Python of the client's environment; makes it if it is not there, or not of this Python."""
    ENVIRONMENTS.mkdir(exist_ok=True)
    wanted = f"{client.requirement}\n{sys.version}\n"
    stamp, python = client.home / "installed.txt", client.home / "bin" / "python"
    with Path(f"{client.home}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(client.home, ignore_errors=True)
            venv.create(client.home, symlinks=True)
            install(python, client.requirement)
            stamp.write_text(wanted)
    return python


def install(python: Path, requirement: str) -> None:
    # Our own pip installs for it, so that it needs none: that halves the time.
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--disable-pip-version-check",
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
    if done.returncode and "connection broken by" in done.stderr:
        raise UnreachableError(done.stderr)
    assert done.returncode == 0, done.stderr


def run(client: Client, dialect: Dialect) -> Run:
    python = installed(client)
    service = LocalService(dialect=dialect, keys=[KEY], solve_time=0.4, idle_for=0.2, seed=7)
    for task_type in ("TurnstileTask", "TurnstileTaskProxyless", "AntiTurnstileTaskProxyLess"):
        service.fail_next(type=task_type)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with Server(service) as server:
        done = subprocess.run(
            # Nothing of this interpreter's environment, and nothing of the user's own packages.
            [str(python), "-E", "-s", str(SCRIPTS / client.script), server.url],
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return Run(json.loads(done.stdout), service)


@pytest.fixture(scope="module")
def running() -> Iterator[Mapping[str, Future[Run]]]:
    with ThreadPoolExecutor(len(RUNS)) as threads:
        yield {name: threads.submit(run, *what) for name, what in RUNS.items()}


@pytest.fixture
def ran(running: Mapping[str, Future[Run]], request: pytest.FixtureRequest) -> Run:
    try:
        return running[request.param].result()
    except UnreachableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no package index can be reached: {error}")


def with_runs(*names: str) -> Any:
    return pytest.mark.parametrize("ran", names, indirect=True)


@with_runs(*RUNS)
def test_solves(ran: Run) -> None:
    """Each kind of CAPTCHA that a client can ask this dialect for is solved, and what it hands out is what we gave."""
    given = [value for task in ran.service.books.tasks.values() for value in forms(task.solution)]
    for scenario in SOLVES:
        if refused_for_its_type(ran, scenario):
            continue
        solution = ran.solution(scenario)
        assert solution in given, scenario
        given.remove(solution)


def refused_for_its_type(ran: Run, scenario: str) -> bool:
    """CapMonster sends type names that mean "with a proxy" elsewhere, and fields that only it knows."""
    refused = ran.report[scenario].get("text") == "Cannot create task. Status code: 400."
    assert not refused or (ran.service.dialect is BUSY_AT_ONCE and scenario in ("v2", "geetest")), scenario
    return refused


def forms(solution: Mapping[str, Any]) -> Iterator[Any]:
    yield solution
    yield from solution.values()


@with_runs(*RUNS)
def test_all_is_paid_and_delivered(ran: Run) -> None:
    """Nothing that a client paid for was left behind, and the balance that it saw is that of the books."""
    books = ran.service.books
    solved = [task for task in books.tasks.values() if task.error_code is None]
    told = ran.returned("balance")
    seen = told["balance"] if isinstance(told, dict) else told

    # One task was only looked at once, by hand, where the client offers that.
    assert len(books.paid_not_delivered) == ("by hand" in ran.report)
    assert books.spent == sum(task.cost for task in solved)
    assert 100 - float(books.charged) - 1e-9 <= seen <= 100


@with_runs("anticaptcha", "capmonster", "capsolver")
def test_ids_are_known_again(ran: Run) -> None:
    """Numbers or UUIDs: each client asked for its tasks by the id that it was given."""
    books = ran.service.books

    assert len(books.tasks) >= len(SOLVES)
    assert all(task.polls or task.immediate for task in books.tasks.values())
    assert "createTask" in books.request_counts
    assert {status for status in books.status_counts if status not in (200, 401)} == set()


@with_runs("anticaptcha", "capmonster", "capsolver")
def test_unsolvable(ran: Run) -> None:
    """A failed solve is one to the client as well, by its own means, and refunded."""
    told = ran.report["unsolvable"]
    failed = [task for task in ran.service.books.tasks.values() if task.error_code]

    assert "ERROR_CAPTCHA_UNSOLVABLE" in json.dumps(told)
    assert "token" not in json.dumps(told.get("returned"))
    assert [True] == [task.refunded for task in failed]


@with_runs(*RUNS)
def test_wrong_key(ran: Run) -> None:
    """A wrong key is refused in words (or with the HTTP status) that the client understands, and costs nothing."""
    told = json.dumps(ran.report["wrong key"])

    assert "ERROR_KEY_DOES_NOT_EXIST" in told or "Status code: 401" in told


@with_runs("anticaptcha")
def test_reports(ran: Run) -> None:
    """Feedback by the endpoints of the family."""
    assert ran.returned("v2")["reports"] == [{"errorId": 0, "status": "success"}] * 2


@with_runs("capsolver")
def test_asynchronous_and_by_hand(ran: Run) -> None:
    """The client's asynchronous half, and its plain calls of the endpoints."""
    by_hand = ran.returned("by hand")

    assert ran.returned("v2 async")["status"] == "ready"
    assert ran.returned("balance async")["errorId"] == 0
    assert by_hand["created"]["status"] == "idle"
    assert by_hand["created"]["taskId"] == by_hand["result"]["taskId"]


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), 1)",
        "socket.getaddrinfo('example.com', 443)",
        "socket.gethostbyname('example.com')",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "urllib.request.urlopen('http://example.com/')",
    ],
)
def test_nothing_leaves_this_machine(attempt: str) -> None:
    """The guard under which the clients run refuses every way out, before a packet is sent."""
    program = f"import guard, socket, urllib.request; guard.stay_on_this_machine(); {attempt}"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, env=environment, check=False
    )

    assert done.returncode == 1
    assert "PermissionError: a connection to" in done.stderr
