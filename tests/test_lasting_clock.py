"""The clock of what outlives its event loop."""

from __future__ import annotations

import time
from typing import Any

import attrs
import pytest

from ucaptcha_async.pacing.event_loop import EventLoop
from ucaptcha_async.pacing.lasting_clock import LastingClock


class Times:
    """The time of the machine, and event loops whose clocks go with it."""

    def __init__(self) -> None:
        self.passed = 0.0

    def loop(self, shows: float, *, faster: float = 1.0) -> EventLoop:
        """An event loop whose clock shows `shows` now."""
        began = self.passed
        unused: Any = None
        return EventLoop(
            identity=object(),
            time=lambda: shows + (self.passed - began) * faster,
            sleep=unused,
            limit=unused,
            spawner=unused,
            call_soon=unused,
            runs_here=unused,
            is_trio=False,
        )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    times = Times()
    monkeypatch.setattr(time, "monotonic", lambda: 5_000.0 + times.passed)
    return times


def test_the_first_loops_clock_counts(times: Times) -> None:
    """In its first loop it shows what that loop's clock shows."""
    clock = LastingClock()
    clock.follow(times.loop(100.0))
    times.passed += 3

    assert (clock.now(), clock.ahead) == (103.0, 0.0)


@pytest.mark.parametrize("shows", [0.0, 100.0, 1e6])
def test_it_goes_on_in_later_loops(times: Times, shows: float) -> None:
    """Whatever the clocks of later loops show, it goes on, and the time between two loops counts."""
    clock = LastingClock()
    clock.follow(times.loop(100.0))
    for _ in range(3):
        times.passed += 7
        clock.follow(later := times.loop(shows))
        times.passed += 1

        assert clock.now() == 100.0 + times.passed
        assert later.time() - clock.ahead == clock.now()


def test_it_does_not_fall_back_behind_what_was_noted(times: Times) -> None:
    """After a loop whose time ran ahead of the machine's it goes on from the latest time that was noted."""
    clock = LastingClock()
    clock.follow(times.loop(0.0, faster=1_000.0))
    times.passed += 4
    noted = clock.now()
    clock.follow(times.loop(50.0), latest=noted)

    assert noted == clock.now() == 4_000.0


def test_another_name_of_the_same_loop_changes_nothing(times: Times) -> None:
    """To follow the loop that it follows already is nothing, however its clock has run meanwhile."""
    clock = LastingClock()
    clock.follow(loop := times.loop(0.0, faster=1_000.0))
    times.passed += 4
    clock.follow(attrs.evolve(loop))

    assert (clock.now(), clock.ahead) == (4_000.0, 0.0)
