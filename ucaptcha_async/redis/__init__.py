"""What the processes of a fleet share over Redis (extra `redis`)."""

from __future__ import annotations

from .limiter import RedisRateLimiter, RedisUnavailableError

__all__ = [
    "RedisRateLimiter",
    "RedisUnavailableError",
]
