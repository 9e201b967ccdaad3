"""The commands of `ucaptcha`, and how they end."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from cyclopts import App, CycloptsError, Group

from ucaptcha_async.errors import UCaptchaError

from .batch.command import batch
from .completion import completion_of
from .demo import demo
from .doctor import doctor
from .exits import CommandError, Exit, exit_code, table
from .keeping import journal, recover
from .output import close_quietly, fail, show_all_characters
from .report.command import report
from .serve import serve
from .single import balance, result, solve

TRACEBACK = "UCAPTCHA_TRACEBACK"
"""The environment variable that lets a defect show its traceback."""

_TRY = Group("Try it, without key and money", sort_key=1)
_WORK = Group("Solve", sort_key=2)
_ACCOUNT = Group("Look after it", sort_key=3)
_HELP = Group("Help", sort_key=9)
_COMMANDS = (
    (demo, _TRY),
    (serve, _TRY),
    (solve, _WORK),
    (batch, _WORK),
    (report, _WORK),
    (result, _WORK),
    (balance, _ACCOUNT),
    (doctor, _ACCOUNT),
    (journal, _ACCOUNT),
    (recover, _ACCOUNT),
)
_SEE = "The exit codes are explained by `ucaptcha --help`."


def build() -> App:
    """Build the command."""
    app = App(
        name="ucaptcha",
        help="Solve CAPTCHAs with the uCaptcha service, one or a million.\n\n"
        "Begin with `ucaptcha demo`, which needs no key. All other commands take the API key from the environment "
        "variable UCAPTCHA_API_KEY, or from a file with --api-key-file.",
        help_epilogue=f"Exit codes:\n\n{table()}",
        help_format="markdown",
        version=lambda: importlib.metadata.version("ucaptcha_async"),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for command, group in _COMMANDS:
        app.command(command, group=group, help_epilogue=_SEE)
    app.command(completion_of(app), group=_HELP, help_epilogue=_SEE)
    for flag in ("--help", "--version"):
        app[flag].group = (_HELP,)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command to its end, and return its exit code."""
    show_all_characters()
    if os.environ.get("COLUMNS", "").strip("0") == "":
        os.environ.pop("COLUMNS", None)  # no terminal is that narrow
    with _terminated_like_interrupted() as terminated:
        try:
            result = build()(list(arguments), exit_on_error=False, print_error=False)
            return int(result or 0)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else Exit.USAGE
        except BaseException as error:
            cause = _cause(error)
            if terminated and isinstance(cause, KeyboardInterrupt):
                fail("terminated")
                return Exit.TERMINATED
            return _end(cause)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that it still says what it has paid for.

    What has its own way to stop (`batch`, `serve`) takes the signals over. What is ignored (`nohup`) stays so.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield came
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _cause(error: BaseException) -> BaseException:
    """The error that task groups have wrapped; of several, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code."""
    match error:
        case CycloptsError():
            fail(f"{error} (see ucaptcha --help)")
            return Exit.USAGE
        case CommandError():
            fail(str(error))
            return error.code
        case UCaptchaError():
            fail(str(error))
            return exit_code(error)
        case BrokenPipeError():
            close_quietly()
            return Exit.BROKEN_PIPE
        case OSError():
            name = "" if error.filename is None else f"{str(error.filename)!r}: "
            fail(f"{name}{error.strerror or type(error).__name__}")
            return Exit.FILE
        case KeyboardInterrupt():
            fail("interrupted")
            return Exit.INTERRUPTED
        case _:
            return _defect(error)


def _defect(error: BaseException) -> int:
    if os.environ.get(TRACEBACK) or not isinstance(error, Exception):
        raise error
    fail(f"this is a defect: {type(error).__name__} (with {TRACEBACK}=1 in the environment it shows where)")
    return Exit.DEFECT
