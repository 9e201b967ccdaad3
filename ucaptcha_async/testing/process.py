"""The local service as a second process, for tests, demonstrations and benchmarks."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from .control import fault_to_json
from .faults import Fault
from .scripts import FaultRates

OptionValue = str | int | float | bool | Sequence[str] | Mapping[str, object] | object


class RunningService:
    """A local service in a process of its own.

    Attributes:
        url: Its base URL.
        process: The process.
    """

    def __init__(self, arguments: Sequence[str], certificate: str | None = None) -> None:
        command = [sys.executable, "-m", "ucaptcha_async.testing", "--stop-on-eof", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        self._handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if certificate is not None:
            context = ssl.create_default_context(cafile=certificate)
            self._handlers.append(urllib.request.HTTPSHandler(context=context))
        self.url = self._address()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.process.pid

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def _address(self) -> str:
        assert self.process.stdout is not None  # it is a pipe
        line = self.process.stdout.readline().strip()
        if not line.startswith("listening on "):
            self._wait()
            raise RuntimeError(f"the local service did not start (exit code {self.process.returncode})")
        return line.removeprefix("listening on ")

    def books(self, *, full: bool = False) -> dict[str, object]:
        """Fetch the books; see `Books.as_json`."""
        return self._get(f"/books?full={int(full)}")

    def script(self, endpoint: str, *faults: Fault, task_id: str | None = None, task_type: str | None = None) -> None:
        """Let the next matching requests meet these faults; see `LocalService.script`."""
        steps = [fault_to_json(fault) for fault in faults]
        self._order(do="script", endpoint=endpoint, faults=steps, task_id=task_id, task_type=task_type)

    def set_rates(self, rates: FaultRates) -> None:
        """Set the faults that come at random."""
        pairs = [(fault_to_json(fault), rate) for fault, rate in rates.rates]
        self._order(do="rates", rates=pairs, seed=rates.seed, endpoints=rates.endpoints)

    def clear_faults(self) -> None:
        """Forget all faults that have not come yet."""
        self._order(do="clear")

    def solve_next(self, **plan: object) -> None:
        """Decide how the next tasks are solved; see `LocalService.solve_next`."""
        self._order(do="solve_next", **plan)

    def fail_next(self, error_code: str = "ERROR_CAPTCHA_UNSOLVABLE", **plan: object) -> None:
        """Let the next tasks fail; see `LocalService.fail_next`."""
        self._order(do="fail_next", error_code=error_code, **plan)

    def set(self, **options: float) -> None:
        """Change `latency`, `speed`, `failure_rate`, `rate_limit`, `idle_for` or `retention`."""
        self._order(do="set", **options)

    def _order(self, **order: object) -> None:
        answer = self._get("/control", json.dumps(order).encode())
        if "error" in answer:
            raise ValueError(answer["error"])

    def _get(self, path: str, body: bytes | None = None) -> dict[str, object]:
        opener = urllib.request.build_opener(*self._handlers)
        with opener.open(self.url + path, data=body, timeout=30) as answer:
            value: dict[str, object] = json.loads(answer.read())
        return value

    def terminate(self) -> int:
        """Ask it to stop, wait for it, and return its exit code."""
        self.process.terminate()
        return self._wait()

    def kill(self) -> int:
        """Kill it without warning, as a crash would, and return its exit code."""
        self.process.kill()
        return self._wait()

    def _wait(self) -> int:
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()


def start_service(**options: OptionValue) -> RunningService:
    """Start the local service as a second process; it stops when this process ends, or by `terminate` or `kill`.

    Args:
        options: The options of the command line (`python -m ucaptcha_async.testing --help`) with underscores, such as
            `seed=1, speed=10, keys=["ucap_a"], solve_time={"ImageToTextTask": "2"}`.
    """
    arguments = [argument for name, value in options.items() for argument in _arguments(name, value)]
    certificate = options.get("certificate")
    return RunningService(arguments, None if certificate is None else str(certificate))


@contextmanager
def running_service(**options: OptionValue) -> Iterator[RunningService]:
    """Run the local service as a second process for the length of the block; see `start_service`."""
    service = start_service(**options)
    try:
        yield service
    finally:
        service.terminate()


def _arguments(name: str, value: OptionValue) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        return [flag, *(f"{key}={item}" for key, item in value.items())]
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [flag, str(value)]
    return [flag, *map(str, value)]
