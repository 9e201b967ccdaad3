"""Checks of what callers pass in: each names the field, the value's type and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urlsplit

import attrs

from .errors import ConfigurationError, InvalidTaskError, UCaptchaError
from .secrecy import SecretStr

Seconds = float | timedelta
"""A duration: a number of seconds, or a `timedelta`."""


class ClientDefault(Enum):
    """The type of `DEFAULT`, which stands for "as the client is set" where `None` means something else."""

    DEFAULT = "client default"

    def __repr__(self) -> str:
        return "<as the client is set>"


DEFAULT = ClientDefault.DEFAULT
"""As the client is set."""


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
        kind = "str" if isinstance(value, str) else "bytes"
        return f"{kind} of {len(value)} characters" if value else f"empty {kind}"
    return type(value).__name__


Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def must(allowed: str, test: Callable[[Any], bool], error: type[UCaptchaError] = InvalidTaskError) -> Validator:
    """A validator of attrs: the value must pass `test`."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not test(value):
            raise wrong(attribute.alias or attribute.name, value, allowed, error)

    return validate


def is_number(value: object) -> bool:
    """Whether a value is a number; `True` and `False` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; `True` and `False` are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def seconds(field: str, value: Seconds, *, minimum: float = 0.0, allow_inf: bool = False) -> float:
    """Read a duration as seconds, or raise `ConfigurationError`."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    numeric = is_number(number)
    if numeric:
        try:
            number = float(number)
        except OverflowError:
            number = math.inf
    if not numeric or math.isnan(number) or number < minimum or (math.isinf(number) and not allow_inf):
        allowed = f"a number of seconds (float or timedelta) of at least {minimum:g}"
        raise wrong(field, value, allowed, ConfigurationError)
    return number


def time_limit(value: Seconds | ClientDefault | None, default: float = math.inf) -> float:
    """Read a `timeout` as seconds: `None` is no limit. Raises `ConfigurationError`."""
    if value is DEFAULT:
        return default
    return math.inf if value is None else seconds("timeout", value, allow_inf=True)


def whole(field: str, value: int, *, minimum: int = 1, error: type[UCaptchaError] = ConfigurationError) -> int:
    """Check a whole number, or raise."""
    if not is_whole(value) or value < minimum:
        raise wrong(field, value, f"a whole number of at least {minimum}", error)
    return value


def split_url(
    field: str, value: str, error: type[UCaptchaError], schemes: Iterable[str] = ("http", "https")
) -> SplitResult:
    """Check an absolute URL and return its parts, or raise an error that shows scheme and host at the most."""
    schemes = tuple(schemes)
    if isinstance(value, str):
        value = SecretStr(value)  # it may hold credentials
    if (parts := _split(value, schemes)) is not None:
        return parts
    allowed = f"an absolute URL ({' or '.join(f'{scheme}://…' for scheme in schemes)})"
    raise error(f"{field} must be {allowed}; got {_described_url(value)}", field=field)


def bare_url(field: str, value: str) -> tuple[str, str]:
    """Check a URL to which a path is added, and return its scheme and host, or raise `ConfigurationError`."""
    parts = split_url(field, value, ConfigurationError)
    scheme, host, login = parts.scheme, parts.hostname or "", parts.username is not None
    del parts  # it may hold a password
    # A bare "?" or "#" leaves no trace in the parts, and would still swallow the path that is added.
    if login or "?" in value or "#" in value:
        raise wrong(field, value, "without credentials, query and fragment", ConfigurationError)
    return scheme, host


def _split(url: object, schemes: tuple[str, ...]) -> SplitResult | None:
    """The parts of an absolute URL with one of the schemes; `None` if it is none."""
    if not isinstance(url, str) or white_space(url):
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and parts.hostname and (parts.port is None or parts.port > 0)
        return parts if good else None
    except ValueError:
        return None


_ORIGIN = re.compile(
    r"\s*(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?:[^/?#\s]*@)?"
    r"(?P<host>(?(scheme)[A-Za-z0-9_.-]+|(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})|\[[0-9A-Fa-f:.]+\])"
    r"(?P<port>:[^/?#\s]*)?(?=[/?#\s]|\Z)"
)


def _described_url(value: object) -> str:
    """What may be said of a wrong URL: its scheme and host (without credentials, path and query), and the trouble."""
    if not isinstance(value, str):
        return describe(value)
    found = _ORIGIN.match(value)
    trouble = white_space(value)
    if found is None or "@" in value[found.end() :]:  # what looks like the host may be a user's name
        return " ".join(filter(None, (describe(value), trouble)))
    scheme, host, port = found.group("scheme", "host", "port")
    shown = repr(f"{scheme}://{host}" if scheme else host)
    if trouble is None and scheme is None:
        trouble = "without a scheme"
    elif trouble is None and port is not None and not (port[1:].isdecimal() and 0 < int(port[1:7]) < 65_536):
        trouble = "with a port that is not a number from 1 to 65535"
    return f"{shown} {trouble or ''}".rstrip()


_SPACE = re.compile(r"\s")


def white_space(text: str) -> str | None:
    """Where a text has white space, in words; `None` if it has none."""
    if not _SPACE.search(text):
        return None
    if not text.strip():
        return "with nothing but white space"
    ends = (text[0].isspace(), text[-1].isspace(), len(text.split()) > 1)
    places = [place for place, there in zip(("before", "after", "inside"), ends, strict=True) if there]
    return f"with white space {' and '.join(places)} it"


def near(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or the list."""
    import difflib  # it is needed when somebody has mistyped, and not before

    known = list(known)
    folded = {k.replace("_", "").lower(): k for k in known}
    match = difflib.get_close_matches(name.replace("_", "").lower(), folded, n=1)
    return f"; did you mean {folded[match[0]]!r}?" if match else f"; known: {', '.join(known)}"
