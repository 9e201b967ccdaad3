"""Worlds in fair weather, and what a test changes in them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ucaptcha_async import Polling
from ucaptcha_async.testing import DIALECTS

from .plan import KINDS, Life, Plan, Work

PATIENT = 100_000.0


def works(count: int, **details: Any) -> tuple[Work, ...]:
    """Work that is alike."""
    details = {"kind": KINDS[0], "at": 0.0, "timeout": PATIENT, **details}
    return tuple(Work(name=f"w{number}", **details) for number in range(count))


def plan(seed: int, **changes: Any) -> Plan:
    """A world without faults, but for the changes."""
    calm: dict[str, Any] = {
        "seed": seed,
        "library": ("httpx", "httpx2", "fast")[seed % 3],
        "injected": False,
        "shares_limiter": False,
        "works": works(10),
        "lives": ((Life(),),),
        "journal": False,
        "stores_solutions": False,
        "journal_vanishes_at": None,
        "calm_at": 60.0,
        "connections": 8,
        "request_timeout": 30.0,
        "limit": 10_000,
        "window": 10.0,
        "in_flight": 100,
        "polling": Polling(),
        "on_uncertain": "raise",
        "cancel_grace": 5.0,
        "budget": None,
        "breaker_reset": None,
        "leave_after": None,
        "service_limit": changes.get("limit", 10_000),
        "solve_median": 8.0,
        "failure_rate": 0.0,
        "failure_code": "ERROR_CAPTCHA_UNSOLVABLE",
        "dialect": DIALECTS["ucaptcha"],
        "retention": None,
        "lightning": 0,
        "balance": Decimal(100),
        "skew": 0.0,
        "faults": (),
        "delays": (0.02, 0.05),
        "rates": {},
        "idle_timeout": 60.0,
        "restarts": (),
    }
    return Plan(**{**calm, **changes})
