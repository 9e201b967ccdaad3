"""A task of any type, and what all classes of tasks share: how fields are named, sent and shown."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeAlias, TypeVar

import attrs

from ucaptcha_async.checks import Seconds
from ucaptcha_async.errors import InvalidTaskError
from ucaptcha_async.json_values import JSON, camel, discreet, shown, to_json

from .fields import KEY, a_proxy, more_fields, page, type_name
from .fields import lifetime as seconds_or_none
from .names import Name, Names, kind_of, merge
from .proxy import Proxy
from .solutions import Solution

S_co = TypeVar("S_co", bound=Solution, covariant=True)

SolutionClass: TypeAlias = type[Solution]

Field: TypeAlias = "JSON | Proxy | Task[Solution] | Sequence[Field] | Mapping[str, Field]"
"""What a field of a raw task may be: JSON, with proxies and tasks anywhere inside."""

_PRIVATE = re.compile(r"(?i)proxy|pass|login|cookie|token|secret|body|image")
_LOGIN = re.compile(r'://[^/\s"@]*:[^/\s"]*@|"proxy_?[pP]ass')


class Task(Generic[S_co]):
    """A task of any type, and the base of all task classes.

    The fields are sent as they are given (`None` is left out), so write them as the service does: `websiteURL`.

    Tasks are immutable. Two tasks are equal if they are of one class and send the same; so they can be keys of a
    dict and members of a set. They can be copied, and pickled unless they hold a proxy's password.

    A subclass that only sets `solution_class` gives another type of CAPTCHA a typed solution:
    `class Puzzle(Task[PuzzleSolution]): solution_class = PuzzleSolution`.

    Source: docs/api/ucaptcha/create-task.

    Args:
        type: The task's type on the wire. Required, as the first argument.
        lifetime: How long its solutions are usually accepted, seconds or a timedelta. Never sent.
        fields: All other fields: JSON values, with a [`Proxy`][ucaptcha_async.Proxy] or another task anywhere inside.

    Raises:
        InvalidTaskError: `type` is empty, or a field is no JSON value.

    Example:
        ```python
        from ucaptcha_async import Task

        task = Task("AnyOtherTask", websiteURL="https://example.com", websiteKey="abc", pageTitle=None)
        assert task.to_wire() == {"type": "AnyOtherTask", "websiteURL": "https://example.com", "websiteKey": "abc"}
        ```
    """

    __slots__ = ("_fields", "_life", "_type")

    solution_class: ClassVar[SolutionClass] = Solution
    """What the solution of such a task is parsed as."""
    usual_lifetime: ClassVar[float | None] = None
    """How long such solutions are usually accepted, seconds; `None` if nobody knows."""

    _type: str | None
    _life: float | None
    _fields: Mapping[str, JSON]

    @discreet
    def __init__(
        self: Task[Solution],
        type: str,
        /,
        *,
        lifetime: Seconds | None = None,
        **fields: Field,
    ) -> None:
        if "type" in fields:
            raise InvalidTaskError("type must be given once, as the first argument", field="type")
        self.__setstate__(
            {"_type": type_name(type or ""), "_life": seconds_or_none(lifetime), "_fields": _raw_fields(fields)}
        )

    @classmethod
    def known_by_id(cls) -> Self:
        """A task of this class of which nothing but its id is known; it can be waited for, and not be sent."""
        task = cls.__new__(cls)
        Task.__setstate__(task, {"_type": cls.__name__, "_life": None, "_fields": {}})
        return task

    @property
    def type(self) -> str:
        """The task's type on the wire."""
        return self._type or ""

    @property
    def kind(self) -> str:
        """What kind of task it is, whatever its service calls it; for a type that is not known here, the type itself.

        Solve times, costs, statistics and the journal go by it.
        """
        return kind_of(self.type) or self.type

    def names(self) -> tuple[Name, ...]:
        """The types that may be tried, in order; none if the type was given."""
        return ()

    @property
    def lifetime(self) -> float | None:
        """How long the solutions of this task are usually accepted, seconds; `None` if nobody knows."""
        return self.usual_lifetime if self._life is None else self._life

    def to_wire(self, name: Name | None = None) -> dict[str, JSON]:
        """The `task` object of `createTask`. It may hold a proxy's password.

        Args:
            name: One of `names()`, to send the task under; otherwise the type that was given, or else the first.
        """
        return {"type": self.type} | {name: to_json(name, value) for name, value in self._fields.items()}

    def encode_nested(self) -> JSON:
        """How the task is written inside another value."""
        return self.to_wire()

    def _shown(self) -> Iterator[str]:
        yield repr(self.type)
        for name, value in self._fields.items():
            yield f"{name}={'<hidden>' if _PRIVATE.search(name) else shown(value)}"

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({', '.join(self._shown())})"

    def _identity(self) -> tuple[object, ...]:
        return self.__class__, self.lifetime, json.dumps(self.to_wire(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in Task.__slots__}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        if _LOGIN.search(json.dumps(self.to_wire())):
            raise TypeError("a task that holds a proxy's password is not pickled")
        return _restore, (self.__class__, self.__getstate__())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _restore(cls: type[Task[Solution]], state: dict[str, object]) -> Task[Solution]:
    task = cls.__new__(cls)
    task.__setstate__(state)
    return task


def _raw_fields(fields: Mapping[str, object]) -> dict[str, JSON]:
    wire: dict[str, JSON] = {}
    for name, value in fields.items():
        if name == "proxy" and isinstance(value, Proxy):
            wire |= value.to_wire()
        elif value is not None:
            wire[name] = to_json(name, value)
    return wire


_WIRE = "wire"


def sent(name: str | None, write: Callable[[Any], JSON] | None = None) -> dict[str, Any]:
    """Metadata of a field whose name on the wire is not simply its own in camel case, or that is not sent."""
    return {_WIRE: (name, write)}


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Widget(Task[S_co]):
    """What the classes of tasks share: each field that is not `None` is sent under its name in camel case."""

    type_names: ClassVar[Names]
    """What the services of the family call this kind of task."""

    _type: str | None = attrs.field(default=None, alias="type", converter=type_name, metadata=sent(None))
    _life: float | None = attrs.field(default=None, alias="lifetime", converter=seconds_or_none, metadata=sent(None))
    extra: Mapping[str, JSON] = attrs.field(factory=dict, validator=more_fields, metadata=sent(None), repr=False)

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(self.__class__):
            value = getattr(self, field.name)
            if isinstance(value, str | Mapping):  # a copy, so that nobody changes it later; and proof that it is JSON
                object.__setattr__(self, field.name, to_json(field.name, value))

    @property
    def type(self) -> str:
        """The task's type on the wire: the one that was given, or the usual one."""
        return self._type or self._usual_name().type

    @property
    def kind(self) -> str:
        """What kind of task it is, whatever its service calls it; a type that was given is looked up."""
        return self.type_names.kind if self._type is None else super().kind

    def names(self) -> tuple[Name, ...]:
        """The types that may be tried, in order, as far as they go with the fields that are set.

        None if the type was given, or if no service takes all these fields.
        """
        return () if self._type else self.type_names.fitting(self._optional(), self._proxied())

    def _usual_name(self) -> Name:
        return self.type_names.usual(self._optional(), self._proxied())

    def _proxied(self) -> bool:
        return getattr(self, "proxy", None) is not None

    def _optional(self) -> dict[str, object]:
        cls: Any = self.__class__  # its own hash is that of its instances, to a type checker
        values = ((field, getattr(self, field)) for field in _optional_fields(cls))
        return {field: value for field, value in values if value is not None}

    def to_wire(self, name: Name | None = None) -> dict[str, JSON]:
        """The `task` object of `createTask`. It may hold a proxy's password.

        Args:
            name: One of `names()`, to send the task under; otherwise the type that was given, or else the first.
        """
        if name is None and self._type is None:
            name = self._usual_name()
        wire: dict[str, JSON] = {"type": name.type if name else self.type}
        for field in attrs.fields(self.__class__):
            value = getattr(self, field.name)
            spelled = name.write(field.name, value) if name and value is not None else None
            key, write = field.metadata.get(_WIRE, (camel(field.name), None))
            if isinstance(value, Proxy):
                wire |= value.to_wire(name.proxy if name else "url")
            elif spelled is not None:
                merge(wire, spelled)
            elif value is not None and key is not None:
                wire[key] = write(value) if write else to_json(field.name, value)
        return wire | {key: to_json(key, value) for key, value in self.extra.items()}

    def _shown(self) -> Iterator[str]:
        for field in attrs.fields(self.__class__):
            value = getattr(self, field.name)
            if field.init and value is not None and value != {}:
                yield f"{field.alias}={shown(value) if field.repr else '<hidden>'}"


@functools.cache
def _optional_fields(cls: Any) -> tuple[str, ...]:
    """The fields of a class that need not be set, and that not every service takes."""
    own = (field for field in attrs.fields(cls) if field.init and field.default is None)
    return tuple(field.name for field in own if field.name != "proxy" and not field.name.startswith("_"))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class OnPage(Widget[S_co]):
    """A widget on a page, solved with or without a proxy."""

    website_url: str = attrs.field(validator=page, metadata=sent("websiteURL"))
    proxy: Proxy | None = attrs.field(default=None, validator=a_proxy)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class WithKey(OnPage[S_co]):
    """A widget on a page, known by its site key."""

    website_key: str = attrs.field(validator=KEY)
