"""Which keys have been met, on disk: a batch of a million lines must not hold a million keys in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from enum import IntEnum
from types import TracebackType
from typing import Self

CACHE_KB = 8192


class Met(IntEnum):
    """What is known of a key."""

    NEW = 0
    """Not met before."""
    SOLVED = 1
    """In the output, with a solution."""
    FAILED = 2
    """In the output, without one."""
    UNCERTAIN = 3
    """In the output: sent, and no answer came."""
    REPEATED = 4
    """Met before in this very input."""


class KeyIndex:
    """A temporary SQLite database, which vanishes with the process. Keys are kept as 16 bytes of their hash."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE keys (hash BLOB PRIMARY KEY, met INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def note(self, keys: Iterable[tuple[str, Met]]) -> None:
        """Take in what the output holds; the last word on a key counts."""
        rows = sorted((_hash(key), int(met)) for key, met in dict(keys).items())
        self._db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?)", rows)

    def meet(self, key: str) -> Met:
        """What was known of a key; from now on, it is repeated."""
        name = _hash(key)
        found = self._db.execute("SELECT met FROM keys WHERE hash = ?", (name,)).fetchone()
        self._db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (name, int(Met.REPEATED)))
        return Met.NEW if found is None else Met(found[0])


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
