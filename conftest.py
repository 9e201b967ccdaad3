"""Every example of the README, the documentation and the docstrings is run."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import time
import unittest
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.example import Example
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from ucaptcha_async.testing import KINDS, RunningService, running_service


def _installed(*packages: str) -> bool:
    """For `skip: next if(not installed(…))`."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _prepare(namespace: dict[str, object]) -> None:
    namespace["__name__"] = "__main__"  # as in a script; libraries ask where a function is from
    namespace["installed"] = _installed
    namespace["redis_runs"] = lambda: _REDIS.runs()


class _Redis:
    """A Redis for the examples that want one, started when the first of them asks."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def runs(self) -> bool:
        command = shutil.which("redis-server")
        if command is not None and self.process is None:
            arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            self.process = subprocess.Popen([command, *arguments], stdout=subprocess.DEVNULL)  # noqa: S603
            self._wait()
        return command is not None

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


_REDIS = _Redis()
_parsers = [PythonCodeBlockParser(), SkipParser()]
_fixtures = ["documented_service"]

_pages = Sybil(_parsers, patterns=["README.md", "docs/*.md", "docs/**/*.md"], fixtures=_fixtures, setup=_prepare)
_docstrings = Sybil(
    _parsers,
    patterns=["ucaptcha_async/*.py", "ucaptcha_async/**/*.py"],
    document_types={".py": PythonDocStringDocument},
    fixtures=_fixtures,
    setup=_prepare,
)
pytest_collect_file = (_pages + _docstrings).pytest()


@pytest.fixture(scope="session")
def _answering_at_once() -> Iterator[RunningService]:
    every_type = [name for kind in KINDS for name in kind.types]
    with running_service(immediate_types=every_type, rate_limit=10**6, allow_private_callbacks=True) as service:
        yield service
    _REDIS.stop()


_done: dict[Path, set[int]] = defaultdict(set)


def _catch_up(example: Example) -> None:
    """Run what stands before an example in its document, unless it was: alone, it would lack its names."""
    done = _done[Path(example.path)]
    for earlier in example.document.examples():
        if earlier.start < example.start and earlier.start not in done:
            done.add(earlier.start)
            with contextlib.suppress(unittest.SkipTest):
                earlier.evaluate()
    done.add(example.start)


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    return functools.cache(lambda document: tmp_path_factory.mktemp("example"))


@pytest.fixture
def documented_service(
    request: pytest.FixtureRequest,
    _answering_at_once: RunningService,
    _folders: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the examples find: a service that solves at once, a key, and a folder that one document has to itself."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UCAPTCHA_BASE_URL", _answering_at_once.url)
    monkeypatch.setenv("UCAPTCHA_API_KEY", "ucap_documentation")
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{_REDIS.port}")
    monkeypatch.chdir(_folders(request.node.path))
    _catch_up(request.node.example)
