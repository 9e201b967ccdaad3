"""Import time: up to a client that is entered, against httpx alone, in fresh interpreters, in turns."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harness import Bench

DEPENDENCIES_ENTERED = "an httpx.AsyncClient entered; anyio and attrs imported"
ENTERED = "an AsyncClient entered; Turnstile imported"
STATEMENTS = {
    "import anyio, attrs, httpx": "import anyio, attrs, httpx",
    "from ucaptcha_async import AsyncClient, Turnstile": "from ucaptcha_async import AsyncClient, Turnstile",
    DEPENDENCIES_ENTERED: (
        "import asyncio, anyio, attrs, httpx\n"
        "async def main():\n"
        "    async with httpx.AsyncClient(): pass\n"
        "asyncio.run(main())"
    ),
    ENTERED: (
        "import asyncio\n"
        "from ucaptcha_async import AsyncClient, Turnstile\n"
        "async def main():\n"
        "    async with AsyncClient('ucap_benchmark'): pass\n"
        "asyncio.run(main())"
    ),
}
PROGRAM = """
import os, time
core = {core}
if core is not None:
    os.sched_setaffinity(0, {{core}})
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu))
"""


def run(bench: Bench) -> dict[str, Any]:
    """Time each statement."""
    from .harness import ROOT, Figure, environment, note

    note("imports")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STATEMENTS}
    for number, name in bench.rounds(list(STATEMENTS), 7 if bench.quick else 16):
        program = PROGRAM.format(core=bench.client_core, statement=STATEMENTS[name])
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
        wall, cpu = map(float, done.stdout.split())
        if number:  # the first round fills the file cache
            found[name].append((wall, cpu))
    rows = [
        {"statement": name, "wall_ms": Figure.of(w for w, _ in times), "cpu_ms": Figure.of(c for _, c in times)}
        for name, times in found.items()
    ]
    return {"rows": rows}
