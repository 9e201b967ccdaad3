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
    from .results import Attempt, Outcome, SelectionMode, Status, TaskResult
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

_HOMES = {
    "budget": ("Budget",),
    "callbacks": ("CallbackReceiver", "CallbackStatistics"),
    "client": ("AsyncClient", "Drained"),
    "errors": (
        "APIConnectionError",
        "AccountError",
        "AddressRefusedError",
        "AuthenticationError",
        "BudgetExceededError",
        "ClientStateError",
        "ConfigurationError",
        "InsufficientBalanceError",
        "InvalidTaskError",
        "JournalError",
        "NoProviderError",
        "ProtocolError",
        "ProxyError",
        "RateLimitedError",
        "ServiceError",
        "SolutionError",
        "SolveTimeoutError",
        "SubmitUncertainError",
        "TaskNotFoundError",
        "UCaptchaError",
        "UnsolvableError",
        "UnsupportedTaskError",
    ),
    "journal": ("Journal", "MemoryJournal", "SQLiteJournal"),
    "pacing": ("RateLimiter",),
    "solving.prefetch": ("Prefetch", "PrefetchStatistics"),
    "solving.stream": ("Outcomes",),
    "polling": ("Polling",),
    "tasks.proxy": ("Proxy",),
    "results": ("Attempt", "Outcome", "SelectionMode", "Status", "TaskResult"),
    "tasks.solutions": (
        "CoordinatesSolution",
        "GeeTestV3Solution",
        "GeeTestV4Solution",
        "Point",
        "RotateSolution",
        "Solution",
        "TencentSolution",
        "TextSolution",
        "TokenSolution",
    ),
    "solving.job": ("Job",),
    "solving.statistics": ("ClientStatistics",),
    "tasks": (
        "ClickCoordinates",
        "FriendlyCaptcha",
        "FunCaptcha",
        "GeeTestV3",
        "GeeTestV4",
        "HCaptcha",
        "ImageToText",
        "MTCaptcha",
        "RecaptchaV2",
        "RecaptchaV2Enterprise",
        "RecaptchaV3",
        "Rotate",
        "Task",
        "Tencent",
        "Turnstile",
        "YandexSmartCaptcha",
    ),
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
