"""The output: one line of JSON for each job that has ended, appended by one write each."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from ucaptcha_async.cli.exits import CommandError, Exit

from .index import KeyIndex, Met

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATUSES = {"solved": Met.SOLVED, "failed": Met.FAILED, "uncertain": Met.UNCERTAIN}
"""The words in the field `status`."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

BATCH = 5_000
"""Lines that are taken into the index at once."""


@attrs.define(eq=False)
class Results:
    """The output, open for appending.

    Attributes:
        name: How messages call it.
        earlier: How many lines an earlier run has left.
    """

    name: str
    _fd: int = attrs.field(repr=False)
    _size: int | None = None
    earlier: int = 0

    @classmethod
    def open(cls, path: Path, index: KeyIndex) -> Results:
        """Open the output, mend its end, and take what it holds into the index.

        Raises:
            CommandError: It cannot be used: no permission, in use by another batch, or not an output of this command.
        """
        try:
            fd = os.open(path, _FLAGS, 0o600)  # it will hold tokens: for the owner's eyes only
        except OSError as error:
            raise CommandError(f"the output {str(path)!r} cannot be opened: {error.strerror}", Exit.FILE) from None
        results = cls(str(path), fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a named pipe, a device: nothing to look back at
            return results
        try:
            results._lock()
            results._look_back(path, index)
        except BaseException:
            results.close()
            raise
        return results

    @classmethod
    def to_stdout(cls) -> Results:
        """The output on standard output: nothing to look back at."""
        if sys.stdout is None:
            raise CommandError("standard output is closed", Exit.FILE)
        sys.stdout.flush()
        return cls("standard output", os.dup(sys.stdout.fileno()))

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"the output {self.name!r} is being written by another batch", Exit.FILE) from None
        except OSError:  # a file system without locks
            return

    def _look_back(self, path: Path, index: KeyIndex) -> None:
        good, ended = 0, True
        met: list[tuple[str, Met]] = []
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                found = _read(line)
                if found is None and not line.endswith(b"\n"):
                    break
                if found is None:
                    message = f"line {number} of {self.name!r} is no result of this command; give another output"
                    raise CommandError(message, Exit.FILE)
                met.append(found)
                good += len(line)
                ended = line.endswith(b"\n")
                self.earlier += 1
                if len(met) >= BATCH:
                    index.note(met)
                    met.clear()
        index.note(met)
        self._mend(good, ended=ended)

    def _mend(self, good: int, *, ended: bool) -> None:
        """Cut a line that was torn by a crash; the journal has what it said. End one that lacks only its end."""
        os.ftruncate(self._fd, good)
        self._size = good
        if not ended:
            self._append(b"\n")

    def write(self, record: Mapping[str, object]) -> None:
        """Append one result. When this returns, it outlives the death of the process.

        Raises:
            CommandError: It was not written, and no part of it was left behind.
            BrokenPipeError: Standard output was closed.
        """
        self._append(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n")

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._size is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
            raise CommandError(f"{self.name} cannot be written: {error.strerror}", Exit.FILE) from None
        if self._size is not None:
            self._size += len(data)


def _read(line: bytes) -> tuple[str, Met] | None:
    """The key and the state in a line, if it is a result."""
    try:
        record = json.loads(line)
        return str(record["key"]), STATUSES[record["status"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_results(path: Path) -> Iterator[dict[str, object]]:
    """All results in an output; a torn last line is left out.

    Raises:
        CommandError: It cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if _read(line) is not None:
                    yield json.loads(line)
                elif line.endswith(b"\n"):
                    raise CommandError(f"line {number} of {str(path)!r} is no result of ucaptcha batch", Exit.FILE)
    except OSError as error:
        raise CommandError(f"{str(path)!r} cannot be read: {error.strerror}", Exit.FILE) from None


@attrs.define(eq=False)
class Rejects:
    """The lines of the input that are no tasks, with the reason. Written anew by each run, like the input is read.

    Attributes:
        path: The file; made with the first reject. `None`: counted only.
        count: How many.
        first: Where and why the first one was, in words.
    """

    path: Path | None
    count: int = 0
    first: str = ""
    _fd: int | None = None

    def begin(self) -> None:
        """Forget those of an earlier run."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def write(self, record: Mapping[str, object]) -> None:
        """Add one."""
        self.count += 1
        place = next((f"{unit} {record[unit]}: " for unit in ("line", "item", "file") if unit in record), "")
        self.first = self.first or f"{place}{record.get('reason')}"
        if self.path is None:
            return
        if self._fd is None:
            # A line may hold a proxy's password: for the owner's eyes only.
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.write(self._fd, json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n")

    def close(self) -> None:
        """Let it go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
