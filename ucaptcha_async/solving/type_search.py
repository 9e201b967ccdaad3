"""Which of a kind's type names a service takes: found out by its refusals, which cost nothing, and remembered.

What is known of a service is shared by all clients of the process with the same account and host. Whoever searches
(the *scout*) and whoever waits for it share an event loop, because a waiting task belongs to one.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, NamedTuple

import anyio
import attrs
from anyio.lowlevel import RunVar

from ucaptcha_async.errors import UCaptchaError, UnsupportedTaskError
from ucaptcha_async.pacing.wait_queue import WaitQueue
from ucaptcha_async.tasks.base import Task
from ucaptcha_async.tasks.names import Name

logger = logging.getLogger("ucaptcha_async")

UNKNOWN_TYPE = frozenset(
    {
        "TASK_NOT_SUPPORTED",
        "ERROR_TASK_NOT_SUPPORTED",
        "ERROR_NO_SUCH_METHOD",
        "TASK_TYPE_NOT_SUPPORTED",
        "ERROR_TASK_TYPE_NOT_SUPPORTED",
        "UNSUPPORTED_TASK_TYPE",
        "ERROR_UNSUPPORTED_TASK_TYPE",
        "UNKNOWN_TASK_TYPE",
        "ERROR_UNKNOWN_TASK_TYPE",
        "INVALID_TASK_TYPE",
        "ERROR_INVALID_TASK_TYPE",
    }
)
"""Codes that say that the service does not know the type, and nothing else.

The first is uCaptcha's (docs/api/error-codes); anti-captcha and 2captcha list the next two, as 23 and 14; the rest is
inferred: other words for the same. `ERROR_METHOD_CALL` is not one of them: 2captcha's in.php says it of missing
parameters, too, and another name would not help then.
"""

REMEMBER_REFUSAL = 60.0
"""Seconds for which tasks fail without a request, once all names that fit them were refused."""

_MOST_ACCOUNTS = 1_000


class Key(NamedTuple):
    """What a name is known for: services may differ by provider."""

    kind: str
    proxied: bool
    provider: str | None


@attrs.define(eq=False)
class Known:
    """What is known of one kind at one service. No I/O, no clock.

    Attributes:
        accepted: Types that the service has taken.
        refused: Types that it does not know.
        given_up: When all names of a task were refused, in seconds on the clock of the event loop that learned it. All
            loops of asyncio have one clock; on another the time may mean nothing, and then a search is made.
    """

    accepted: set[str] = attrs.field(factory=set)
    refused: set[str] = attrs.field(factory=set)
    given_up: float = -math.inf

    def first(self, names: tuple[Name, ...], tried: Collection[str] = ()) -> Name | None:
        """The name to send: the first that was not refused and is not one of those; `None` if there is none."""
        for name in names:
            if name.type not in self.refused and name.type not in tried:
                return name
        return None

    def accept(self, type: str) -> bool:
        """Take note of a success. Returns whether it is news."""
        news = type not in self.accepted
        self.accepted.add(type)
        self.refused.discard(type)
        return news

    def refuse(self, type: str) -> None:
        """Take note of a refusal. If the type was good until now, the service has changed: nothing else counts."""
        if type in self.accepted:
            self.accepted.clear()
            self.refused.clear()
        self.refused.add(type)

    def forget(self, names: tuple[Name, ...]) -> None:
        """Let these names be tried again."""
        self.refused -= {name.type for name in names}


@attrs.define(eq=False)
class _Scouting:
    """The search for one kind's name in one event loop: at most one submit searches, the others wait in line."""

    busy: bool = False
    line: WaitQueue[None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.line = WaitQueue(lambda _: self.line.call(None))  # the turn is another's


_SCOUTINGS: RunVar[dict[Known, _Scouting]] = RunVar("ucaptcha_async.type_search")


def _scouting(known: Known) -> _Scouting:
    """The search in this event loop for what one `Known` is to learn."""
    try:
        every = _SCOUTINGS.get()
    except LookupError:
        _SCOUTINGS.set(every := {})
    return every.setdefault(known, _Scouting())


@attrs.define(eq=False)
class TypeNames:
    """What one account at one host takes; `shared` gives the same one to all clients of the process."""

    _known: dict[Key, Known] = attrs.field(factory=dict)

    async def begin(self, task: Task[Any], provider: str | None) -> Search:
        """Choose the name to send a task under, for one `createTask` and its repetitions.

        As long as another submit of the kind searches, this one waits. Call `end` afterwards, whatever happens.

        Raises:
            UnsupportedTaskError: All names were refused within the last 60 s.
        """
        names = task.names()
        if not names:
            return Search(names)
        key = Key(task.kind, getattr(task, "proxy", None) is not None, provider)
        search = Search(names, self._known.get(key) or self._known.setdefault(key, Known()), key)
        await search.choose()
        return search


@attrs.define(eq=False)
class Search:
    """The names of one task: which to send now, and what came of it.

    Attributes:
        name: The name to send; `None` if the task has its own type, which nothing replaces.
        tried: The types that were refused in this search.
    """

    names: tuple[Name, ...]
    _known: Known = attrs.field(factory=Known)
    _key: Key | None = None
    name: Name | None = attrs.field(init=False, default=None)
    tried: list[str] = attrs.field(init=False, factory=list)
    _scouts: _Scouting | None = attrs.field(init=False, default=None)

    async def choose(self) -> None:
        """Set `name`: a name that is known to be good, or as the scout the next to try."""
        name = self._next()
        if self._scouts is None and self._good(name):
            self.name = name  # nearly always
        elif self.names:
            self.name = await self._found()

    async def _found(self) -> Name:
        """Wait for whoever searches, or search."""
        scouting, waited = self._scouts or _scouting(self._known), False
        while self._scouts is None and scouting.busy and not self._good(self._next()):
            await scouting.line.wait()
            waited = True
        name = self._next() or self._again()
        if name is not None and not self._good(name):
            self._scouts, scouting.busy = scouting, True
        else:
            self.end()
            if waited:
                scouting.line.call_all(None)  # whoever called this one may have called no other
        if name is None:
            raise self._unsupported()
        return name

    def _good(self, name: Name | None) -> bool:
        return name is not None and name.type in self._known.accepted

    def _next(self) -> Name | None:
        return self._known.first(self.names, self.tried)

    def _again(self) -> Name | None:
        """The first name once more, if it is long ago that all were refused."""
        if self.tried or 0 <= anyio.current_time() - self._known.given_up < REMEMBER_REFUSAL:
            return None
        self._known.forget(self.names)
        return self.names[0]

    async def refused(self, error: UCaptchaError) -> bool:
        """Take note that the service refused the task.

        Args:
            error: What came of `createTask`. Call this only if it is proved that no task was accepted.

        Returns:
            Whether it was refused because its type is unknown, and there is another `name` to send. `False`: the
            refusal is about something else.

        Raises:
            UnsupportedTaskError: All names are refused now.
        """
        if self.name is None or (error.error_code or "").upper() not in UNKNOWN_TYPE or error.task_id is not None:
            return False
        self.tried.append(self.name.type)
        self._known.refuse(self.name.type)
        if self._next() is None:
            self._known.given_up = anyio.current_time()
        try:
            await self.choose()
        except UnsupportedTaskError as unsupported:
            unsupported.error_code = error.error_code
            raise unsupported from error
        return True

    def accepted(self) -> bool:
        """Take note that the service took the task, and let the others go on.

        Returns:
            Whether this ended a search, which an event should tell of.
        """
        if self.name is None or self._key is None:
            return False
        news = self._known.accept(self.name.type)
        self.end()
        if not news or not (self.tried or self.name.inferred):
            return False
        level = logging.WARNING if self.name.inferred else logging.INFO
        logger.log(level, "%s", _told(self._key, self.name, self.tried))
        return True

    def end(self) -> None:
        """Stop searching: all who wait go on if a name is known or none is left, otherwise one of them searches."""
        scouting, self._scouts = self._scouts, None
        if scouting is None:
            return
        scouting.busy = False
        name = self._next()
        if name is None or self._good(name):
            scouting.line.call_all(None)
        else:
            scouting.line.call(None)

    def _unsupported(self) -> UnsupportedTaskError:
        kind = self._key.kind if self._key else ""
        types = ", ".join(name.type for name in self.names)
        message = f"the service takes {kind} tasks under none of these types: {types} (set 'type' to send another)"
        return UnsupportedTaskError(message, field="type")


def _told(key: Key, name: Name, tried: list[str]) -> str:
    how = f" after it refused {', '.join(tried)}" if tried else ""
    text = f"the service takes {key.kind} tasks as {name.type}{how}"
    if name.inferred:
        text += "; that this name, or the spelling of its fields, means the same is only inferred: check the solutions"
    return text


_SHARED: OrderedDict[tuple[str, str], TypeNames] = OrderedDict()


def shared(host: str, account: str) -> TypeNames:
    """What is known of a service, by all clients of this process with this account."""
    if (host, account) not in _SHARED and len(_SHARED) >= _MOST_ACCOUNTS:
        _SHARED.popitem(last=False)
    return _SHARED.setdefault((host, account), TypeNames())


def forget_all() -> None:
    """Forget what is known of all services, for tests."""
    _SHARED.clear()
