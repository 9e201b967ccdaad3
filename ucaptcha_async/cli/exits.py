"""What the command's exit codes mean, and which error ends with which."""

from __future__ import annotations

from enum import IntEnum

from ucaptcha_async.errors import (
    AccountError,
    BudgetExceededError,
    ConfigurationError,
    InvalidTaskError,
    JournalError,
    SolutionError,
    SolveTimeoutError,
    SubmitUncertainError,
    TaskNotFoundError,
    UCaptchaError,
    UnsolvableError,
)


class Exit(IntEnum):
    """The exit codes of `ucaptcha`."""

    DONE = 0
    """Everything that was asked for is done."""
    DEFECT = 1
    """A defect of this program, or a promise that the service's records show broken (`demo`)."""
    USAGE = 2
    """A wrong option, field or setting, found here or by the service. Nothing was charged."""
    ACCOUNT = 3
    """The service refuses the key, the balance or this address."""
    UNSOLVED = 4
    """Not solved: given up by the service and refunded, out of time, or unknown to it; in a batch, some were."""
    SERVICE = 5
    """The service could not be reached, or answered with a fault."""
    UNCERTAIN = 6
    """A task was sent and no answer came: it may have been charged."""
    BUDGET = 7
    """`--max-spend` is used up."""
    FILE = 8
    """A file is missing, or could not be read or written: the tasks, the results, the journal, the key, an image."""
    REJECTS = 9
    """All good lines of a batch are solved, but some lines were bad: see the rejects file."""
    PENDING = 10
    """The task has not ended yet (`result`)."""
    ADDRESS = 11
    """The address or port to listen on is in use, or is not allowed (`serve`)."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C. A batch goes on where it was when it is started again."""
    TERMINATED = 143
    """Stopped by SIGTERM or SIGHUP. A batch goes on where it was when it is started again."""
    BROKEN_PIPE = 141
    """The program that read the output has ended."""


class MissingFileError(InvalidTaskError):
    """A file that a field of a task names does not exist."""


_BY_ERROR: tuple[tuple[type[UCaptchaError], Exit], ...] = (
    (ConfigurationError, Exit.USAGE),
    (MissingFileError, Exit.FILE),
    (InvalidTaskError, Exit.USAGE),
    (AccountError, Exit.ACCOUNT),
    (UnsolvableError, Exit.UNSOLVED),
    (SolveTimeoutError, Exit.UNSOLVED),
    (TaskNotFoundError, Exit.UNSOLVED),
    (SolutionError, Exit.UNSOLVED),
    (SubmitUncertainError, Exit.UNCERTAIN),
    (BudgetExceededError, Exit.BUDGET),
    (JournalError, Exit.FILE),
)


class CommandError(Exception):
    """An error of the command itself, with its exit code and a message of one line."""

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: UCaptchaError) -> Exit:
    """The exit code that an error of the library ends with."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.SERVICE)


def table() -> str:
    """The exit codes as a list in Markdown, as `ucaptcha --help` shows them."""
    return "\n".join(f"- {code.value}: {_DOC[code]}" for code in Exit)


_DOC = {
    Exit.DONE: "everything that was asked for is done",
    Exit.DEFECT: "a defect of this program, or (demo) a promise that the service's records show broken",
    Exit.USAGE: "a wrong option, field or setting, found here or by the service; nothing was charged",
    Exit.ACCOUNT: "the service refuses the key, the balance or this address",
    Exit.UNSOLVED: "not solved: given up and refunded, out of time, or unknown to the service",
    Exit.SERVICE: "the service could not be reached, or answered with a fault",
    Exit.UNCERTAIN: "a task was sent and no answer came: it may have been charged",
    Exit.BUDGET: "the money set by --max-spend is used up",
    Exit.FILE: "a file is missing, or could not be read or written",
    Exit.REJECTS: "all good lines of a batch are solved, but some lines were bad",
    Exit.PENDING: "the task has not ended yet",
    Exit.ADDRESS: "the port of serve is in use, or may not be listened on",
    Exit.INTERRUPTED: "stopped by Ctrl-C",
    Exit.TERMINATED: "stopped by SIGTERM or SIGHUP",
    Exit.BROKEN_PIPE: "the program that read the output has ended",
}
