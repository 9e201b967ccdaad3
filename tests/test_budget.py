"""The budget: never over the limit by what was reserved, truthful about what it really cost."""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any

import anyio
import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ucaptcha_async.budget import DEFAULT_ESTIMATE, Budget, LocalBudget, Reservation
from ucaptcha_async.errors import BudgetExceededError, ConfigurationError
from ucaptcha_async.pacing.event_loop import current

A, B = "RecaptchaV2TaskProxyless", "ImageToTextTask"


def test_reservation_is_settled_with_the_real_cost() -> None:
    """What was reserved is replaced by what it cost."""
    budget = Budget("1", estimate="0.01")
    reservation = budget.reserve(A, now=0)
    before = (budget.reserved, budget.spent)
    budget.settle(reservation, Decimal("0.00299"), now=1)

    assert (Decimal("0.01"), 0) == before
    assert (0, Decimal("0.00299")) == (budget.reserved, budget.spent)
    assert {A: Decimal("0.00299")} == budget.spent_by_type


def test_failure_is_refunded() -> None:
    """A failed or refused task gives back what was reserved."""
    budget = Budget("0.01", estimate="0.01")
    budget.release(budget.reserve(A, now=0))

    assert (0, 0) == (budget.reserved, budget.spent)
    assert budget.reserve(A, now=0)


def test_unknown_fate_stays_counted() -> None:
    """A submit of unknown fate counts with its estimate, until its fate is known."""
    budget = Budget("1", "1", estimate="0.25")
    first, second = budget.reserve(A, now=0), budget.reserve(A, now=0)
    budget.keep(first, now=1)
    budget.keep(second, now=1)
    kept = budget.spent
    budget.settle(first, Decimal("0.1"), now=2)
    budget.release(second)

    assert Decimal("0.5") == kept
    assert (0, Decimal("0.1")) == (budget.reserved, budget.spent)
    assert Decimal("0.1") == budget.statistics().spent_last_hour == budget.spent_by_type[A]


def test_error_says_everything() -> None:
    """The refusal names the limit, what is spent, what is reserved and what the task would take; nothing is charged."""
    budget = Budget("1.00", estimate="0.4")
    budget.settle(budget.reserve(A, now=0), Decimal("0.3"), now=0)
    budget.reserve(A, now=0)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(A, now=0)
    error: Any = caught.value

    assert "max_spend of USD 1.00 has no room: spent 0.3, reserved 0.4, this task 0.4" == str(error)
    assert (Decimal("1.00"), Decimal("0.3"), Decimal("0.4"), Decimal("0.4")) == (
        error.limit,
        error.spent,
        error.reserved,
        error.estimate,
    )
    assert error.charged is False
    assert error.retryable is True
    assert 1 == budget.statistics().refusals


def test_refusal_for_good() -> None:
    """When not even the submits in flight can make room, trying again is pointless."""
    budget = Budget("1", estimate="0.4")
    budget.settle(budget.reserve(A, now=0), Decimal("0.9"), now=0)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(A, now=0)

    assert caught.value.retryable is False


def test_limit_can_be_used_up_exactly() -> None:
    """The last cent is not withheld."""
    budget = Budget("0.3", estimate="0.1")
    for _ in range(3):
        budget.reserve(A, now=0)
    with pytest.raises(BudgetExceededError):
        budget.reserve(A, now=0)

    assert Decimal("0.3") == budget.reserved


def test_highest_cost_seen_is_reserved() -> None:
    """The most expensive task of a type so far is what the next may cost."""
    budget = Budget()
    for cost in ("0.002", "0.005", "0.003"):
        budget.settle(budget.reserve(A, now=0), Decimal(cost), now=0)

    assert Decimal("0.005") == budget.estimate(A)


def test_first_submits_of_a_fresh_client() -> None:
    """With nothing known a cautious default is reserved, so that thousands at once do not all fit."""
    budget = Budget("1")
    fitting = 0
    with pytest.raises(BudgetExceededError):
        for _ in range(5_000):
            budget.reserve(A, now=0)
            fitting += 1

    assert 100 == fitting
    assert Decimal("0.01") == DEFAULT_ESTIMATE


def test_unknown_type() -> None:
    """A type of which nothing is known reserves the highest cost of all types, and at least the default."""
    budget = Budget()
    budget.spend(B, Decimal("0.0005"), now=0)
    cheap = budget.estimate(A)
    budget.spend(B, Decimal("0.5"), now=0)

    assert DEFAULT_ESTIMATE == cheap
    assert Decimal("0.5") == budget.estimate(A)


def test_any_spelling_of_a_kind_stands_for_it() -> None:
    """For estimates and for the costs that are seen; of several estimates the highest counts, to be safe."""
    budget = Budget(estimate={"TurnstileTaskProxyless": "0.002", "AntiTurnstileTaskProxyLess": "0.003", "Own": "0.1"})
    for name in ("Turnstile", "TurnstileTokenProxyLess", "TurnstileTask"):
        assert Decimal("0.003") == budget.estimate(name)
    assert Decimal("0.1") == budget.estimate("Own")

    budget.spend("TurnstileTask", Decimal("0.004"), now=0)

    assert Decimal("0.004") == budget.estimate("Turnstile") == budget.estimate("TurnstileTokenProxyLess")
    assert {"Turnstile": Decimal("0.004")} == budget.statistics().highest_by_type


def test_given_estimates() -> None:
    """An estimate replaces the default, also a lower one; a higher cost seen replaces the estimate."""
    budget = Budget(estimate={A: "0.003"})
    given_, other = budget.estimate(A), budget.estimate(B)
    budget.spend(A, Decimal("0.001"), now=0)
    lower = budget.estimate(A)
    budget.spend(A, Decimal("0.007"), now=0)

    assert (Decimal("0.003"), DEFAULT_ESTIMATE, Decimal("0.003")) == (given_, other, lower)
    assert Decimal("0.007") == budget.estimate(A)
    assert 0 == Budget(estimate=0).estimate(A)


def test_cost_above_the_estimate_is_counted() -> None:
    """A cost above its estimate is counted as it is, even over the limit, and then nothing more fits."""
    budget = Budget("1", estimate="0.5")
    budget.settle(budget.reserve(A, now=0), Decimal(3), now=0)

    assert Decimal(3) == budget.spent
    with pytest.raises(BudgetExceededError):
        budget.reserve(B, now=0)


@pytest.mark.parametrize(
    "cost", [None, Decimal("NaN"), Decimal("Infinity"), Decimal(-1), Decimal("1E+20"), Decimal("1E-31")]
)
def test_cost_that_is_none(cost: Decimal | None) -> None:
    """If the service does not say what it cost, the estimate is what it cost; it teaches nothing."""
    budget = Budget(estimate="0.2")
    budget.settle(budget.reserve(A, now=0), cost, now=0)

    assert Decimal("0.2") == budget.spent
    assert {} == budget.statistics().highest_by_type


def test_reservation_ends_once() -> None:
    """Ending a reservation a second time changes nothing, and says so."""
    budget = Budget(estimate="0.2")
    settled, released = budget.reserve(A, now=0), budget.reserve(A, now=0)
    first = [budget.settle(settled, Decimal("0.1"), now=0), budget.release(released)]
    again = [
        budget.settle(settled, Decimal(5), now=0),
        budget.release(settled),
        budget.keep(settled, now=0),
        budget.settle(released, Decimal(5), now=0),
        budget.release(released),
        budget.keep(released, now=0),
    ]

    assert [True, True] == first
    assert [False] * 6 == again
    assert (0, Decimal("0.1"), 0) == (budget.reserved, budget.spent, budget.statistics().reservations)


def test_sliding_hour() -> None:
    """What was spent counts against the hourly limit for 60 minutes, and for a second more at most."""
    budget = Budget(max_spend_per_hour="1", estimate="0.5")
    for at in (0.0, 1800.0):
        budget.settle(budget.reserve(A, now=at), Decimal("0.5"), now=at)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(A, now=3599.9)
    later = budget.reserve(A, now=3601.1)

    assert "max_spend_per_hour of USD 1" in str(caught.value)
    assert caught.value.retryable is True
    assert later.estimate == Decimal("0.5")
    assert Decimal("0.5") == budget.statistics().spent_last_hour
    assert 0 == budget.statistics(now=9_000).spent_last_hour
    assert Decimal(1) == budget.spent


def test_open_reservations_do_not_age() -> None:
    """A task that takes longer than an hour stays reserved."""
    budget = Budget(max_spend_per_hour="1", estimate="1")
    budget.reserve(A, now=0)
    with pytest.raises(BudgetExceededError):
        budget.reserve(A, now=10_000)

    assert Decimal(1) == budget.reserved


def test_hour_is_remembered_in_bounded_memory() -> None:
    """However many tasks an hour has, they are kept as one amount per second."""
    budget = Budget(max_spend_per_hour="1000000", estimate="0.001")
    for i in range(20_000):
        budget.settle(budget.reserve(A, now=i / 4), Decimal("0.001"), now=i / 4)

    assert len(budget._hour) <= 3_602
    assert Decimal("20.000") == budget.spent
    assert Decimal("14.4") <= budget.statistics().spent_last_hour <= Decimal("14.41")


def test_clock_that_jumps_back() -> None:
    """An earlier time, as a second event loop may give it, does not bring back or lose what was spent."""
    budget = Budget(max_spend_per_hour="1", estimate="1")
    budget.settle(budget.reserve(A, now=5_000), Decimal(1), now=5_000)
    with pytest.raises(BudgetExceededError):
        budget.reserve(A, now=0)

    assert Decimal(1) == budget.statistics(now=0).spent_last_hour


def test_continued_run() -> None:
    """What an earlier run has spent counts, and what it had paid for but not received is counted when it arrives."""
    budget = Budget("1", estimate="0.3", spent="0.5")
    budget.spend(A, Decimal("0.3"), now=0)
    with pytest.raises(BudgetExceededError):
        budget.reserve(A, now=0)

    assert Decimal("0.8") == budget.spent
    assert {A: Decimal("0.3")} == budget.spent_by_type
    assert 0 == budget.reserved


@pytest.mark.parametrize(
    "value",
    [0.1, True, "ten", "NaN", "-1", Decimal("Infinity"), -1, b"1", [], "1x", "1E+20", "1E-31", "1E+999999", "sNaN"],
)
@pytest.mark.parametrize("field", ["max_spend", "max_spend_per_hour", "estimate", "spent"])
def test_wrong_amounts(field: str, value: Any) -> None:
    """An amount is exact, finite and not negative; the error names the field."""
    with pytest.raises(ConfigurationError, match=field):
        Budget(**{field: value})


def test_float_is_explained() -> None:
    """A float is refused with the reason; an estimate for one type is named."""
    with pytest.raises(ConfigurationError, match=r"estimate\['X'\] must be .* a float is not exact"):
        Budget(estimate={"X": 0.1})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [Decimal("1.50"), 2, "0.001", 0])
def test_right_amounts(value: Any) -> None:
    """Decimal, int and str are amounts; zero is a limit too."""
    assert Decimal(value) == Budget(value).max_spend


def test_views_are_snapshots() -> None:
    """What a budget shows cannot be changed, and does not change."""
    budget = Budget()
    shown, statistics = budget.spent_by_type, budget.statistics()
    budget.spend(A, Decimal(1), now=0)

    assert {} == shown == statistics.spent_by_type
    with pytest.raises(TypeError):
        budget.spent_by_type[A] = Decimal(0)  # type: ignore[index]
    assert "<Budget max_spend=None, max_spend_per_hour=None, spent=1, reserved=0>" == repr(budget)


def test_arithmetic_is_independent_of_the_context() -> None:
    """A program that works with few digits, or traps rounding, does not change what the budget counts."""
    with decimal.localcontext() as context:
        context.prec = 2
        context.traps[decimal.Inexact] = True
        budget = Budget("1", estimate="0.123456789")
        kept = budget.reserve(A, now=0)
        budget.keep(kept, now=0)
        budget.settle(kept, Decimal("0.123456788"), now=0)

    assert Decimal("0.123456788") == budget.spent


amounts = st.decimals(0, 1, places=4)
limits = st.none() | st.decimals(0, 5, places=2)


class Spending(RuleBasedStateMachine):
    """Any order of reservations and ends, against a ledger kept by hand."""

    reservations = Bundle("reservations")
    kept = Bundle("kept")

    @initialize(total=limits, hourly=limits, estimate=amounts)
    def start(self, total: Decimal | None, hourly: Decimal | None, estimate: Decimal) -> None:
        self.budget = Budget(total, hourly, estimate=estimate)
        self.now = 0.0
        self.open: set[Reservation] = set()
        self.spent: dict[Reservation, tuple[float, Decimal]] = {}
        self.excess = Decimal(0)

    @rule(seconds=st.floats(0, 3000))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=reservations, kind=st.sampled_from([A, B]))
    def reserve(self, kind: str) -> Any:
        try:
            reservation = self.budget.reserve(kind, self.now)
        except BudgetExceededError as error:
            wanted: Any = error
            assert wanted.spent + wanted.reserved + wanted.estimate > wanted.limit
            return None
        self.open.add(reservation)
        return reservation

    @rule(reservation=consumes(reservations), part=st.decimals(0, 1, places=2))
    def settle(self, reservation: Reservation | None, part: Decimal) -> None:
        self.end(reservation, part)

    @rule(reservation=consumes(reservations), part=st.decimals(1, 2, places=2))
    def settle_dearer(self, reservation: Reservation | None, part: Decimal) -> None:
        if reservation is not None:
            self.excess += reservation.estimate * part - reservation.estimate
        self.end(reservation, part)

    def end(self, reservation: Reservation | None, part: Decimal) -> None:
        if reservation is None:
            return
        cost = reservation.estimate * part
        assert self.budget.settle(reservation, cost, self.now)
        self.open.discard(reservation)
        self.spent[reservation] = (self.now, cost)

    @rule(reservation=consumes(reservations))
    def release(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            assert self.budget.release(reservation)
            self.open.discard(reservation)

    @rule(target=kept, reservation=consumes(reservations))
    def keep(self, reservation: Reservation | None) -> Reservation | None:
        if reservation is not None:
            assert self.budget.keep(reservation, self.now)
            self.open.discard(reservation)
            self.spent[reservation] = (self.now, reservation.estimate)
        return reservation

    @rule(reservation=consumes(kept), part=st.decimals(0, 1, places=2))
    def learn(self, reservation: Reservation | None, part: Decimal) -> None:
        self.end(reservation, part)

    @rule(reservation=consumes(kept))
    def refund(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            assert self.budget.release(reservation)
            del self.spent[reservation]

    @invariant()
    def counts_truthfully(self) -> None:
        if not hasattr(self, "budget"):
            return
        statistics = self.budget.statistics(self.now)
        spent = sum((cost for _, cost in self.spent.values()), Decimal(0))
        assert sum((r.estimate for r in self.open), Decimal(0)) == statistics.reserved
        assert spent == statistics.spent == sum(statistics.spent_by_type.values(), Decimal(0))
        assert len(self.open) == statistics.reservations

    @invariant()
    def never_over_the_limit(self) -> None:
        if not hasattr(self, "budget"):
            return
        budget = self.budget
        surely = sum((cost for at, cost in self.spent.values() if at > self.now - 3600), Decimal(0))
        at_most = sum((cost for at, cost in self.spent.values() if at > self.now - 3602), Decimal(0))
        assert surely <= budget.statistics(self.now).spent_last_hour <= at_most
        if budget.max_spend is not None:
            assert budget.spent + budget.reserved <= budget.max_spend + self.excess
        if budget.max_spend_per_hour is not None:
            assert surely + budget.reserved <= budget.max_spend_per_hour + self.excess


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_budget_outlives_its_event_loop() -> None:
    """The sliding hour goes on in one loop after another, whatever their clocks show."""
    budget = Budget(max_spend_per_hour="0.02", estimate="0.01")

    async def buy() -> None:
        shared = LocalBudget(budget, current())
        await shared.settle(await shared.reserve(A), Decimal("0.01"))

    async def refused() -> None:
        with pytest.raises(BudgetExceededError):
            await LocalBudget(budget, current()).reserve(A)
        assert budget.statistics(anyio.current_time()).spent_last_hour == Decimal("0.02")

    async def an_hour_later() -> None:
        shared = LocalBudget(budget, current())
        await anyio.sleep(3602)
        await shared.reserve(A)

    for use in (buy, buy, refused, refused):
        for backend in ("trio",) if use is buy else ("trio", "asyncio", "trio"):
            anyio.run(use, backend=backend)
    anyio.run(an_hour_later, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})


@given(st.lists(st.tuples(st.decimals(allow_nan=True, allow_infinity=True), st.floats(-1e9, 1e9)), max_size=20))
def test_any_cost_at_any_time(costs: list[tuple[Decimal, float]]) -> None:
    """No cost or time that a service or clock may give raises anything or makes the sums negative."""
    budget = Budget(max_spend_per_hour="1E+19")
    for cost, now in costs:
        budget.spend(A, cost, now)

    assert 0 <= budget.statistics().spent_last_hour <= budget.spent
