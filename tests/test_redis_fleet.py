"""A fleet of real processes over a real Redis, against one local service: what its books say."""

from __future__ import annotations

from decimal import Decimal

import pytest

from .redis_kit import redis_marks

pytest.importorskip("coredis")

from benchmarks import fleet

pytestmark = redis_marks


def test_a_saturated_fleet() -> None:
    """Three processes that want all there is, with clocks set apart: no limit is exceeded, and the money is exact."""
    settings = {"processes": 3, "limit": 600, "window": 2.0, "places": 30, "lanes": 25, "seconds": 14.0}
    result = fleet.measure("money", {**settings, "solve_time": 0.3, "interval": 0.2, "money": "0.6"})

    assert result["most_in_flight"] <= 30
    assert result["fullest_window"] <= 600
    assert Decimal("0.5") <= Decimal(result["spent"]) <= Decimal("0.6")
    assert min(result["solved"]) > 0


def test_processes_killed_at_random() -> None:
    """Nothing that was paid is lost, and no job is paid twice, whoever is killed whenever."""
    settings = {"processes": 3, "kills": 6, "jobs": 120, "solve_time": 0.6, "interval": 0.3, "pause": (0.8, 1.4)}
    result = fleet.measure("kill", {**settings, "window": 2.0, "limit": 2_000, "places": 60, "seconds": 120})

    assert result["kills"] == 6
    assert result["twice"] == 0
    assert result["lost"] == 0
    assert result["solved"] + result["uncertain"] == 120
    assert result["most_in_flight"] <= 60
    assert Decimal(result["spent"]) <= Decimal(result["money"])
