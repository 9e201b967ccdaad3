"""The command `ucaptcha` (extra `cli`): demo, serve, balance, solve, result, batch, report, recover, journal.

Results go to standard output, everything else to standard error. The exit codes are in `exits`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .exits import Exit

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after the command's name. Default: those of this process.

    Returns:
        The exit code, see `exits`.
    """
    try:
        from .app import run
    except ModuleNotFoundError as error:
        # Only what the extra brings: a missing module of our own is a defect, and should look like one.
        if error.name is None or error.name.partition(".")[0] not in ("cyclopts", "rich"):
            raise
        print(f"error: {error.name} is not installed: pip install 'ucaptcha_async[cli]'", file=sys.stderr)
        return Exit.USAGE
    return run(sys.argv[1:] if arguments is None else list(arguments))
