"""Keeping secrets out of what people read: masked values, redacted text, exceptions without frames."""

from __future__ import annotations

import re
from collections.abc import Iterable


class SecretBytes(bytes):
    """Bytes that do not show themselves, so that a traceback with local values does not either."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__


class SecretStr(str):
    """Text that does not show itself in `repr`. Take it with `str.__str__` or by concatenation."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret cannot be pickled")


_CREDENTIALS = re.compile(r"(://|^|\s)[^\s/@]+@")


def redact(text: str, secrets: Iterable[str]) -> str:
    """Take known secrets, and whatever looks like the credentials of a URL, out of a text from outside."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    return _CREDENTIALS.sub(r"\1…@", text)[:500]


def without_frames(error: BaseException) -> BaseException:
    """Drop the frames of an exception and of all it carries: their local values hold requests, and so the API key."""
    todo, seen = [error], set()
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = None
        current.__dict__.pop("_request", None)
        todo += [e for e in (current.__cause__, current.__context__) if e is not None]
        todo += getattr(current, "exceptions", ())
    return error
