"""What a journal tells and is told: values, and the reading of what a file holds."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import partial
from typing import Any, overload

import attrs

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.json_values import EXACT, JSON, NumericId, is_unicode

_NUMBER = re.compile(r"-?[0-9]{1,1000}(\.[0-9]{1,1000})?(E[+-]?[0-9]{1,2})?")  # int() refuses some thousand digits


class State(StrEnum):
    """How far a submit has come. The value is what the journal stores."""

    INTENT = "intent"
    """About to be sent, or being sent. Left behind by a dead process it counts as `UNCERTAIN`."""
    ACCEPTED = "accepted"
    """The service gave a task id: paid, and not finished."""
    UNCERTAIN = "uncertain"
    """Sent, and no answer was read: nobody knows whether the task exists."""
    SOLVED = "solved"
    """Finished with a solution."""
    FAILED = "failed"
    """Finished without one; refunded. The key is free again."""
    REFUSED = "refused"
    """Never accepted by the service. The key is free again."""
    FORGOTTEN = "forgotten"
    """Given up by hand, or replaced by a resubmission. The key is free again."""


OPEN = frozenset({State.INTENT, State.ACCEPTED, State.UNCERTAIN})
HOLDS_KEY = OPEN | {State.SOLVED}


class ClaimKind(StrEnum):
    """What `begin` found under a key."""

    NEW = "new"
    """Go ahead: the intent is written."""
    BUSY = "busy"
    """The same key is being submitted at this moment, here or in another living process: ask again soon."""
    HELD = "held"
    """The same key has a task already: wait for `task_id` instead of submitting."""
    UNCERTAIN = "uncertain"
    """The same key was submitted, and its fate is unknown."""
    DONE = "done"
    """The same key is solved."""


def new_id() -> str:
    """32 hex digits, of which the first 12 are the time in ms: an index of such ids grows at its end.

    With random ids each insertion would touch a page of its own, which doubles what a commit costs.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@attrs.frozen(kw_only=True)
class Intent:
    """A submit that is about to happen.

    Attributes:
        account: [`fingerprint`][ucaptcha_async.journal.fingerprint] of the API key and the service.
        host: The service's host, for listings.
        type: The task's type. Its other fields are not recorded: they may hold proxy passwords.
        key: The caller's name for the job; stored as it is. `None`: nameless, never deduplicated.
        submit_id: The row's own id, ordered by time.
        created_at: Wall time, Unix seconds.
        context: What a hook wants later processes to know of the solve: see [`Context`][ucaptcha_async.events.Context].
    """

    account: str
    host: str
    type: str
    key: str | None = None
    submit_id: str = attrs.field(factory=new_id)
    created_at: float = attrs.field(factory=time.time, converter=float)
    context: str | None = None


@attrs.frozen(kw_only=True)
class Entry:
    """One submit as the journal knows it.

    Attributes:
        submit_id: The row's own id.
        account: Fingerprint of the API key and the service.
        host: The service's host.
        type: The task's type.
        state: How far it has come.
        created_at: When the intent was written (UTC).
        updated_at: When the row last changed (UTC).
        key: The caller's name for the job.
        task_id: The service's id, once accepted.
        cost: USD, once known.
        error_code: The service's code of a failure or refusal.
        solve_time: Seconds, once known.
        solution: What the service sent, if solutions are stored. A secret: neither shown nor pickled.
        context: What a hook said of the solve at its start.
    """

    submit_id: str
    account: str
    host: str
    type: str
    state: State
    created_at: datetime
    updated_at: datetime
    key: str | None = None
    task_id: str | None = None
    cost: Decimal | None = None
    error_code: str | None = None
    solve_time: float | None = None
    solution: Mapping[str, JSON] | None = attrs.field(default=None, repr=False)
    context: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Entry, **attrs.asdict(self, recurse=False) | {"solution": None}), ()


@attrs.frozen(kw_only=True)
class Claim:
    """The answer of `begin`.

    Attributes:
        kind: What was found.
        entry: The row: the new one, or the one that holds the key.
        mine: Whether this journal is now answerable for the row. `False` with `HELD`: another living process waits for
            the same task already.
    """

    kind: ClaimKind
    entry: Entry
    mine: bool

    @property
    def submit_id(self) -> str:
        """The row to report on."""
        return self.entry.submit_id

    @property
    def task_id(self) -> str | None:
        """The task to wait for (`HELD`), or that solved it (`DONE`)."""
        return self.entry.task_id


@attrs.frozen(kw_only=True)
class Total:
    """How many rows of one type are in one state, and what they cost (USD)."""

    type: str
    state: State
    count: int
    cost: Decimal


def added_up(counts: Iterable[tuple[str, State, Decimal | None, int]]) -> list[Total]:
    """The totals of rows, of which each is given as type, state, cost, and how many there are of it."""
    found: dict[tuple[str, State], tuple[int, Decimal]] = {}
    for kind, state, cost, n in counts:
        count, spent = found.get((kind, state), (0, Decimal(0)))
        found[kind, state] = (count + n, EXACT.add(spent, EXACT.multiply(cost or Decimal(0), n)))
    return [Total(type=t, state=s, count=n, cost=c) for (t, s), (n, c) in sorted(found.items())]


def fingerprint(api_key: str, host: str) -> str:
    """Name an account without telling its key: the same key at the same host gives the same 32 hex digits."""
    return hashlib.sha256(f"ucaptcha_async\0{host.lower()}\0{api_key}".encode()).hexdigest()[:32]


def parsed(solution: str | None) -> dict[str, JSON] | None:
    """A stored solution; None for what is none."""
    try:
        value = None if solution is None else json.loads(solution)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decimal_or_none(text: str | None) -> Decimal | None:
    """A stored amount; None for what is none."""
    try:
        cost = None if text is None else Decimal(text)
    except InvalidOperation:
        return None
    return cost if cost is not None and cost.is_finite() else None


def moment(unix: float) -> datetime:
    """A stored time."""
    try:
        return datetime.fromtimestamp(unix, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def checked_intent(intent: Intent) -> Intent:
    """Refuse what no file could hold."""
    for field in ("account", "host", "type", "submit_id"):
        _text(field, getattr(intent, field))
    for field in ("key", "context"):
        if getattr(intent, field) is not None:
            _text(field, getattr(intent, field))
    return intent


def _text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value or not is_unicode(value):
        raise wrong(field, value, "a str that is not empty, without NUL and lone surrogates", ConfigurationError)


@overload
def clean(text: str) -> str: ...


@overload
def clean(text: str | None) -> str | None: ...


def clean(text: str | None) -> str | None:
    """Text of the service as a file can hold it: JSON may carry lone surrogates and NUL."""
    if text is None:
        return None
    cleaned = text.encode(errors="replace").decode().replace("\0", "?")
    return NumericId(cleaned) if isinstance(text, NumericId) else cleaned


def task_id_of(text: str | None, numeric: object) -> str | None:
    """A stored task id as the service spelled it; what is no number never counts as one."""
    return NumericId(text) if numeric and text is not None and _NUMBER.fullmatch(text) else text
