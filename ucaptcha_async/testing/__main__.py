"""`python -m ucaptcha_async.testing`: the local service as a process of its own."""

from __future__ import annotations

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
