"""An asyncio and trio client for the uCaptcha API with real concurrency control."""

from __future__ import annotations

import importlib.metadata

from .budget import Budget
from .client import AsyncClient
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
from .limits import RateLimiter
from .many import Outcomes
from .polling import Polling
from .proxy import Proxy
from .results import Attempt, Outcome, SelectionMode, Status, TaskResult
from .solving import Job
from .statistics import ClientStatistics
from .tasks import (
    FriendlyCaptcha,
    FunCaptcha,
    GeeTestV3,
    GeeTestV4,
    HCaptcha,
    MTCaptcha,
    RecaptchaV2,
    RecaptchaV2Enterprise,
    RecaptchaV3,
    Tencent,
    Turnstile,
    YandexSmartCaptcha,
)

__all__ = [
    "APIConnectionError",
    "AccountError",
    "AddressRefusedError",
    "AsyncClient",
    "Attempt",
    "AuthenticationError",
    "Budget",
    "BudgetExceededError",
    "ClientStateError",
    "ClientStatistics",
    "ConfigurationError",
    "FriendlyCaptcha",
    "FunCaptcha",
    "GeeTestV3",
    "GeeTestV4",
    "HCaptcha",
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
    "Polling",
    "ProtocolError",
    "Proxy",
    "ProxyError",
    "RateLimitedError",
    "RateLimiter",
    "RecaptchaV2",
    "RecaptchaV2Enterprise",
    "RecaptchaV3",
    "SQLiteJournal",
    "SelectionMode",
    "ServiceError",
    "SolutionError",
    "SolveTimeoutError",
    "Status",
    "SubmitUncertainError",
    "TaskNotFoundError",
    "TaskResult",
    "Tencent",
    "Turnstile",
    "UCaptchaError",
    "UnsolvableError",
    "UnsupportedTaskError",
    "YandexSmartCaptcha",
]
