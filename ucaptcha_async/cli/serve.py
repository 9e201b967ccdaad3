"""`ucaptcha serve`: the local service in the foreground."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ucaptcha_async.testing.command import build_parser, main


def serve(*options: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a uCaptcha of your own on this machine, for tests without key, money or network.

    Prints its address once it listens, and runs until Ctrl-C. Its options are those of
    `python -m ucaptcha_async.testing`; `ucaptcha serve --help` lists them.
    """
    if "--help" in options or "-h" in options:
        parser = build_parser()
        parser.prog = "ucaptcha serve"
        parser.print_help()
        return 0
    return main(options)
