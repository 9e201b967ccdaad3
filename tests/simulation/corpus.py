"""Many worlds: whether all is well in each, and whether all that should happen somewhere did."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable

import attrs

from .backends import Backend
from .network import CONNECT_FATES, REQUEST_FATES
from .plan import STEPS
from .world import World, run_world

SOMETIMES = (
    *(f"world_{kind}" for kind in ("httpx", "httpx2", "fast", "httpx2_injected", "shares_limiter")),
    # the network
    *CONNECT_FATES,
    *REQUEST_FATES,
    *(f"extra_{when}_arrived" for when in ("later", "idle", "crossing")),
    "closed_idle",
    "restart",
    "restart_while_busy",
    "refused_while_down",
    # the service
    *(f"service_{name}" for name in ("Reply", "Reply.processed", "Html", "Html.processed", "Json", "Json.processed")),
    *(f"service_{name}" for name in ("Amend", "Truncated", "Huge", "Delay", "RateLimit", "Error", "Error.processed")),
    *(f"service_{name}" for name in ("Reword", "Encoded")),
    *(f"service_Drop.{when}" for when in ("before", "during", "after")),
    # the processes
    *(f"crashed_{when}_{step}" for when in ("before", "after") for step in STEPS),
    "crashed_at_any_time",
    "stopped",
    *(f"claim_{kind}" for kind in ("new", "held", "held_of_another", "busy_of_another", "done_of_another")),
    "claim_uncertain_of_another",
    *(f"recovered_{what}" for what in ("solved", "UnsolvableError", "SubmitUncertainError")),
    # the users
    *(f"cancelled_as_it_{step}" for step in ("connects", "departs", "sent", "reads", "writes", "submitted", "polled")),
    *(f"cancelled_as_it_{step}" for step in ("retried", "solved", "closes")),
    *(f"ended_{how}" for how in ("solved", "cancelled", "dropped")),
    *(f"ended_error_SolveTimeoutError_{phase}" for phase in ("queue", "submit", "wait")),
    *(
        f"ended_error_{kind}Error"
        for kind in ("SubmitUncertain", "Unsolvable", "InsufficientBalance", "BudgetExceeded")
    ),
    *(f"ended_error_{kind}Error" for kind in ("Authentication", "Service", "TaskNotFound")),
    *(f"event_{kind}" for kind in ("Uncertain", "Throttled", "Retried", "Polled", "Cancelled", "Failed")),
    *(f"taken_up_{what}" for what in ("solved", "UnsolvableError")),
    *(f"event_{kind}" for kind in ("TypeNameChosen", "TokenReady", "TokenTaken", "TokenExpired", "TokenDelayed")),
    "renamed",
    "asked_again",
    "journal_vanished",
    "waited_again",
    "stream_left",
    "stream_stopped",
)
"""What must have happened in a large corpus, or the checks may have seen nothing."""


@attrs.define(eq=False)
class Corpus:
    """What many worlds came to.

    Attributes:
        worlds: How many.
        requests: How many requests left their clients.
        solved: How many solves ended with a solution.
        fired: What happened how often.
        failures: What went wrong, with the command that shows it again.
    """

    worlds: int = 0
    requests: int = 0
    solved: int = 0
    fired: Counter[str] = attrs.field(factory=Counter)
    failures: list[str] = attrs.field(factory=list)

    def add(self, world: World) -> None:
        """Take in a world."""
        self.worlds += 1
        self.requests += len(world.network.requests)
        self.solved += world.fired["ended_solved"]
        self.fired.update(world.fired)
        if world.complaints:
            self.failures.append(report(world))

    def merge(self, other: Corpus) -> None:
        """Take in another corpus."""
        self.worlds += other.worlds
        self.requests += other.requests
        self.solved += other.solved
        self.fired.update(other.fired)
        self.failures += other.failures

    def missing(self) -> list[str]:
        """What should have happened somewhere and did not."""
        return [name for name in SOMETIMES if not self.fired[name]]


def report(world: World) -> str:
    """What is wrong with a world, and how to see it again."""
    seed, backend = world.plan.seed, world.backend
    lines = "\n  ".join(complaint.replace("\n", "\n    ") for complaint in world.complaints[:10])
    command = f"python -m tests.simulation --seed {seed} --backend {backend}"
    return f"seed {seed} on {backend}, {len(world.complaints)} complaints:\n  {lines}\n  replay: {command}"


def explore(seeds: Iterable[int], backend: Backend) -> Corpus:
    """Run worlds."""
    corpus = Corpus()
    for seed in seeds:
        corpus.add(run_world(seed, backend))
    gc.collect()  # none ran inside the worlds
    return corpus
