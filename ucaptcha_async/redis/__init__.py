"""What the processes of a fleet share over Redis (extra `redis`)."""

from __future__ import annotations

from .in_flight import RedisInFlight
from .limiter import RedisRateLimiter
from .store import (
    RedisAway,
    RedisBack,
    RedisEvent,
    RedisHook,
    RedisStateLost,
    RedisStateLostError,
    RedisUnavailableError,
)

__all__ = [
    "RedisAway",
    "RedisBack",
    "RedisEvent",
    "RedisHook",
    "RedisInFlight",
    "RedisRateLimiter",
    "RedisStateLost",
    "RedisStateLostError",
    "RedisUnavailableError",
]
