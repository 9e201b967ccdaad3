"""Keeping secrets out of what people read: masked values, redacted text, exceptions without frames."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self
from urllib.parse import quote, unquote

SHORTEST = 4
"""Characters of the shortest secret that is taken out of texts: less would only mutilate them."""

LONGEST = 2_000
"""Characters of a text from outside that are looked at."""


class SecretBytes(bytes):
    """Bytes that do not show themselves, so that a traceback with local values does not either."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        # A part of a secret is one: what shows long values shows their first characters.
        part: Any = bytes.__getitem__(self, index)
        if not isinstance(part, bytes):
            return part
        # Most slices are asyncio's, of what it has not sent yet: nothing.
        return SecretBytes(part) if part else _NOTHING

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret cannot be pickled")


_NOTHING = SecretBytes()


class SecretStr(str):
    """Text that does not show itself in `repr`. Take it with `str.__str__` or by concatenation."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> SecretStr:
        return SecretStr(super().__getitem__(index))

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret cannot be pickled")


class SecretMapping(dict[str, Any]):
    """A mapping whose values may be secrets: it shows its keys, and cannot be pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} hidden: {', '.join(map(str, self))}>" if self else "<empty>"

    def __rich_repr__(self) -> Iterator[str]:
        # Without this, rich would show a dict's values whatever its `repr` says.
        yield repr(self)

    def __reduce__(self) -> Any:
        raise TypeError("this mapping may hold secrets and is not pickled; store the values you need with dict(…)")

    def __copy__(self) -> SecretMapping:
        return SecretMapping(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SecretMapping:
        return SecretMapping(self)


class OwnCopy:
    """A value that never changes: a copy of it is the value itself, whether it can be pickled or not."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def hidden(raw: Mapping[str, Any]) -> SecretMapping:
    """The same mapping, with its values out of sight."""
    return raw if isinstance(raw, SecretMapping) else SecretMapping(raw)


def masked(value: Any) -> Any:
    """The same value, out of sight if it is text, bytes or a mapping."""
    if isinstance(value, str):
        return SecretStr(value)
    if isinstance(value, bytes):
        return SecretBytes(value)
    return hidden(value) if isinstance(value, Mapping) else value


_CREDENTIALS = re.compile(r"(://|^|\s)[^\s/@]+@")
_LOGIN = re.compile(r"://[^\s/:@]*:([^\s@]*)@")


def redact(text: str, secrets: Iterable[str]) -> str:
    """Take known secrets, and whatever looks like the credentials of a URL, out of a text from outside."""
    text = text[:LONGEST]
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "…")
    return _CREDENTIALS.sub(r"\1…@", text)[:500]


def spellings(secret: str) -> set[SecretStr]:
    """A secret as a text may have it: as it is, in a URL, in JSON."""
    return {SecretStr(form) for form in (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1])}


def passwords(value: object, name: str = "") -> Iterator[SecretStr]:
    """The passwords in a task as it is sent: those of proxies, in each spelling, at any depth."""
    if isinstance(value, str):
        if "password" in name.lower():
            yield SecretStr(value)
        elif "@" in value:
            yield from (SecretStr(unquote(found)) for found in _LOGIN.findall(value))
        elif name == "proxy" and value.count(":") >= 3:  # address:port:user:password
            yield SecretStr(value.rpartition(":")[2])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from passwords(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from passwords(item, name)
