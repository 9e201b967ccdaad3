"""Real crashes: a process over real sockets is killed at random moments, and nothing paid is lost or paid twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ucaptcha_async.testing import LocalService, Server

ROOT = Path(__file__).parent.parent
WORKS = 60
KILLS = 16  # on each backend


def start(backend: str, url: str, journal: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash_worker", backend, url, str(journal), str(WORKS)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_killed_again_and_again(backend: str, tmp_path: Path) -> None:
    """SIGKILL at random moments, with the service restarted under it; the books show none lost and none paid twice."""
    rng = random.Random(backend)
    journal = tmp_path / "journal.sqlite"
    service = LocalService(solve_time=1.2, latency=0.03, seed=4)
    kills = 0
    with Server(service) as server:
        for round_ in range(KILLS):
            process = start(backend, server.url, journal)
            assert process.stdout is not None
            if "started" not in process.stdout.readline():
                raise AssertionError(process.communicate()[1])
            if round_ % 4 == 3:
                server.restart(down_for=0.1)
            time.sleep(rng.uniform(0, 0.35))
            kills += process.poll() is None
            process.kill()
            process.communicate()
        process = start(backend, server.url, journal)
        output, errors = process.communicate(timeout=120)

    assert 0 == process.returncode, errors
    said = [line.split() for line in output.splitlines()]
    solved = {line[1]: line[2] for line in said if line[0] == "solved"}
    uncertain = {line[1] for line in said if line[0] == "uncertain"}
    assert ["end"] == said[-1]
    assert not [line for line in said if line[0] == "failed"]
    assert kills >= KILLS - 4, "the process was finished before it could be killed: the test shows nothing"

    # Every piece of work is solved, or reported as uncertain; and every accepted task belongs to exactly one of them.
    assert WORKS == len(solved) + len(uncertain)
    accepted = set(service.books.accepted)
    assert set(solved.values()) <= accepted
    unknown = accepted - set(solved.values())
    assert len(unknown) <= len(uncertain), "a paid task is neither known nor reported"
    submits = Counter(record.status for record in service.books.requests if record.endpoint == "createTask")
    assert submits.total() <= WORKS
