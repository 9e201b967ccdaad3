"""Which processes that share a journal file are alive: each holds a lock that dies with it, however it dies."""

from __future__ import annotations

import os
import re
import uuid
import weakref
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
except ImportError:  # Windows
    LOCK_EX = LOCK_NB = LOCK_SH = 0  # type: ignore[misc]
    flock = None  # type: ignore[assignment]

_TOKEN = re.compile(r"[0-9a-f]{32}")


class Owner:
    """This process's mark on a journal file: a locked file beside it, `<journal>-owner-<token>`.

    The lock is `flock`'s, which the system drops when the process ends, SIGKILL included. Where there is no `fcntl`
    (Windows), the file is merely held open, because there an open file cannot be removed.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._fd: int | None = None
        self.token = ""

    @property
    def path(self) -> Path:
        """The mark."""
        return _mark(self._journal, self.token)

    def acquire(self) -> None:
        """Make the mark.

        Raises:
            OSError: The directory cannot be written, or the file system knows no locks.
        """
        while self._fd is None:
            self.token = uuid.uuid4().hex
            self._fd = _locked(self.path)
        _held.add(self)

    def release(self) -> None:
        """Remove the mark."""
        if self._fd is None:
            return
        path = self.path
        if flock is not None:
            path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None
        if flock is None:
            path.unlink(missing_ok=True)

    def disown(self) -> None:
        """In a forked child: let go of the parent's lock without removing it, or it would outlive the parent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


# The one piece of module state: a fork hook cannot be unregistered, so there is one, for all owners.
_held: weakref.WeakSet[Owner] = weakref.WeakSet()


def _disown_all() -> None:
    for owner in list(_held):
        owner.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def alive(journal: Path, token: str) -> bool:
    """Whether the process with this token lives. Removes the mark of a dead one.

    The token comes out of a file that others can write, so that nothing but a token may become a path.
    """
    if not _TOKEN.fullmatch(token):
        return False
    path = _mark(journal, token)
    return _is_held_open(path) if flock is None else _is_locked(path)


def sweep(journal: Path) -> list[str]:
    """Remove the marks that dead processes left; the tokens of the living."""
    prefix = f"{journal.name}-owner-"
    found = [path.name.removeprefix(prefix) for path in journal.parent.iterdir() if path.name.startswith(prefix)]
    return [token for token in found if alive(journal, token)]


def _mark(journal: Path, token: str) -> Path:
    return journal.with_name(f"{journal.name}-owner-{token}")


def _locked(path: Path) -> int | None:
    """Create and lock; None if a sweeper came between the two."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    if flock is None:
        return fd
    try:
        flock(fd, LOCK_EX | LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    os.close(fd)
    return None


def _is_locked(path: Path) -> bool:
    if flock is None:
        raise AssertionError("unreachable")
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown: taking a living process for dead could pay twice, the reverse only waits
    try:
        # Shared, so that two who look at the same time do not take each other for the owner.
        flock(fd, LOCK_SH | LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _is_held_open(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return True
    return False
