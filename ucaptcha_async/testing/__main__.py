"""`python -m ucaptcha_async.testing`: the local service as a process of its own."""

from __future__ import annotations

import gc

from .command import main

if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # the books only grow: looking through them again and again frees nothing
    raise SystemExit(main())
