# ruff: noqa: F811 - fixtures come from redis_kit, and are named again where they are used
"""The example programs for worker engines, run as a user runs them: real workers, one killed while it solves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from ucaptcha_async.testing import RunningService, running_service

from .redis_kit import Server, own_server, redis_marks  # noqa: F401

pytest.importorskip("coredis")
pytestmark = [*redis_marks, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

EXAMPLES = Path(__file__).parent.parent / "docs/how-to/workers"
WORKERS = {
    "taskiq": ["taskiq", "worker", "taskiq_jobs:broker", "--workers", "3"],
    "celery": ["celery", "-A", "celery_jobs", "worker", "--pool", "prefork", "--concurrency", "3"],
}
PAGES = [f"https://example.com/{number}" for number in range(30)]


@attrs.define
class Engine:
    """An engine's workers, and what its example program says."""

    kind: str
    service: RunningService
    environment: dict[str, str]
    workers: subprocess.Popen[bytes]
    log: Path

    def ask(self) -> subprocess.Popen[str]:
        """Run the program that sends jobs."""
        command = [sys.executable, str(EXAMPLES / f"{self.kind}_jobs.py"), *PAGES]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)

    def tasks(self) -> list[Any]:
        books: Any = self.service.books(full=True)
        return list(books["task_list"])

    def busiest(self) -> int:
        """The worker process with the most connections to the service."""
        pids = [
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == self.workers.pid
        ]
        assert len(pids) >= 3
        return max(pids, key=lambda pid: _connections(pid, self.service.port))


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _connections(pid: int, port: int) -> int:
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if int(line[2].split(":")[1], 16) == port}
    return sum(str(path.readlink()) in sockets for path in Path(f"/proc/{pid}/fd").iterdir())


@contextmanager
def running(kind: str, server: Server, folder: Path, **settings: str) -> Iterator[Engine]:
    server.is_old("ucaptcha:{limit:office}", "ucaptcha:{in-flight:office}")
    with running_service(solve_time=3.0, rate_limit=10**6) as service, (folder / "log").open("wb") as log:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parents[2]}",
            "REDIS_URL": server.url,
            "UCAPTCHA_BASE_URL": service.url,
            "UCAPTCHA_API_KEY": "ucap_workers",
            "WORKER_LEASE": "2",
            "WORKER_REDELIVER": "4",
            "WORKER_SOLVE": "40",
            **settings,
        }
        command = [sys.executable, "-m", *WORKERS[kind]]
        workers = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            yield Engine(kind, service, environment, workers, folder / "log")
        finally:
            workers.kill()
            workers.wait()


@pytest.mark.parametrize("kind", ["taskiq", "celery"])
def test_a_worker_is_killed_while_it_solves(own_server: Server, tmp_path: Path, kind: str) -> None:
    """Every job ends with a token, and each was paid for once."""
    pytest.importorskip(kind)
    own_server.kill_and_start("--appendonly", "yes", "--appendfsync", "always")
    with running(kind, own_server, tmp_path) as engine:
        with engine.ask() as program:
            deadline = time.monotonic() + 60
            while len(engine.tasks()) < len(PAGES):
                assert time.monotonic() < deadline, engine.log.read_text()
                time.sleep(0.05)
            time.sleep(0.3)  # the journal has their ids by now
            begun: Any = engine.service.books()
            os.kill(engine.busiest(), signal.SIGKILL)
            tokens = json.loads(program.communicate(timeout=60)[0])
        engine.workers.terminate()
        code = engine.workers.wait(timeout=30)
        books: Any = engine.service.books()
        tasks = engine.tasks()

    assert begun["delivered"] < len(PAGES)
    assert sorted(tokens) == sorted(PAGES)
    assert len(set(tokens.values())) == len(PAGES)
    assert all(isinstance(token, str) for token in tokens.values())
    assert sorted(task["website_url"] for task in tasks) == sorted(PAGES)
    assert Decimal(books["spent"]) == len(PAGES) * Decimal("0.00145")
    assert code == 0, engine.log.read_text()
