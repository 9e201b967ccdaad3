"""The simulation: hundreds of worlds on each backend, all from seeds."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio._core._run as trio_run

from ucaptcha_async.testing import VirtualLoop

from . import backends
from .backends import BACKENDS, Backend
from .corpus import Corpus, explore
from .plan import Life, draw
from .world import run_world

WORLDS = 300
CHUNK = 15


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Odd answers are logged, and there are thousands of them."""
    before = logging.root.manager.disable
    logging.disable()
    yield
    logging.disable(before)


@functools.cache
def _chunk(backend: Backend, number: int) -> Corpus:
    return explore(range(number * CHUNK, (number + 1) * CHUNK), backend)


@pytest.mark.parametrize("number", range(WORLDS // CHUNK))
@pytest.mark.parametrize("backend", BACKENDS)
def test_worlds(backend: Backend, number: int) -> None:
    """In every world nothing is lost, paid twice, over a limit, or left over."""
    corpus = _chunk(backend, number)

    assert CHUNK == corpus.worlds
    assert not corpus.failures, "\n" + "\n".join(corpus.failures)


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_happened(backend: Backend) -> None:
    """Each kind of fault, crash and end was met somewhere in the corpus, or the checks would have seen nothing."""
    corpus = Corpus()
    for number in range(WORLDS // CHUNK):
        corpus.merge(_chunk(backend, number))

    assert [] == corpus.missing()
    assert corpus.solved > 5 * WORLDS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [3, 22, 101])
def test_a_seed_is_a_world(backend: Backend, seed: int) -> None:
    """The same seed gives the same world, in this process and in another one that hashes differently."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--backend", backend]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed + 1)}
    root = Path(__file__).parents[2]

    first = run_world(seed, backend)
    again = run_world(seed, backend)
    other = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)

    assert first.lines == again.lines
    assert f"trace {first.hash}" in other.stdout


def test_seeds_differ() -> None:
    """Another seed is another world; another order of tasks makes another course of the same plan."""
    plan = draw(3)

    assert plan != draw(4)
    assert run_world(plan, "asyncio").hash != run_world(plan, "trio").hash


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_names_its_replay(backend: Backend) -> None:
    """What goes wrong is reported with the one command that shows it again."""
    world = run_world(1, backend)
    world.complain("example", "this went wrong")
    corpus = Corpus()
    corpus.add(world)

    assert "[example] this went wrong" in corpus.failures[0]
    assert f"python -m tests.simulation --seed 1 --backend {backend}" in corpus.failures[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_world_without_faults(backend: Backend) -> None:
    """In good weather, with patient users and solvable tasks, everything is solved."""
    for seed in range(5):
        plan = draw(seed)
        works = tuple(
            attrs.evolve(work, timeout=100_000, cancel_after=None, cancel_step=None, attempts=1) for work in plan.works
        )
        calm = attrs.evolve(
            plan,
            works=works,
            lives=((Life(),),) * len(plan.lives),
            rates={},
            faults=(),
            restarts=(),
            failure_rate=0.0,
            retention=None,
            budget=None,
            leave_after=None,
            renamed=None,
        )
        world = run_world(attrs.evolve(calm, balance=draw(0).balance * 100), backend)

        assert [] == world.complaints
        assert {"solved"} == {call.ending for call in world.calls}


def test_private_names() -> None:
    """What is used of asyncio's and trio's insides is still what it was: else the order is no longer the seed's."""
    assert callable(asyncio.BaseEventLoop._run_once)  # type: ignore[attr-defined]
    assert issubclass(backends.ShuffledLoop, VirtualLoop)
    assert isinstance(trio_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert hasattr(trio_run._r, "shuffle")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_orders_the_tasks(backend: Backend) -> None:
    """Tasks that are ready together run in an order that depends on the seed and on nothing else."""

    def order(seed: int) -> tuple[int, ...]:
        return _order(backend, seed)

    orders = {seed: order(seed) for seed in range(20)}

    assert orders == {seed: order(seed) for seed in range(20)}
    assert len(set(orders.values())) > 10


def _order(backend: Backend, seed: int) -> tuple[int, ...]:
    import anyio

    ran: list[int] = []

    async def note(number: int) -> None:
        await anyio.sleep(1)
        ran.append(number)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(note, number)

    backends.run(main, backend, seed)
    return tuple(ran)
