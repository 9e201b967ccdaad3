"""Paid tasks survive a crash: intent before the request, id after the answer, outcome at the end.

    begin ──▶ intent ─┬─▶ accepted ─┬─▶ solved       keeps its key
                      │     ▲│ lost └─▶ failed       frees its key
                      │     │▼
                      ├─▶ uncertain ──▶ forgotten    frees its key
                      ├─▶ refused                    frees its key
                      └─▶ (released: no row)

An `intent` whose process is dead counts as `uncertain`: the request may have been sent. A key names a job:
for each account it belongs to one row that is `intent`, `accepted`, `uncertain` or `solved`, whoever writes, so that
it is never submitted twice.

The file of [`SQLiteJournal`][ucaptcha_async.journal.SQLiteJournal] is a SQLite database (`application_id` 0x75436170,
`user_version` 1) with one table, which other programs may read:

| `submits` | type | meaning |
|---|---|---|
| `submit_id` | text, primary key | the row's own id; its first 12 hex digits are the time in ms |
| `account` | text | the first 32 hex digits of a SHA-256 of host and API key; never the key |
| `host` | text | the service's host |
| `key` | text or null | the caller's name for the job |
| `type` | text | the task's type; its other fields are not stored |
| `state` | text | `intent`, `accepted`, `uncertain`, `solved`, `failed`, `refused`, `forgotten` |
| `owner` | text or null | who works on it: the token in the name of a living process's lock file |
| `task_id` | text or null | the service's id |
| `cost` | text or null | USD, a decimal number |
| `error_code` | text or null | the service's code |
| `solve_time` | real or null | seconds |
| `created_at`, `updated_at` | real | Unix seconds |
| `solution` | text or null | JSON, only with `store_solutions=True` |
| `numeric_id` | integer or null | 1: the service gave `task_id` as a number; null: as text |
| `context` | text or null | what a hook said of the solve at its start, for example a `traceparent` |

Files of the first release lack the last two columns; they are added when a file is opened, and that release goes on to
use it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .base import Journal
from .records import Claim, ClaimKind, Entry, Intent, State, Total, fingerprint

if TYPE_CHECKING:
    from .memory import MemoryJournal
    from .sqlite import SQLiteJournal

__all__ = [
    "Claim",
    "ClaimKind",
    "Entry",
    "Intent",
    "Journal",
    "MemoryJournal",
    "SQLiteJournal",
    "State",
    "Total",
    "fingerprint",
]

_HOMES = {"MemoryJournal": ".memory", "SQLiteJournal": ".sqlite"}


def __getattr__(name: str) -> object:
    """A store is loaded when it is first used: most clients use one of them, or none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value
