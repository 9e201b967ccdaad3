"""The rules of a journal: what each report does to the rows. Pure: no file, no clock, no await."""

from __future__ import annotations

import attrs

from ucaptcha_async.errors import JournalError
from ucaptcha_async.json_values import NumericId

from .records import HOLDS_KEY, OPEN, Claim, ClaimKind, Entry, Intent, State, decimal_or_none, moment, parsed


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
    solution: str | None = attrs.field(default=None, repr=False)
    context: str | None = None

    @property
    def numeric_id(self) -> int | None:
        """How a file tells that the service gave its id as a number."""
        return 1 if isinstance(self.task_id, NumericId) else None

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
            created_at=moment(self.created_at),
            updated_at=moment(self.updated_at),
            solution=parsed(self.solution),
            context=self.context,
        )


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


@attrs.frozen
class Change:
    """One report, to be applied to a book."""

    submit_id: str

    @property
    def holds(self) -> tuple[str, str] | None:
        """The (account, key) whose holder it needs to see, besides its own row."""
        return None

    def apply(self, book: Book, now: float) -> object:
        """Do it, and answer the caller."""
        raise NotImplementedError

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
class Begin(Change):
    """An intent asks whether it may go ahead."""

    intent: Intent
    resubmit: bool = False
    submit_id: str = attrs.field(init=False, default=attrs.Factory(lambda me: me.intent.submit_id, takes_self=True))

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
        row = Row(**attrs.asdict(intent), state=State.INTENT, owner=book.owner, updated_at=now)
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
class Accepted(Change):
    """The service gave a task id."""

    task_id: str

    def apply(self, book: Book, now: float) -> None:
        """Keep the id, whatever the state; an open row becomes accepted."""
        row = self.known(book)
        row.task_id = row.task_id or self.task_id
        state = State.ACCEPTED if row.state in OPEN else row.state
        self.save(book, row, state, now, book.owner if row.state in OPEN else row.owner)


@attrs.frozen
class Finished(Change):
    """The task has ended."""

    state: State
    task_id: str | None = None
    cost: str | None = None
    error_code: str | None = None
    solve_time: float | None = None
    solution: str | None = attrs.field(default=None, repr=False)

    def apply(self, book: Book, now: float) -> bool:
        """End an open row; the first report counts. A forgotten row stays forgotten, and keeps what it has cost."""
        row = self.known(book)
        if row.state is State.FORGOTTEN and row.cost is None and self.cost is not None:
            row.cost = self.cost
            self.save(book, row, State.FORGOTTEN, now)
            return True
        if row.state not in OPEN:
            return False
        row.task_id = row.task_id or self.task_id
        row.cost, row.error_code, row.solve_time = self.cost, self.error_code, self.solve_time
        row.solution = self.solution
        self.save(book, row, self.state, now)
        return True


@attrs.frozen
class Uncertain(Change):
    """Sent, and no answer."""

    def apply(self, book: Book, now: float) -> None:
        """An intent becomes uncertain; an accepted row stays what it is."""
        row = self.known(book)
        if row.state in (State.INTENT, State.UNCERTAIN):
            self.save(book, row, State.UNCERTAIN, now)


@attrs.frozen
class Lost(Change):
    """The service does not know the task any more."""

    def apply(self, book: Book, now: float) -> None:
        """An open row becomes uncertain, and keeps its task id."""
        row = self.known(book)
        if row.state in OPEN:
            self.save(book, row, State.UNCERTAIN, now)


@attrs.frozen
class Refused(Change):
    """The service did not take it."""

    error_code: str | None = None

    def apply(self, book: Book, now: float) -> None:
        """An open row without a task id is refused."""
        row = self.known(book)
        if row.state in OPEN and row.task_id is None:
            row.error_code = self.error_code
            self.save(book, row, State.REFUSED, now)


@attrs.frozen
class Released(Change):
    """It was never sent."""

    def apply(self, book: Book, now: float) -> None:
        """An intent leaves no trace, also if others have taken its process for dead meanwhile."""
        row = book.row(self.submit_id)
        if row is not None and row.state in (State.INTENT, State.UNCERTAIN) and row.task_id is None:
            book.drop(row)


@attrs.frozen
class Abandoned(Change):
    """Nobody here waits for it any more."""

    def apply(self, book: Book, now: float) -> None:
        """An open row may be taken up by anybody; an intent may have been sent. Not if it is another's by now."""
        row = self.known(book)
        if row.state in OPEN and row.owner in (None, book.owner):
            self.save(book, row, State.UNCERTAIN if row.state is State.INTENT else row.state, now)


@attrs.frozen
class Forgotten(Change):
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
class TakeUp(Change):
    """A recovering process wants a row that a dead one left."""

    def apply(self, book: Book, now: float) -> Entry | None:
        """The first to ask gets it; a dead process's intent becomes uncertain."""
        row = book.row(self.submit_id)
        if row is None or row.state not in OPEN or not is_free(book, row):
            return None
        self.save(book, row, State.UNCERTAIN if row.state is State.INTENT else row.state, now, book.owner)
        return row.entry()
