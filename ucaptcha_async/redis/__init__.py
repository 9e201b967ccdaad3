"""What the processes of a fleet share over Redis (extra `redis`)."""

from __future__ import annotations

from .budget import RedisBudget, RedisReservation
from .in_flight import RedisInFlight
from .journal import RedisJournal
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
    "RedisBudget",
    "RedisEvent",
    "RedisHook",
    "RedisInFlight",
    "RedisJournal",
    "RedisRateLimiter",
    "RedisReservation",
    "RedisStateLost",
    "RedisStateLostError",
    "RedisUnavailableError",
]
