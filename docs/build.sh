#!/usr/bin/env bash
# Build the site strictly: a broken link, an unknown reference or a page outside the navigation is an error.
# Needs the dependency group `docs`, in .venv or in the Python that is in use.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --site-dir "${1:-site}"
echo "built ${1:-site}"
