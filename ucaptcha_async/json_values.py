"""What goes over the wire and what stays out of sight: JSON values, names, and masked representations."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Context
from enum import Enum
from typing import Protocol, TypeAlias, runtime_checkable

from ucaptcha_async.checks import describe
from ucaptcha_async.errors import InvalidTaskError
from ucaptcha_async.secrecy import SecretMapping, hidden

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""A value that JSON can hold."""

EXACT = Context(prec=60, traps=[])
"""For sums of money. The precision and traps of the caller's own context are not for us, and may lose cents."""

_DEEPEST = 64
_MOST_BITS = 64
_LONGEST_SHOWN = 100
_LOGIN = re.compile(r"\S:\S+@")
_JSON_ALLOWED = "a JSON value (text, finite number, bool, None, list or mapping with text keys)"


@runtime_checkable
class Nested(Protocol):
    """A value of the library's own that may stand inside JSON: a task or a proxy."""

    def encode_nested(self) -> JSON:
        """How it is written there."""
        ...


@functools.cache
def camel(name: str) -> str:
    """The service's spelling of a field's name: `min_score` becomes `minScore`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


class _NoJSONError(Exception):
    """Where in a value something is that JSON cannot hold, what is allowed there, and what it is."""


def to_json(field: str, value: object) -> JSON:
    """Copy a value as plain JSON, or raise `InvalidTaskError` that names the field and the place in it."""
    if type(value) is str and value.isascii():
        return value  # nearly always
    fields = SecretMapping({field: value})
    del value  # may hold a secret, and the error leaves through here
    return copied(fields)[field]


def copied(fields: Mapping[str, object]) -> dict[str, JSON]:
    """Copy fields as plain JSON, or raise `InvalidTaskError` that names the first wrong one and the place in it."""
    fields = hidden(fields)
    try:
        return {name: _copy(name, value) for name, value in fields.items()}
    except _NoJSONError as problem:
        place, allowed, got = problem.args
    # Out of the `except` block: the frames behind the first error show plain values.
    raise InvalidTaskError(f"{place} must be {allowed}; got {got}", field=place)


def _copy(place: str, value: object, depth: int = 0) -> JSON:
    if isinstance(value, Enum):
        value = value.value
    if value is None or (isinstance(value, int) and value.bit_length() <= _MOST_BITS):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and is_unicode(value):
        return str(value)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_key(place, key): _copy(f"{place}.{key}", item, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple):
        return [_copy(f"{place}[{index}]", item, depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Nested):
        return _copy(place, value.encode_nested(), depth + 1)
    raise _NoJSONError(place, _JSON_ALLOWED, describe(value))


def _key(place: str, key: object) -> str:
    if not isinstance(key, str) or not is_unicode(key):
        raise _NoJSONError(f"{place}: each key", "text", describe(key))
    return key


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which neither JSON nor a file can carry."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """The `repr` of a field's value; what is long or may hold a login is counted instead of shown."""
    if isinstance(value, str) and (len(value) > _LONGEST_SHOWN or _LOGIN.search(value)):
        return f"<{len(value)} characters>"
    if isinstance(value, Mapping | list | tuple):
        return f"<{len(value)} items>"
    return repr(value)


class NumericId(str):
    """A task's id that the service gave as a number. Text everywhere, but it goes back as it came: see `wire_id`."""

    __slots__ = ()


def wire_id(task_id: str) -> str | int | float:
    """A task's id as the service spells it: a number where it gave a number, text otherwise, digit for digit."""
    if not isinstance(task_id, NumericId):
        return str(task_id)
    return int(task_id) if task_id.lstrip("-").isdecimal() else float(task_id)
