"""The options by which a command reaches the service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Group, Parameter

from ucaptcha_async.client import AsyncClient
from ucaptcha_async.polling import Polling

from .exits import CommandError, Exit

SERVICE = Group("Service", sort_key=10)

JsonFlag = Annotated[bool, Parameter(help="Print the result as one line of JSON.", negative=(), show_default=False)]
"""The option `--json`."""

QuietFlag = Annotated[
    bool, Parameter(name=["--quiet", "-q"], help="Show no progress.", negative=(), show_default=False)
]
"""The option `--quiet`."""

_LONGEST_KEY = 1000


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Connection:
    """How to reach the service. There is deliberately no option for the API key: arguments are visible to others.

    Attributes:
        base_url: Where the service is.
        api_key_file: A file whose first line is the API key.
        poll_interval: Seconds from one poll of a task to the next, at the least.
    """

    base_url: Annotated[
        str | None,
        Parameter(
            group=SERVICE,
            env_var="UCAPTCHA_BASE_URL",
            help="Where the service is. Default: https://api.ucaptcha.net.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        Parameter(
            group=SERVICE,
            help="A file whose first line is the API key. Default: the key is in the environment variable "
            "UCAPTCHA_API_KEY. (There is deliberately no --api-key: arguments are visible to other processes.)",
        ),
    ] = None
    poll_interval: Annotated[
        float,
        Parameter(
            group=SERVICE, help="Seconds from one poll of a task to the next, at the least; the service asks for 5."
        ),
    ] = 5.0

    def client(self, **options: Any) -> AsyncClient:
        """A client for this service, with the given options.

        Raises:
            ConfigurationError: There is no key, or an option is wrong.
            CommandError: The key file cannot be read.
        """
        options.setdefault("polling", Polling(interval=self.poll_interval))
        return AsyncClient(self._key(), base_url=self.base_url, **options)

    def _key(self) -> str | None:
        if self.api_key_file is None:
            if not os.environ.get("UCAPTCHA_API_KEY", "").strip():
                raise CommandError("no API key: set the environment variable UCAPTCHA_API_KEY, or give --api-key-file")
            return None
        try:
            with self.api_key_file.open(encoding="utf-8") as file:
                key = file.readline(_LONGEST_KEY).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CommandError(
                f"the API key file {str(self.api_key_file)!r} cannot be read: {reason}", Exit.FILE
            ) from None
        if not key:
            raise CommandError(f"the first line of the API key file {str(self.api_key_file)!r} is empty")
        return key


def check_stdin() -> None:
    """Refuse a standard input that is closed (`<&-`), as Python shows it."""
    if sys.stdin is None:
        raise CommandError("standard input is closed: give a file, or send one with '<'", Exit.FILE)


def read_stdin() -> bytes:
    """All of standard input, as bytes."""
    check_stdin()
    if sys.stdin.isatty():
        raise CommandError("standard input is a terminal; give a file, or send one with '<'", Exit.USAGE)
    return sys.stdin.buffer.read()
