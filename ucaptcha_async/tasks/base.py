"""A task of any type, and what all classes of tasks share: how fields are named, sent and shown."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Self, SupportsIndex, TypeAlias, TypeVar

import attrs

from ucaptcha_async.checks import Seconds, Validator, wrong
from ucaptcha_async.errors import InvalidTaskError
from ucaptcha_async.json_values import JSON, camel, copied, shown, to_json
from ucaptcha_async.secrecy import OwnCopy, SecretMapping, hidden, masked

from .fields import a_copy, a_lifetime, a_type, an_extra, is_key
from .fields import lifetime as seconds_or_none
from .names import Form, Name, Names, form_of, kind_of, merge
from .proxy import Proxy
from .solutions import Solution

S_co = TypeVar("S_co", bound=Solution, covariant=True)
T = TypeVar("T", bound="Task[Any]")

SolutionClass: TypeAlias = type[Solution]

Field: TypeAlias = "JSON | Proxy | Task[Solution] | Sequence[Field] | Mapping[str, Field]"
"""What a field of a raw task may be: JSON, with proxies and tasks anywhere inside."""

_PRIVATE = re.compile(r"(?i)proxy|pass|login|cookie|token|secret|body|image")
_LOGIN = re.compile(r"(://[^/\s:@]*):[^\s]*@")
_PASSWORD = re.compile(r"(?i)proxy_?pass|password")


class Task(OwnCopy, Generic[S_co]):
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

    solution_class: ClassVar[SolutionClass] = Solution
    """What the solution of such a task is parsed as."""
    usual_lifetime: ClassVar[float | None] = None
    """How long such solutions are usually accepted, seconds; `None` if it is not known."""

    __slots__ = ("__weakref__", "_fields", "_life", "_type")

    _type: str | None
    _life: float | None
    _fields: Mapping[str, JSON]

    def __init__(
        self: Task[Solution],
        type: str,
        /,
        *,
        lifetime: Seconds | None = None,
        **fields: Field,
    ) -> None:
        fields = hidden(fields)
        _fill(self, {"_type": "", "_life": None, "_fields": {}})  # the traceback of a refusal may show it
        if "type" in fields:
            raise InvalidTaskError("type must be given once, as the first argument", field="type")
        if not is_key(type):
            raise wrong("type", type, "non-empty text without white space")
        _fill(self, {"_type": type, "_life": seconds_or_none(lifetime), "_fields": _raw_fields(fields)})

    @classmethod
    def known_by_id(cls) -> Self:
        """A task of this class of which nothing but its id is known; it can be waited for, and not be sent."""
        return _restored(cls, {"_type": cls.__name__, "_life": None, "_fields": {}})

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
        """How long the solutions of this task are usually accepted, seconds; `None` if it is not known."""
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

    def _state(self) -> dict[str, object]:
        """All that is set, with its values in sight."""
        state: Any = object.__getstate__(self)
        of_subclasses, own = state  # the first is `None` unless a subclass has other attributes than slots
        values = own | (of_subclasses or {})
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def without_password(self) -> Self:
        """The same task without the password of its proxy, for what must not hold one, such as a pickle.

        A [`Proxy`][ucaptcha_async.Proxy] keeps all but its password, fields called `proxyPassword` or the like are
        left out, and `user:password@` in a URL becomes `user@`.
        """
        state = {name: _without_password(name, value) for name, value in self._state().items()}
        return _restored(self.__class__, state)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        wire = self.to_wire()
        if _without_password("", wire) != wire:
            raise TypeError("a task that holds a proxy's password is not pickled")
        return _restored, (self.__class__, self._state())


def _restored(cls: type[T], state: Mapping[str, object]) -> T:
    """A task of a class in which this, and nothing else, is set."""
    task = cls.__new__(cls)
    _fill(task, state)
    return task


def _fill(task: Task[Any], state: Mapping[str, object]) -> None:
    for name, value in state.items():
        object.__setattr__(task, name, hidden(value) if isinstance(value, Mapping) else value)


def _raw_fields(fields: Mapping[str, object]) -> Mapping[str, JSON]:
    wire = copied({name: value for name, value in fields.items() if value is not None})
    proxy = fields.get("proxy")
    if isinstance(proxy, Proxy):
        del wire["proxy"]
        wire |= proxy.to_wire()
    return hidden(wire)


def _without_password(name: str, value: Any) -> Any:
    if isinstance(value, Proxy):
        return value.without_password()
    if isinstance(value, Mapping):
        return {key: _without_password(key, item) for key, item in value.items() if not _PASSWORD.search(key)}
    if isinstance(value, list | tuple):
        return [_without_password(name, item) for item in value]
    if not isinstance(value, str):
        return value
    return _LOGIN.sub(r"\1@", _proxy_without_password(value) if name == "proxy" else value)


def _proxy_without_password(text: str) -> str:
    try:
        proxy = Proxy.parse(text)
    except InvalidTaskError:
        return text
    return text if proxy.password is None else proxy.without_password().to_url()


_WIRE = "wire"


def sent(name: str | None, write: Callable[[Any], JSON] | None = None) -> dict[str, Any]:
    """Metadata of a field whose name on the wire is not simply its own in camel case, or that is not sent."""
    return {_WIRE: (name, write)}


class _Signature:
    """A class is called as its `__init__` says, though its `__new__` takes any fields: the required ones first.

    A subclass may make fields of its own that are no keywords only: those stay in front.
    """

    def __get__(self, instance: object, cls: type[object]) -> inspect.Signature:
        init = inspect.signature(cls.__init__)
        _, *fields = init.parameters.values()
        return init.replace(parameters=sorted(fields, key=lambda field: (field.kind, field.default is not field.empty)))


class _Layout(NamedTuple):
    """What is the same for all tasks of a class: its fields, the required ones first.

    Attributes:
        every: All of them.
        checked: Those that are checked, each as it is given, and how.
        optional: The names of those that not every service takes.
        sent: The names of those that are sent, each on the wire, and how it is written if not simply as JSON.
    """

    every: tuple[attrs.Attribute[Any], ...]
    checked: tuple[tuple[str, attrs.Attribute[Any], Validator], ...]
    optional: tuple[str, ...]
    sent: tuple[tuple[str, str, Callable[[Any], JSON] | None], ...]


@functools.cache
def _layout_of(cls: Any) -> _Layout:
    every = tuple(sorted(attrs.fields(cls), key=lambda field: field.default is not attrs.NOTHING))
    written = ((field.name, *field.metadata.get(_WIRE, (camel(field.name), None))) for field in every)
    return _Layout(
        every=every,
        checked=tuple((field.alias or field.name, field, field.validator) for field in every if field.validator),
        optional=tuple(field.name for field in every if _is_optional(field)),
        sent=tuple((field, key, write) for field, key, write in written if key is not None),
    )


def _kept(fields: Mapping[str, JSON] | None) -> Mapping[str, JSON] | None:
    return a_copy(fields) if fields else None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Widget(Task[S_co]):
    """What the classes of tasks share: each field that is not `None` is sent under its name in camel case."""

    type_names: ClassVar[Names]
    """What the services of the family call this kind of task."""
    __signature__ = _Signature()

    _type: str | None = attrs.field(default=None, alias="type", validator=a_type, metadata=sent(None))
    _life: float | None = attrs.field(
        default=None, alias="lifetime", converter=seconds_or_none, validator=a_lifetime, metadata=sent(None)
    )
    _extra: Mapping[str, JSON] | None = attrs.field(
        default=None, alias="extra", converter=_kept, validator=an_extra, metadata=sent(None), repr=False
    )

    def __new__(cls, **given: Any) -> Self:
        """Check the fields, out of sight: the frame of the `__init__` that attrs writes shows all of them."""
        given = hidden(given)
        for name, field, check in cls._layout().checked:
            if name not in given:
                continue
            value = masked(given[name])
            check(None, field, value)
            if isinstance(value, str | Mapping):
                to_json(name, given[name])  # proof that it is JSON
        cls._check_together(given)
        return super().__new__(cls)

    @classmethod
    def known_by_id(cls) -> Self:
        """A task of this class of which nothing but its id is known; it can be waited for, and not be sent."""
        return _restored(cls, {field.name: None for field in cls._layout().every} | {"_type": cls.__name__})

    @classmethod
    def _check_together(cls, given: Mapping[str, Any]) -> None:
        """Check the fields that depend on each other."""

    @property
    def type(self) -> str:
        """The task's type on the wire: the one that was given, or the usual one."""
        return self._type or self._usual_name().type

    @property
    def extra(self) -> Mapping[str, JSON]:
        """More fields, as the service spells them."""
        return SecretMapping() if self._extra is None else self._extra

    @property
    def kind(self) -> str:
        """What kind of task it is, whatever its service calls it; a type that was given is looked up."""
        return self.type_names.kind if self._type is None else super().kind

    def names(self) -> tuple[Name, ...]:
        """The types that may be tried, in order, as far as they go with the fields that are set.

        None if the type was given, or if no service takes all these fields.
        """
        return () if self._type else self.type_names.fitting(self._form(), self._proxied())

    def _usual_name(self) -> Name:
        return self.type_names.usual(self._form(), self._proxied())

    def _proxied(self) -> bool:
        return getattr(self, "proxy", None) is not None

    def _form(self) -> Form:
        return form_of([(name, getattr(self, name)) for name in self._layout().optional])

    @classmethod
    def _layout(cls) -> _Layout:
        this: Any = cls  # its own hash is that of its instances, to a type checker
        return _layout_of(this)

    def to_wire(self, name: Name | None = None) -> dict[str, JSON]:
        """The `task` object of `createTask`. It may hold a proxy's password.

        Args:
            name: One of `names()`, to send the task under; otherwise the type that was given, or else the first.
        """
        if name is None and self._type is None:
            name = self._usual_name()
        wire: dict[str, JSON] = {"type": name.type if name else self.type}
        for field, key, write in self._layout().sent:
            value = getattr(self, field)
            if value is None:
                continue
            if isinstance(value, Proxy):
                wire |= value.to_wire(name.proxy if name else "url")
            elif name is not None and (spelled := name.write(field, value)) is not None:
                merge(wire, spelled)
            else:
                wire[key] = write(value) if write else to_json(field, value)
        return wire | copied(self._extra) if self._extra else wire

    def _shown(self) -> Iterator[str]:
        for field in self._layout().every:
            value = getattr(self, field.name, None)  # a traceback may show a task that is being made
            if field.init and value is not None and value != {}:
                yield f"{field.alias}={shown(value) if field.repr else '<hidden>'}"


def _is_optional(field: attrs.Attribute[Any]) -> bool:
    """Whether a field need not be set, and is not taken by every service."""
    return field.init and field.default is None and field.name not in ("_type", "_life", "_extra", "proxy")
