"""How fast and how many: the rate limiter and its arithmetic, the bound on what is in flight, the account breaker."""

from __future__ import annotations

from .breaker import Breaker
from .in_flight import InFlight, InFlightBound, InFlightStatistics
from .limiter import Limiter, RateLimiter, RateLimiterStatistics

__all__ = [
    "Breaker",
    "InFlight",
    "InFlightBound",
    "InFlightStatistics",
    "Limiter",
    "RateLimiter",
    "RateLimiterStatistics",
]
