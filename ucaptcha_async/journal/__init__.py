"""Paid tasks survive a crash: intent before the request, id after the answer, outcome at the end."""

from __future__ import annotations

from .base import Journal
from .ledger import Claim, ClaimKind, Entry, Intent, State, Total, fingerprint
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
