"""The rules of a journal: what each report does to the rows. Pure: no file, no clock, no await."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Protocol, overload

import attrs

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import ConfigurationError, JournalError

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


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


@attrs.frozen(kw_only=True)
class Intent:
    """A submit that is about to happen.

    Attributes:
        account: [`fingerprint`][ucaptcha_async.journal.fingerprint] of the API key and the service.
        host: The service's host, for listings.
        type: The task's type. Its other fields are not recorded: they may hold proxy passwords.
        key: The caller's name for the piece of work; stored as it is. `None`: nameless, never deduplicated.
        submit_id: The row's own id.
        created_at: Wall time, Unix seconds.
    """

    account: str
    host: str
    type: str
    key: str | None = None
    submit_id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    created_at: float = attrs.field(factory=time.time)


@attrs.frozen(kw_only=True)
class Entry:
    """One submit as the journal knows it.

    Attributes:
        submit_id: The row's own id.
        account: Fingerprint of the API key and the service.
        host: The service's host.
        type: The task's type.
        key: The caller's name for the piece of work.
        state: How far it has come.
        task_id: The service's id, once accepted.
        cost: USD, once known.
        error_code: The service's code of a failure or refusal.
        solve_time: Seconds, once known.
        created_at: When the intent was written (UTC).
        updated_at: When the row last changed (UTC).
        solution: What the service sent, if solutions are stored. A secret: not in the repr.
    """

    submit_id: str
    account: str
    host: str
    type: str
    key: str | None = None
    state: State
    task_id: str | None = None
    cost: Decimal | None = None
    error_code: str | None = None
    solve_time: float | None = None
    created_at: datetime
    updated_at: datetime
    solution: Mapping[str, JSON] | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Claim:
    """The answer of `begin`.

    Attributes:
        kind: What was found.
        entry: The row: the new one, or the one that holds the key.
        mine: Whether this journal is now answerable for the row. `False` with `HELD`: somebody alive waits for the same
            task already.
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


def fingerprint(api_key: str, host: str) -> str:
    """Name an account without telling its key: the same key at the same host gives the same 32 hex digits."""
    return hashlib.sha256(f"ucaptcha_async\0{host.lower()}\0{api_key}".encode()).hexdigest()[:32]


@attrs.define(eq=False)
class Row:
    """A row in the hands of the rules."""

    submit_id: str
    account: str
    host: str
    key: str | None
    type: str
    state: State
    owner: str | None
    task_id: str | None = None
    cost: str | None = None
    error_code: str | None = None
    solve_time: float | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    solution: Mapping[str, JSON] | None = attrs.field(default=None, repr=False)

    def entry(self, state: State | None = None) -> Entry:
        """The row as others see it."""
        return Entry(
            submit_id=self.submit_id,
            account=self.account,
            host=self.host,
            type=self.type,
            key=self.key,
            state=state or self.state,
            task_id=self.task_id,
            cost=decimal_or_none(self.cost),
            error_code=self.error_code,
            solve_time=self.solve_time,
            created_at=_moment(self.created_at),
            updated_at=_moment(self.updated_at),
            solution=self.solution,
        )


def decimal_or_none(text: str | None) -> Decimal | None:
    """A stored amount; None for what is none."""
    try:
        cost = None if text is None else Decimal(text)
    except InvalidOperation:
        return None
    return cost if cost is not None and cost.is_finite() else None


def _moment(unix: float) -> datetime:
    try:
        return datetime.fromtimestamp(unix, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


class Book:
    """Rows in memory while the rules look at them, found by id and by the key that they hold."""

    def __init__(self, owner: str = "") -> None:
        self.owner = owner
        self.by_id: dict[str, Row] = {}
        self.by_key: dict[tuple[str, str], Row] = {}

    def row(self, submit_id: str) -> Row | None:
        """The row with this id."""
        return self.by_id.get(submit_id)

    def holder(self, account: str, key: str) -> Row | None:
        """The row that holds the key."""
        return self.by_key.get((account, key))

    def put(self, row: Row) -> None:
        """Keep the row, new or changed."""
        self.by_id[row.submit_id] = row
        if row.key is None:
            return
        if row.state in HOLDS_KEY:
            self.by_key[row.account, row.key] = row
        elif self.by_key.get((row.account, row.key)) is row:
            del self.by_key[row.account, row.key]

    def drop(self, row: Row) -> None:
        """Remove the row."""
        del self.by_id[row.submit_id]
        if row.key is not None and self.by_key.get((row.account, row.key)) is row:
            del self.by_key[row.account, row.key]

    def alive(self, owner: str) -> bool:
        """Whether the process with this token still lives."""
        raise NotImplementedError


def is_free(book: Book, row: Row) -> bool:
    """Whether nobody alive is working on the row."""
    return row.owner is None or not book.alive(row.owner)


class Change(Protocol):
    """One report, to be applied to a book."""

    @property
    def submit_id(self) -> str:
        """The row that it concerns."""
        ...

    @property
    def holds(self) -> tuple[str, str] | None:
        """The (account, key) whose holder it needs to see."""
        ...

    def apply(self, book: Book, now: float) -> object:
        """Do it, and answer the caller."""
        ...


@attrs.frozen
class Begin:
    """An intent asks whether it may go ahead."""

    intent: Intent
    resubmit: bool = False

    @property
    def submit_id(self) -> str:
        """The new row."""
        return self.intent.submit_id

    @property
    def holds(self) -> tuple[str, str] | None:
        """The name of the work, if it has one."""
        return None if self.intent.key is None else (self.intent.account, self.intent.key)

    def apply(self, book: Book, now: float) -> Claim:
        """Write the intent, or say what holds the key."""
        holder = book.holder(*self.holds) if self.holds else None
        if holder is None:
            return self._new(book, now)
        if holder.state is State.SOLVED:
            return Claim(kind=ClaimKind.DONE, entry=holder.entry(), mine=False)
        free = is_free(book, holder)
        if holder.state is State.ACCEPTED:
            return self._held(book, holder, free=free)
        if holder.state is State.INTENT and not free:
            return Claim(kind=ClaimKind.BUSY, entry=holder.entry(), mine=False)
        return self._uncertain(book, holder, now)

    def _new(self, book: Book, now: float) -> Claim:
        intent = self.intent
        if book.row(intent.submit_id) is not None:
            raise JournalError(f"the intent {intent.submit_id} was begun before")
        row = Row(
            submit_id=intent.submit_id,
            account=intent.account,
            host=intent.host,
            key=intent.key,
            type=intent.type,
            state=State.INTENT,
            owner=book.owner,
            created_at=intent.created_at,
            updated_at=now,
        )
        book.put(row)
        return Claim(kind=ClaimKind.NEW, entry=row.entry(), mine=True)

    def _held(self, book: Book, holder: Row, *, free: bool) -> Claim:
        if free:
            holder.owner = book.owner
            book.put(holder)
        return Claim(kind=ClaimKind.HELD, entry=holder.entry(), mine=free)

    def _uncertain(self, book: Book, holder: Row, now: float) -> Claim:
        holder.state = State.FORGOTTEN if self.resubmit else State.UNCERTAIN
        holder.owner = None
        holder.updated_at = now
        book.put(holder)
        if self.resubmit:
            return self._new(book, now)
        return Claim(kind=ClaimKind.UNCERTAIN, entry=holder.entry(), mine=False)


@attrs.frozen
class _Report:
    """A report about a row that exists."""

    submit_id: str

    @property
    def holds(self) -> tuple[str, str] | None:
        """Reports need no other row."""
        return None

    def known(self, book: Book) -> Row:
        """The row, or an error: a report on nothing is not to pass in silence."""
        row = book.row(self.submit_id)
        if row is None:
            raise JournalError(f"the journal has no submit {self.submit_id}")
        return row

    def save(self, book: Book, row: Row, state: State, now: float, owner: str | None = None) -> None:
        """Put the row in a state."""
        row.state, row.owner, row.updated_at = state, owner, now
        book.put(row)


@attrs.frozen
class Accepted(_Report):
    """The service gave a task id."""

    task_id: str

    def apply(self, book: Book, now: float) -> None:
        """Keep the id, whatever the state; an open row becomes accepted."""
        row = self.known(book)
        row.task_id = row.task_id or self.task_id
        state = State.ACCEPTED if row.state in OPEN else row.state
        self.save(book, row, state, now, book.owner if row.state in OPEN else row.owner)


@attrs.frozen
class Finished(_Report):
    """The task has ended."""

    state: State
    task_id: str | None = None
    cost: str | None = None
    error_code: str | None = None
    solve_time: float | None = None
    solution: Mapping[str, JSON] | None = attrs.field(default=None, repr=False)

    def apply(self, book: Book, now: float) -> bool:
        """End an open row; the first report counts."""
        row = self.known(book)
        if row.state not in OPEN:
            return False
        row.task_id = row.task_id or self.task_id
        row.cost, row.error_code, row.solve_time = self.cost, self.error_code, self.solve_time
        row.solution = self.solution
        self.save(book, row, self.state, now)
        return True


@attrs.frozen
class Uncertain(_Report):
    """Sent, and no answer."""

    def apply(self, book: Book, now: float) -> None:
        """An intent becomes uncertain; a row that knows its task id stays what it is."""
        row = self.known(book)
        if row.state is State.INTENT:
            self.save(book, row, State.UNCERTAIN, now)


@attrs.frozen
class Refused(_Report):
    """The service did not take it."""

    error_code: str | None = None

    def apply(self, book: Book, now: float) -> None:
        """An open row without a task id is refused."""
        row = self.known(book)
        if row.state in (State.INTENT, State.UNCERTAIN):
            row.error_code = self.error_code
            self.save(book, row, State.REFUSED, now)


@attrs.frozen
class Released(_Report):
    """It was never sent."""

    def apply(self, book: Book, now: float) -> None:
        """An intent leaves no trace."""
        row = book.row(self.submit_id)
        if row is not None and row.state is State.INTENT:
            book.drop(row)


@attrs.frozen
class Abandoned(_Report):
    """Nobody here waits for it any more."""

    def apply(self, book: Book, now: float) -> None:
        """An open row may be taken up by anybody; an intent may have been sent."""
        row = self.known(book)
        if row.state in OPEN:
            self.save(book, row, State.UNCERTAIN if row.state is State.INTENT else row.state, now)


@attrs.frozen
class Forgotten(_Report):
    """Given up by hand."""

    def apply(self, book: Book, now: float) -> bool:
        """Any row that holds a key, unless somebody alive works on it, gives it up."""
        row = self.known(book)
        if row.state not in HOLDS_KEY or (row.state in OPEN and row.owner is not None and book.alive(row.owner)):
            return False
        row.solution = None
        self.save(book, row, State.FORGOTTEN, now)
        return True


@attrs.frozen
class TakeUp(_Report):
    """A recovering process wants a row that a dead one left."""

    def apply(self, book: Book, now: float) -> Entry | None:
        """The first to ask gets it; a dead process's intent becomes uncertain."""
        row = book.row(self.submit_id)
        if row is None or row.state not in OPEN or not is_free(book, row):
            return None
        self.save(book, row, State.UNCERTAIN if row.state is State.INTENT else row.state, now, book.owner)
        return row.entry()


def checked_intent(intent: Intent) -> Intent:
    """Refuse what no file could hold."""
    for field in ("account", "host", "type", "submit_id"):
        _text(field, getattr(intent, field))
    if intent.key is not None:
        _text("key", intent.key)
    return intent


def _text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value or not _encodes(value):
        raise wrong(field, value, "a str that is not empty, without NUL and lone surrogates", ConfigurationError)


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@overload
def clean(text: str) -> str: ...


@overload
def clean(text: str | None) -> str | None: ...


def clean(text: str | None) -> str | None:
    """Text of the service as a file can hold it: JSON may carry lone surrogates and NUL."""
    return None if text is None else text.encode(errors="replace").decode().replace("\0", "?")
