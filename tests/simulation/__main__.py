"""Replay one world, or run many: `python -m tests.simulation --help`."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from .backends import BACKENDS
from .corpus import Corpus, explore, report
from .world import run_world

ENOUGH = 300
"""Worlds from which on everything must have happened at least once."""


def main() -> int:
    """Run what the command line asks for, and return the exit code."""
    options = _parse()
    logging.disable()
    backends = BACKENDS if options.backend == "both" else (options.backend,)
    if options.seed is not None:
        return max(_replay(options.seed, backend, trace=options.trace) for backend in backends)
    return max(_explore(options.first, options.worlds, backend) for backend in backends)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=sys.modules[__package__].__doc__)
    parser.add_argument("--backend", choices=[*BACKENDS, "both"], default="both")
    parser.add_argument("--seed", type=int, help="replay the one world of this seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    parser.add_argument("--worlds", type=int, default=ENOUGH, help="how many worlds to run")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of them")
    return parser.parse_args()


def _replay(seed: int, backend: str, *, trace: bool) -> int:
    world = run_world(seed, backend)  # type: ignore[arg-type]
    if trace:
        print(world.plan, *world.lines, sep="\n")
    print(f"seed {seed} on {backend}: {len(world.network.requests)} requests, trace {world.hash}")
    if world.complaints:
        print(report(world))
    return bool(world.complaints)


def _explore(first: int, count: int, backend: str) -> int:
    began, corpus = time.perf_counter(), Corpus()
    for seed in range(first, first + count, 50):
        part = explore(range(seed, min(seed + 50, first + count)), backend)  # type: ignore[arg-type]
        print(*part.failures, sep="\n", end="\n" if part.failures else "", flush=True)
        corpus.merge(part)
    took = time.perf_counter() - began
    print(
        f"{backend}: {corpus.worlds} worlds, {corpus.requests} requests, {corpus.solved} solved, "
        f"{len(corpus.failures)} failures, {took:.0f} s"
    )
    missing = corpus.missing() if count >= ENOUGH else []
    if missing:
        print(f"never happened: {', '.join(missing)}")
    return bool(corpus.failures or missing)


if __name__ == "__main__":
    sys.exit(main())
