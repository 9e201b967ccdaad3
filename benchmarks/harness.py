"""Runs measurements: processes, pinning, rounds, medians."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs

from ucaptcha_async.testing.process import RunningService, running_service

from .meter import MARK

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
KEY = "ucap_benchmark"
LIBRARIES = ("ucaptcha_async", "httpx", "httpcore", "httpx2", "httpx-aiohttp", "aiohttp", "anyio", "uvicorn", "uvloop")


@attrs.frozen
class Figure:
    """The median of some runs, and their range.

    Attributes:
        median: Their median.
        low: The least.
        high: The greatest.
        runs: How many there were.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Figure | None:
        """From the values of the runs that have one."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.median(known), min(known), max(known), len(known))


@attrs.frozen(kw_only=True)
class Bench:
    """How one run of the command measures.

    Attributes:
        quick: A short run.
        runs: Repeats of each measurement.
        peers: The interpreters of the peers, by name.
        client_core: Where clients run; `None` where processes cannot be pinned.
        service_core: Where the service runs.
        trusted: The certificates of services over TLS, by their URL.
    """

    quick: bool = False
    runs: int = 3
    peers: dict[str, str] = attrs.field(factory=dict)
    client_core: int | None = None
    service_core: int | None = None
    trusted: dict[str, str] = attrs.field(factory=dict)

    def rounds(self, contestants: Sequence[T], runs: int | None = None) -> Iterator[tuple[int, T]]:
        """Every contestant once a round; each round begins with another one."""
        for number in range(runs or self.runs):
            start = number % len(contestants) if contestants else 0
            for contestant in [*contestants[start:], *contestants[:start]]:
                yield number, contestant

    @contextmanager
    def service(self, **options: Any) -> Iterator[RunningService]:
        """Run the local service on its core."""
        defaults = {"balance": 1_000_000, "books_detail": False, "idle_timeout": 120.0}
        arguments = {**defaults, **options}
        arguments["no_books_detail"] = not arguments.pop("books_detail")
        with running_service(**arguments) as service:
            self.trusted[service.url] = str(options.get("certificate") or "")
            yield service

    def measure(
        self, place: str, *, within: float = 60.0, python: str = sys.executable, **arguments: Any
    ) -> dict[str, Any] | None:
        """Run `MODULE:FUNCTION` in a process of its own, and return what it said; `None` if it said nothing."""
        spec = json.dumps({**arguments, "core": self.client_core})
        command = [python, "-m", "benchmarks.child", f"benchmarks.{place}", spec]
        try:
            variables = environment(self.trusted.get(arguments.get("url", "")))
            done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=within)
        except subprocess.TimeoutExpired:
            note(f"{place} {arguments}: no result within {within:g} s")
            return None
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if not lines:
            note(f"{place} {arguments}: exit code {done.returncode}\n{done.stderr[-2000:]}")
            return None
        result: dict[str, Any] = json.loads(lines[0].removeprefix(MARK))
        return result

    @contextmanager
    def beside(self, place: str, **arguments: Any) -> Iterator[Callable[[], dict[str, Any] | None]]:
        """Run a measurement at the same time; the value waits for its end and returns what it said."""
        spec = json.dumps({**arguments, "core": self.client_core})
        command = [sys.executable, "-m", "benchmarks.child", f"benchmarks.{place}", spec]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)

        def result() -> dict[str, Any] | None:
            output, _ = process.communicate(timeout=60)
            lines = [line for line in output.splitlines() if line.startswith(MARK)]
            return json.loads(lines[0].removeprefix(MARK)) if lines else None

        try:
            yield result
        finally:
            process.kill()
            process.wait()


def make_bench(*, quick: bool, runs: int | None, peers: dict[str, str]) -> Bench:
    """A bench for this machine. This process, and so the service, moves to the service's core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pinned = len(cores) > 1
    if pinned:
        os.sched_setaffinity(0, {cores[0]})
    return Bench(
        quick=quick,
        runs=runs or (1 if quick else 3),
        peers=peers,
        client_core=cores[-1] if pinned else None,
        service_core=cores[0] if pinned else None,
    )


def environment(certificate: str | None = None) -> dict[str, str]:
    """The environment of measured processes: no proxies, no debugging, bytecode is kept, one hash seed.

    Args:
        certificate: The file of a certificate to trust.
    """
    dropped = (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "pythonasynciodebug",
        "pythondevmode",
        "pythondontwritebytecode",
        "pythonprofileimporttime",
    )
    kept = {name: value for name, value in os.environ.items() if name.lower() not in dropped}
    trust = {"SSL_CERT_FILE": certificate} if certificate else {}
    return {**kept, **trust, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}


def installed(name: str) -> bool:
    """Whether a module can be imported here."""
    return importlib.util.find_spec(name) is not None


def facts(bench: Bench) -> dict[str, Any]:
    """What the figures depend on."""
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "client_core": bench.client_core,
        "service_core": bench.service_core,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "quick": bench.quick,
        "runs": bench.runs,
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def note(text: str) -> None:
    """Say something about the run; results go to standard output."""
    print(text, file=sys.stderr, flush=True)
