"""An asyncio and trio client for the uCaptcha API with real concurrency control.

Names are loaded when they are first used: a program pays for what it uses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .budget import Budget
    from .callbacks import CallbackReceiver, CallbackStatistics
    from .client import AsyncClient, Drained
    from .errors import (
        AccountError,
        AddressRefusedError,
        APIConnectionError,
        Attempt,
        AuthenticationError,
        BudgetExceededError,
        ClientStateError,
        ConfigurationError,
        InsufficientBalanceError,
        InvalidTaskError,
        JournalError,
        NoProviderError,
        ProtocolError,
        ProxyError,
        RateLimitedError,
        ServiceError,
        SolutionError,
        SolveTimeoutError,
        SubmitUncertainError,
        TaskNotFoundError,
        UCaptchaError,
        UnsolvableError,
        UnsupportedTaskError,
    )
    from .journal import Journal, MemoryJournal, SQLiteJournal
    from .pacing import RateLimiter
    from .polling import Polling
    from .results import Outcome, SelectionMode, Status, TaskResult
    from .solving.job import Job
    from .solving.prefetch import Prefetch, PrefetchStatistics
    from .solving.statistics import ClientStatistics
    from .solving.stream import Outcomes
    from .tasks import (
        ClickCoordinates,
        CoordinatesSolution,
        FriendlyCaptcha,
        FunCaptcha,
        GeeTestV3,
        GeeTestV3Solution,
        GeeTestV4,
        GeeTestV4Solution,
        HCaptcha,
        ImageToText,
        MTCaptcha,
        Point,
        Proxy,
        RecaptchaV2,
        RecaptchaV2Enterprise,
        RecaptchaV3,
        Rotate,
        RotateSolution,
        Solution,
        Task,
        Tencent,
        TencentSolution,
        TextSolution,
        TokenSolution,
        Turnstile,
        YandexSmartCaptcha,
    )

# Where a name is from. What ends in "Error" is from `errors`, and what is not listed is a task or a solution.
_HOMES = {
    "AsyncClient": "client",
    "Attempt": "errors",
    "Budget": "budget",
    "CallbackReceiver": "callbacks",
    "CallbackStatistics": "callbacks",
    "ClientStatistics": "solving.statistics",
    "Drained": "client",
    "Job": "solving.job",
    "Journal": "journal",
    "MemoryJournal": "journal",
    "Outcome": "results",
    "Outcomes": "solving.stream",
    "Polling": "polling",
    "Prefetch": "solving.prefetch",
    "PrefetchStatistics": "solving.prefetch",
    "RateLimiter": "pacing",
    "SQLiteJournal": "journal",
    "SelectionMode": "results",
    "Status": "results",
    "TaskResult": "results",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "errors" if name.endswith("Error") else _HOMES.get(name, "tasks")
    value: object = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "APIConnectionError",
    "AccountError",
    "AddressRefusedError",
    "AsyncClient",
    "Attempt",
    "AuthenticationError",
    "Budget",
    "BudgetExceededError",
    "CallbackReceiver",
    "CallbackStatistics",
    "ClickCoordinates",
    "ClientStateError",
    "ClientStatistics",
    "ConfigurationError",
    "CoordinatesSolution",
    "Drained",
    "FriendlyCaptcha",
    "FunCaptcha",
    "GeeTestV3",
    "GeeTestV3Solution",
    "GeeTestV4",
    "GeeTestV4Solution",
    "HCaptcha",
    "ImageToText",
    "InsufficientBalanceError",
    "InvalidTaskError",
    "Job",
    "Journal",
    "JournalError",
    "MTCaptcha",
    "MemoryJournal",
    "NoProviderError",
    "Outcome",
    "Outcomes",
    "Point",
    "Polling",
    "Prefetch",
    "PrefetchStatistics",
    "ProtocolError",
    "Proxy",
    "ProxyError",
    "RateLimitedError",
    "RateLimiter",
    "RecaptchaV2",
    "RecaptchaV2Enterprise",
    "RecaptchaV3",
    "Rotate",
    "RotateSolution",
    "SQLiteJournal",
    "SelectionMode",
    "ServiceError",
    "Solution",
    "SolutionError",
    "SolveTimeoutError",
    "Status",
    "SubmitUncertainError",
    "Task",
    "TaskNotFoundError",
    "TaskResult",
    "Tencent",
    "TencentSolution",
    "TextSolution",
    "TokenSolution",
    "Turnstile",
    "UCaptchaError",
    "UnsolvableError",
    "UnsupportedTaskError",
    "YandexSmartCaptcha",
]
