"""`python -m ucaptcha_async` is the command `ucaptcha`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
