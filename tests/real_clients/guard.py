"""What the scripts share: no connection leaves this machine, and the report of what the client said goes to stdout.

These files run in environments of their own, without this library: only the standard library is at hand.
"""

from __future__ import annotations

import ipaddress
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

KEY = "ucap_0123456789abcdef0123456789abcdef"
WRONG_KEY = "ucap_ffffffffffffffffffffffffffffffff"
PAGE = "https://example.com/login"
SITE_KEY = "6Le-wvkSAAAAAPBMRTvw0Q4Muexq9bi0DJwx_mJ-"
PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(120)


def stay_on_this_machine() -> None:
    """Refuse every look-up and every connection beyond loopback. An audit hook cannot be taken back."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" or event in ("socket.gethostbyname", "socket.gethostbyaddr"):
            refuse_foreign(arguments[0])
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            if isinstance(address, tuple):
                refuse_foreign(address[0])

    sys.addaudithook(watch)


def refuse_foreign(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        mine = ipaddress.ip_address(name).is_loopback
    except ValueError:
        mine = False
    if not mine:
        raise PermissionError(f"a connection to {name!r} would leave this machine")


def report(scenarios: dict[str, Callable[[], Any]]) -> None:
    """Run the scenarios, in threads, and print what each returned or raised."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(scenarios)) as threads:
        running = {name: threads.submit(outcome, scenario) for name, scenario in scenarios.items()}
        print(json.dumps({name: future.result() for name, future in running.items()}))


def outcome(scenario: Callable[[], Any]) -> dict[str, Any]:
    """What a scenario returned, or what it raised."""
    try:
        return {"returned": scenario()}
    except Exception as error:
        return {
            "raised": type(error).__name__,
            "text": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
