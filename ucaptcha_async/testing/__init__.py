"""A uCaptcha that runs on your own machine: for tests without key, money or network.

`LocalService` is a plain ASGI app with books and faults; `Server` and `running_service` put it on a real socket. The
pytest plugin (`ucaptcha_async.testing.plugin`) gives both to tests as fixtures.

Names are loaded when they are first used: pytest loads the plugin at every start, used or not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .books import Books, CallbackRecord, Entry, RequestRecord, TaskRecord
    from .callbacks import CallbackPlan
    from .dialects import DIALECTS, Dialect
    from .faults import (
        Amend,
        Delay,
        Drop,
        Encoded,
        Error,
        Extra,
        Fault,
        Html,
        Huge,
        Json,
        RateLimit,
        Reply,
        Reword,
        Truncated,
    )
    from .kit import assert_nothing_lost, assert_paid_once, assert_polite, virtual_backends
    from .options import Options
    from .process import RunningService, running_service, start_service
    from .scripts import FaultRates, Faults
    from .server import Server
    from .service import LocalService
    from .solutions import KINDS, Kind
    from .timing import Fixed, LogNormal, Mixture, SolveTime, parse_solve_time
    from .virtual import VirtualLoop
    from .wire import ConnectionDroppedError

_HOMES = {
    "books": ("Books", "CallbackRecord", "Entry", "RequestRecord", "TaskRecord"),
    "callbacks": ("CallbackPlan",),
    "dialects": ("DIALECTS", "Dialect"),
    "faults": (
        "Amend",
        "Delay",
        "Drop",
        "Encoded",
        "Error",
        "Extra",
        "Fault",
        "Html",
        "Huge",
        "Json",
        "RateLimit",
        "Reply",
        "Reword",
        "Truncated",
    ),
    "kit": ("assert_nothing_lost", "assert_paid_once", "assert_polite", "virtual_backends"),
    "options": ("Options",),
    "process": ("RunningService", "running_service", "start_service"),
    "scripts": ("FaultRates", "Faults"),
    "server": ("Server",),
    "service": ("LocalService",),
    "solutions": ("KINDS", "Kind"),
    "timing": ("Fixed", "LogNormal", "Mixture", "SolveTime", "parse_solve_time"),
    "virtual": ("VirtualLoop",),
    "wire": ("ConnectionDroppedError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "DIALECTS",
    "KINDS",
    "Amend",
    "Books",
    "CallbackPlan",
    "CallbackRecord",
    "ConnectionDroppedError",
    "Delay",
    "Dialect",
    "Drop",
    "Encoded",
    "Entry",
    "Error",
    "Extra",
    "Fault",
    "FaultRates",
    "Faults",
    "Fixed",
    "Html",
    "Huge",
    "Json",
    "Kind",
    "LocalService",
    "LogNormal",
    "Mixture",
    "Options",
    "RateLimit",
    "Reply",
    "RequestRecord",
    "Reword",
    "RunningService",
    "Server",
    "SolveTime",
    "TaskRecord",
    "Truncated",
    "VirtualLoop",
    "assert_nothing_lost",
    "assert_paid_once",
    "assert_polite",
    "parse_solve_time",
    "running_service",
    "start_service",
    "virtual_backends",
]
