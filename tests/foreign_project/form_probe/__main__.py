"""`python -m form_probe PAGE…`"""

from __future__ import annotations

import asyncio
import sys

from form_probe import probe_all


def main() -> None:
    """Print what became of each page."""
    for page, passed in sorted(asyncio.run(probe_all(sys.argv[1:])).items()):
        print(page, "passed" if passed else "FAILED")


if __name__ == "__main__":
    main()
