"""Names for people: task types as one would say them, and their fields in any spelling."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from ucaptcha_async.checks import describe, near, wrong
from ucaptcha_async.errors import InvalidTaskError
from ucaptcha_async.tasks import (
    ClickCoordinates,
    FriendlyCaptcha,
    FunCaptcha,
    GeeTestV3,
    GeeTestV4,
    HCaptcha,
    ImageToText,
    MTCaptcha,
    RecaptchaV2,
    RecaptchaV2Enterprise,
    RecaptchaV3,
    Rotate,
    Task,
    Tencent,
    Turnstile,
    YandexSmartCaptcha,
)
from ucaptcha_async.tasks.proxy import Proxy

from .exits import MissingFileError

KINDS: Mapping[str, type[Task[Any]]] = {
    "recaptcha-v2": RecaptchaV2,
    "recaptcha-v2-enterprise": RecaptchaV2Enterprise,
    "recaptcha-v3": RecaptchaV3,
    "hcaptcha": HCaptcha,
    "turnstile": Turnstile,
    "image": ImageToText,
    "click": ClickCoordinates,
    "rotate": Rotate,
    "funcaptcha": FunCaptcha,
    "geetest-v3": GeeTestV3,
    "geetest-v4": GeeTestV4,
    "mtcaptcha": MTCaptcha,
    "friendly": FriendlyCaptcha,
    "yandex": YandexSmartCaptcha,
    "tencent": Tencent,
}
"""The friendly names. Any other name with a capital letter is a type of the service, and is sent as it is."""

NOT_FIELDS = frozenset({"type", "extra"})

_LONGEST_PATH = 1024


@functools.lru_cache(4096)
def fold(name: str) -> str:
    """A name without what people spell differently."""
    return "".join(c for c in name.lower() if c not in "-_. ")


_FOLDED = {fold(name): kind for name, kind in KINDS.items()} | {fold(kind.__name__): kind for kind in KINDS.values()}


def find(name: str) -> type[Task[Any]] | None:
    """The class that a name stands for; `None` for a type of the service.

    Raises:
        InvalidTaskError: It is neither.
    """
    kind = _FOLDED.get(fold(name))
    if kind is None and name == name.lower():
        raise InvalidTaskError(f"type {name[:40]!r} is unknown{near(name, KINDS)}", field="type")
    return kind


def build(name: str, fields: Mapping[str, object]) -> Task[Any]:
    """Build a task from a name and fields, whose values are text or JSON.

    Args:
        name: A friendly name, or a type of the service.
        fields: By name: of a known kind in any spelling (`website-url`, `websiteURL`), and otherwise as the service
            spells them. `proxy` may be a URL.

    Raises:
        InvalidTaskError: A name or a value is wrong; the message names it.
    """
    kind = find(name)
    if kind is None:
        return _raw(name, fields)
    known = _fields_of(kind)
    values: dict[str, Any] = {}
    for given, value in fields.items():
        field = known.get(fold(given))
        if field is None:
            raise InvalidTaskError(f"{name} has no field {given[:40]!r}{near(given, _names(kind))}", field=given)
        if field.alias in values:
            raise InvalidTaskError(f"{field.alias} is given twice", field=field.alias)
        values[str(field.alias)] = convert(field, value)
    missing = [field for field in _REQUIRED[kind.__name__] if field not in values]
    if missing:
        raise InvalidTaskError(f"{name} needs {' and '.join(missing)}", field=missing[0])
    make: Any = kind  # each class has fields of its own
    task: Task[Any] = make(**values)
    return task


def _raw(name: str, fields: Mapping[str, object]) -> Task[Any]:
    proxy = fields.get("proxy")
    given: dict[str, Any] = dict(fields)
    if isinstance(proxy, str) and "://" in proxy:
        given["proxy"] = Proxy.parse(proxy)
    return Task(name, **given)


def _spellings(kind: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The fields of a kind by each of their folded names: the library's and the service's."""
    known: dict[str, attrs.Attribute[Any]] = {}
    for field in attrs.fields(kind):
        if field.init and field.alias not in NOT_FIELDS:
            known[fold(str(field.alias))] = field
            on_wire = field.metadata.get("wire", (None, None))[0]
            if on_wire is not None:
                known[fold(on_wire)] = field
    return known


_FIELDS = {kind.__name__: _spellings(kind) for kind in KINDS.values()}
_REQUIRED = {
    name: [str(field.alias) for field in dict.fromkeys(fields.values()) if field.default is attrs.NOTHING]
    for name, fields in _FIELDS.items()
}


def _fields_of(kind: type[Task[Any]]) -> Mapping[str, attrs.Attribute[Any]]:
    return _FIELDS[kind.__name__]


def _names(kind: type[Task[Any]]) -> list[str]:
    return list(dict.fromkeys(str(field.alias) for field in _fields_of(kind).values()))


def main_field(kind: type[Task[Any]] | None) -> str | None:
    """The field that a bare word on the command line is for: the image, where there is one."""
    return "image" if kind is not None and "image" in _fields_of(kind) else None


def takes_proxy(kind: type[Task[Any]] | None) -> bool:
    """Whether such tasks can be solved through a proxy; types of the service may."""
    return kind is None or "proxy" in _fields_of(kind)


def convert(field: attrs.Attribute[Any], value: object) -> object:
    """A value as its field wants it: text from a command line or a table is read as what it stands for."""
    if not isinstance(value, str):
        return value
    name, type_ = str(field.alias), str(field.type)
    read = next((read for word, read in _READERS.items() if word in type_), None)
    return value if read is None else read(name, value)


def _flag(name: str, text: str) -> bool:
    flags = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in flags:
        raise wrong(name, text, "true or false")
    return flags[text.lower()]


def _number(name: str, text: str) -> float:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, text, "a number")
    return value


def _object(name: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise wrong(name, text, "a JSON object")
    return value


def _image(name: str, text: str) -> object:
    if not text.startswith("data:") and len(text) <= _LONGEST_PATH and "\0" not in text:
        path = Path(os.path.expanduser(text))  # noqa: PTH111 - a wrong `~name` is no error here
        if path.is_file():
            return path
        if path.suffix and len(path.suffix) <= 5:  # base64 has no dots
            raise MissingFileError(f"{name}: there is no file {text[:200]!r}", field=name)
    return text


_READERS: Mapping[str, Callable[[str, str], object]] = {
    "Image": _image,
    "Proxy": lambda name, text: Proxy.parse(text),
    "Mapping": _object,
    "bool": _flag,
    "float": _number,
    "int": _number,
}
"""How text is read, by a word in the type of the field."""


def parse_words(words: tuple[str, ...], main: str | None) -> dict[str, object]:
    """Read `name=text` and `name:=JSON`; a first bare word is the `main` field.

    Raises:
        InvalidTaskError: A word is none of these.
    """
    fields: dict[str, object] = {}
    for index, word in enumerate(words):
        name, separator, text = word.partition("=")
        if name.startswith("-") and word != "-":
            raise InvalidTaskError(f"there is no option {name[:40]!r}")
        if not separator or not name.rstrip(":"):
            if index or main is None:
                raise InvalidTaskError(f"fields are given as name=value; got {describe(word)}")
            name, text = main, word
        if name.endswith(":"):
            name, value = name[:-1], json_value(name[:-1], text)
        else:
            value = text
        if name in fields:
            raise InvalidTaskError(f"{name} is given twice", field=name)
        fields[name] = value
    return fields


def json_value(name: str, text: str) -> object:
    """Read a JSON value."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise wrong(name, text, "JSON after ':='") from None
    return value
