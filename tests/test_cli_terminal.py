"""`ucaptcha` on a pseudo-terminal: what people see while something runs."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli_kit import FAST, environment, task, write_lines
from ucaptcha_async.testing import running_service

pyte = pytest.importorskip("pyte")
pty = pytest.importorskip("pty")
pytest.importorskip("cyclopts")


class Terminal:
    """A command on a terminal of its own, and what its screen shows."""

    def __init__(self, url: str | None, *arguments: str | Path, columns: int = 100) -> None:
        self.screen = pyte.Screen(columns, 40)
        self._stream = pyte.Stream(self.screen)
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.seen: list[str] = []
        self._fd, child = pty.openpty()
        command = [sys.executable, "-m", "ucaptcha_async", *map(str, arguments)]
        settings = environment(url, COLUMNS=str(columns), LINES="40")
        self.process = subprocess.Popen(command, env=settings, stdin=child, stdout=child, stderr=child)
        os.close(child)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).strip()

    def read(self) -> bool:
        """Take in what is there; whether the command still runs."""
        ready, _, _ = select.select([self._fd], [], [], 0.05)
        try:
            data = os.read(self._fd, 65536) if ready else b""
        except OSError:  # what Linux says at the end
            return False
        if data:
            self._stream.feed(self._decode(data))
            self.seen.append(self.text)
        return bool(data) or self.process.poll() is None

    def watch(self, until: Callable[[str], object] = lambda text: False, timeout: float = 40) -> None:
        """Read until the screen shows something, or the end."""
        end_at = time.monotonic() + timeout
        while not until(self.text) and self.read():
            assert time.monotonic() < end_at, self.text

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        self.watch()
        return self.process.wait(10)


@pytest.fixture
def slow_service() -> Iterator[str]:
    with running_service(speed=10, seed=2) as running:
        yield running.url


def test_demo_draws_its_progress_and_leaves_the_table() -> None:
    """The live display is gone at the end; the result stays."""
    with Terminal(None, "demo", "--count", "50") as terminal:
        assert terminal.end() == 0

    drawn = [text for text in terminal.seen if "in flight" in text and "requests/s" in text]
    assert len(drawn) > 3
    assert any(re.search(r"Turnstile +\d+ +\d+ +\d\.\d s +\d\.\d s +0\.\d+", text) for text in drawn)
    assert "charged once per solved task: yes" in terminal.text
    assert "in flight" not in terminal.text
    assert "task type" in terminal.text


def test_batch_draws_all_that_it_knows(slow_service: str, tmp_path: Path) -> None:
    """Done, failed, in flight, requests a second against the limit, quantiles, money, time left."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(40)])
    with Terminal(slow_service, "batch", tasks, "-o", tmp_path / "r", "--max-in-flight", "10", *FAST) as terminal:
        assert terminal.end() == 0

    fullest = next(text for text in reversed(terminal.seen) if re.search(r" left\n(.*\n)+Turnstile .* s ", text))
    assert re.search(r"\b\d+/40\b", fullest)
    for pattern in (
        r"\d+ solved",
        r"\d+ failed",
        r"\d+ in flight",
        r"\d+ of 1,000 requests/s",
        r"USD 0\.\d+ spent",
        r"[\d.]+ s left",
        r"solved +failed +p50 +p90 +USD",
        r"Turnstile +\d+ +\d+ +\d+\.\d s +\d+\.\d s +0\.\d+",
    ):
        assert re.search(pattern, fullest), (pattern, fullest)
    assert "40 solved, 0 failed" in terminal.text


def test_batch_tells_on_the_terminal_that_it_is_stopping(slow_service: str, tmp_path: Path) -> None:
    """And the terminal is left in order: the cursor is back."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(40)])
    with Terminal(slow_service, "batch", tasks, "-o", tmp_path / "r", "--max-in-flight", "10", *FAST) as terminal:
        terminal.watch(lambda text: re.search(r"[1-9]\d* solved", text))
        assert terminal.screen.cursor.hidden
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130

    assert any("stopping" in text for text in terminal.seen)
    assert not terminal.screen.cursor.hidden


def test_narrow_terminal_is_enough(slow_service: str, tmp_path: Path) -> None:
    """Nothing breaks at 40 columns."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(5)])
    with Terminal(slow_service, "batch", tasks, "-o", tmp_path / "r", *FAST, columns=40) as terminal:
        assert terminal.end() == 0

    assert "5 solved" in terminal.text
    assert "Traceback" not in "".join(terminal.seen)


def test_standard_input_that_is_a_terminal_is_no_input(slow_service: str, tmp_path: Path) -> None:
    """Nobody types tasks: it says what to do instead of waiting."""
    with Terminal(slow_service, "batch", "-", "-o", tmp_path / "r") as terminal:
        assert terminal.end() == 2

    assert "standard input is a terminal" in terminal.text


def test_solve_shows_that_it_waits(slow_service: str) -> None:
    """On a terminal: for which task, and how long already; at the end the token alone is left, and the facts."""
    words = ("solve", "turnstile", "website-url=https://example.com", "website-key=0x4", *FAST)
    with Terminal(slow_service, *words) as terminal:
        assert terminal.end() == 0

    shown = [text for text in terminal.seen if re.search(r"waiting for task \S+, \d+\.\d s", text)]
    assert len(set(shown)) > 2
    assert "waiting" not in terminal.text
    assert "solved in" in terminal.text


def test_serve_says_how_to_use_it() -> None:
    """To people; programs read the address alone."""
    with Terminal(None, "serve") as terminal:
        terminal.watch(lambda text: "export" in text)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0

    [url] = re.findall(r"listening on (\S+)", terminal.text)
    assert f"export UCAPTCHA_BASE_URL={url} UCAPTCHA_API_KEY=ucap_any" in terminal.text


@pytest.mark.parametrize("command", ["solve", "batch"])
def test_the_live_line_says_that_the_service_is_away(command: str, tmp_path: Path) -> None:
    """Why, and for how long already; the log told it once, with what happens next."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1)])
    words: dict[str, tuple[str | Path, ...]] = {
        "solve": ("turnstile", "website-url=https://example.com", "website-key=0x4"),
        "batch": (tasks, "-o", tmp_path / "r"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with Terminal(url, command, *words[command], "--timeout", "2") as terminal:
        assert terminal.end() == 4

    shown = {seconds for text in terminal.seen for seconds in re.findall(AWAY, text)}
    assert len(shown) > 2
    assert "waiting for the service" not in terminal.text
    assert "\n".join(terminal.seen[-1:]).count("the service cannot be reached: createTask: connection refused;") == 1


AWAY = r"waiting for the service: connection refused, (\d+\.\d) s"
