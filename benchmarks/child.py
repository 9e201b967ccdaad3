"""The process that is measured: `python -m benchmarks.child MODULE:FUNCTION JSON`.

It pins itself to its core, calls the function with the JSON object's members as keywords, prints what it returns, and
ends at once: what a library leaves behind (threads, open sockets) is not waited for.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys

from .meter import say


def main() -> None:
    """Run one measurement."""
    place, text = sys.argv[1:3]
    arguments = json.loads(text)
    core = arguments.pop("core", None)
    if core is not None:
        os.sched_setaffinity(0, {core})
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)
    result = function(**arguments)
    say(asyncio.run(result) if inspect.iscoroutine(result) else result)
    os._exit(0)


if __name__ == "__main__":
    main()
