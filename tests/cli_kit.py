"""How the tests run the command: as a process of its own, as people do, or in this one where that is enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ucaptcha_async.testing import RunningService

KEY = "ucap_0123456789abcdefghijklmnopqrstuv"
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
FAST = ("--poll-interval", "0.2")


@attrs.frozen
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(url: str | None, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UCAPTCHA_")}
    settings = {} if url is None else {"UCAPTCHA_BASE_URL": url, "UCAPTCHA_API_KEY": KEY}
    return {**kept, "COLUMNS": "100", "TERM": "xterm-256color", **settings, **more}


def start(url: str | None, *arguments: str | Path, stdin: Any = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ucaptcha_async", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(url), stdin=stdin, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str], timeout: float = 60) -> Ended:
    out, err = process.communicate(timeout=timeout)
    return Ended(process.returncode, out, err)


def ucaptcha(url: str | None, *arguments: str | Path, timeout: float = 60) -> Ended:
    return end(start(url, *arguments), timeout)


def task(number: int, **more: object) -> dict[str, object]:
    """A task that can be found in the service's books by its page."""
    return {"type": "turnstile", "website_url": page(number), "website_key": "0x4AAAAAAADnPIDROrmt1Wwj", **more}


def page(number: int) -> str:
    return f"https://example.com/{number}"


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def standing(service: RunningService) -> Iterator[str]:
    """The page of each charge that was not refunded."""
    books: Mapping[str, Any] = service.books(full=True)
    refunded = {entry["task_id"] for entry in books["refund_list"]}
    for entry in books["task_list"]:
        if entry["id"] not in refunded:
            yield entry["website_url"]


def wait_until(condition: Any, timeout: float = 20) -> None:
    end_at = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end_at, "it did not happen in time"
        time.sleep(0.02)


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
