"""Checks of what callers pass in: each names the field, the value's type and what is allowed."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from .errors import ConfigurationError, InvalidTaskError, UCaptchaError

Seconds = float | timedelta
"""A duration: a number of seconds, or a `timedelta`."""

T = TypeVar("T")


def wrong(
    field: str,
    value: object,
    allowed: str,
    error: type[UCaptchaError] = InvalidTaskError,
) -> UCaptchaError:
    """Build (not raise) the error for a wrong value. The value itself stays out: it may be a secret."""
    return error(f"{field} must be {allowed}; got {describe(value)}", field=field)


def describe(value: object) -> str:
    """What may be said of a value without showing a secret: its type, and numbers as they are."""
    if isinstance(value, bool | int | float):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} of {len(value)} characters" if value else f"empty {type(value).__name__}"
    return type(value).__name__


def seconds(field: str, value: Seconds, *, minimum: float = 0.0, allow_inf: bool = False) -> float:
    """Read a duration as seconds, or raise `ConfigurationError`."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    numeric = isinstance(number, int | float) and not isinstance(number, bool)
    if numeric:
        try:
            number = float(number)
        except OverflowError:
            number = math.inf
    if not numeric or math.isnan(number) or number < minimum or (math.isinf(number) and not allow_inf):
        allowed = f"a number of seconds (float or timedelta) of at least {minimum:g}"
        raise wrong(field, value, allowed, ConfigurationError)
    return number


def whole(field: str, value: int, *, minimum: int = 1, error: type[UCaptchaError] = ConfigurationError) -> int:
    """Check a whole number, or raise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise wrong(field, value, f"a whole number of at least {minimum}", error)
    return value


def split_url(
    field: str, value: str, error: type[UCaptchaError], schemes: Iterable[str] = ("http", "https")
) -> SplitResult:
    """Check an absolute URL and return its parts, or raise."""
    schemes = tuple(schemes)
    allowed = f"an absolute URL ({' or '.join(f'{scheme}://…' for scheme in schemes)})"
    if not isinstance(value, str):
        raise wrong(field, value, allowed, error)
    try:
        parts = urlsplit(value)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        raise wrong(field, value, allowed, error) from None
    if parts.scheme not in schemes or not parts.hostname or not port_ok or any(c.isspace() for c in value):
        raise wrong(field, value, allowed, error)
    return parts


def suggests(cls: type[T]) -> type[T]:
    """Class decorator: a wrong keyword name raises `TypeError` with the nearest right one."""
    init: Callable[..., None] = cls.__init__
    parameters = inspect.signature(init).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return cls
    known = [name for name in parameters if name != "self"]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs.keys() - set(known):
            raise TypeError(f"{cls.__name__}() has no argument {name!r}{near(name, known)}")
        init(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def near(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or the list."""
    known = list(known)
    folded = {k.replace("_", "").lower(): k for k in known}
    match = difflib.get_close_matches(name.replace("_", "").lower(), folded, n=1)
    return f"; did you mean {folded[match[0]]!r}?" if match else f"; known: {', '.join(known)}"
