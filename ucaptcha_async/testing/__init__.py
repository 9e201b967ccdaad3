"""A uCaptcha that runs on your own machine: for tests without key, money or network.

`LocalService` is a plain ASGI app with books and faults; `Server` and `running_service` put it on a real socket. The
pytest plugin (`ucaptcha_async.testing.plugin`) gives both to tests as fixtures.
"""

from __future__ import annotations

from .books import Books, CallbackRecord, Entry, RequestRecord, TaskRecord
from .callbacks import CallbackPlan
from .dialects import DIALECTS, Dialect
from .faults import Amend, Delay, Drop, Error, Fault, FaultRates, Faults, Html, Huge, Json, RateLimit, Reply, Truncated
from .kit import assert_nothing_lost, assert_paid_once, assert_polite, virtual_backends
from .options import Options
from .process import RunningService, running_service, start_service
from .server import Server
from .service import LocalService
from .solutions import KINDS, Kind
from .timing import Fixed, LogNormal, Mixture, SolveTime, parse_solve_time
from .virtual import VirtualLoop
from .wire import ConnectionDroppedError

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
    "Entry",
    "Error",
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
