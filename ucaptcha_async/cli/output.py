"""Where the command writes: results to standard output, all else to standard error."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from decimal import Decimal

from rich.console import Console

WIDTH = 80
"""Columns of a table that is not printed on a terminal."""


def show_all_characters() -> None:
    """Let the standard streams write characters that their encoding lacks as escapes: what is paid for is shown."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line(text: str) -> str:
    """A text as one line that a terminal shows as it is: services may send line breaks and escape sequences."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def say(text: str) -> None:
    """Write a line of the result. Raises `OSError` if standard output is closed (`>&-`)."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    print(text, flush=True)


def say_json(value: object) -> None:
    """Write the result as one line of JSON, whatever the encoding; money is text."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    say(json.dumps(value, ensure_ascii=not unicode, default=str))


def note(text: str) -> None:
    """Write a line that is not part of the result."""
    print(one_line(text), file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """Write an error, in one line."""
    note(f"error: {text}")


def result_console() -> Console:
    """For tables that are the result."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDTH)


def progress_console() -> Console:
    """For what is drawn while something runs."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def close_quietly() -> None:
    """After a broken pipe: let the interpreter flush into nothing, instead of complaining at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def money(amount: Decimal, places: int = 2) -> str:
    """An amount of USD, exact, with at least `places` decimal places and no exponent."""
    text = f"{amount.normalize():f}"
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<{places}}"


def duration(seconds: float) -> str:
    """A duration for people: `0.8 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
