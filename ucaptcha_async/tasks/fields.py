"""Checks of the fields of a task: each names the field, what is allowed, and what was given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ucaptcha_async.checks import Seconds, Validator, is_number, is_whole, must, seconds, split_url, wrong
from ucaptcha_async.errors import ConfigurationError, InvalidTaskError, ProxyError
from ucaptcha_async.json_values import JSON, copied, to_json
from ucaptcha_async.secrecy import hidden

from .proxy import Proxy


def maybe(validator: Validator) -> Validator:
    """A validator that lets `None` pass: the field is not sent."""

    def validate(task: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            validator(task, attribute, value)

    return validate


def number(low: float, high: float) -> Validator:
    """A validator: a number from `low` to `high`."""
    return must(f"a number from {low:g} to {high:g}", lambda value: is_number(value) and low <= value <= high)


def whole_number(low: int, high: int) -> Validator:
    """A validator: a whole number from `low` to `high`."""
    return must(f"a whole number from {low} to {high}", lambda value: is_whole(value) and low <= value <= high)


def one_of(*words: str) -> Validator:
    """A validator: one of the words."""
    return must(f"one of {', '.join(map(repr, words))}", lambda value: isinstance(value, str) and value in words)


def is_key(value: object) -> bool:
    """Whether a value is text without white space, as keys and names of types are."""
    # Of all white space, only the blank is printable.
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


KEY = must("non-empty text without white space", is_key)
TEXT = must("non-empty text", lambda value: isinstance(value, str) and value.strip() != "")
FLAG = must("True or False", lambda value: isinstance(value, bool))
OBJECT = must("a mapping of JSON values", lambda value: isinstance(value, Mapping))
DOMAIN = one_of("google.com", "recaptcha.net", "www.google.com", "www.recaptcha.net")
LENGTH = whole_number(0, 10_000)
CLICKS = whole_number(1, 1_000)
ANGLE = must("a number above 0, up to 360", lambda value: is_number(value) and 0 < value <= 360)

# Where a field has an alias or a converter, ty sees it only with a validator of the field's own type.
a_type: Callable[[Any, attrs.Attribute[str | None], str | None], None] = maybe(KEY)
"""A validator: a type's name, or `None`."""


def page(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    """A validator: the absolute URL of a page."""
    split_url(attribute.name, value, InvalidTaskError)


def a_proxy(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A validator: a `Proxy`, or `None`."""
    if value is not None and not isinstance(value, Proxy):
        raise wrong(attribute.name, value, "a Proxy (Proxy.parse reads a URL) or None", ProxyError)


def an_extra(task: object, attribute: attrs.Attribute[Mapping[str, JSON] | None], value: Any) -> None:
    """A validator: the `extra` fields of a task, or `None`."""
    if value is None:
        return
    OBJECT(task, attribute, value)
    if "type" in value:
        raise InvalidTaskError("extra must not hold 'type': set the task's own type", field="extra")


def a_lifetime(_: object, __: attrs.Attribute[float | None], value: Any) -> None:
    """A validator: a duration, or `None`."""
    lifetime(value)


def json_object(_: object, attribute: attrs.Attribute[str | None], value: Any) -> None:
    """A validator: a mapping, text that holds a JSON object, or `None`."""
    if not (value is None or isinstance(value, Mapping) or (isinstance(value, str) and _is_json_object(value))):
        raise wrong(attribute.name, value, "a mapping, or text that holds a JSON object")


def in_order(low_name: str, low: int | None, high_name: str, high: int | None) -> None:
    """Check that a least value does not exceed the greatest one; 0 and `None` are no limits."""
    if low and high and low > high:
        raise wrong(high_name, high, f"at least {low_name} ({low})")


def lifetime(value: Seconds | None) -> float | None:
    """A converter: a duration in seconds, or `None`."""
    if value is None:
        return None
    try:
        return seconds("lifetime", value)
    except ConfigurationError as error:
        message = error.message
    raise InvalidTaskError(message, field="lifetime")


def a_copy(value: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """A converter: a mapping that nobody else can change, out of sight."""
    return hidden(copied(value))


def a_copy_or_none(value: Mapping[str, JSON] | None) -> Mapping[str, JSON] | None:
    """A converter: the same for a mapping that may be `None`."""
    return None if value is None else a_copy(value)


def json_text(value: str | Mapping[str, JSON] | None) -> str | None:
    """A converter: text that holds a JSON object, from a mapping or from text."""
    return json.dumps(to_json("data", value)) if isinstance(value, Mapping) else value


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
