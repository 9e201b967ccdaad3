#!/usr/bin/env bash
# Build the site strictly: a broken link, an unknown reference or a page outside the navigation is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --site-dir "${1:-site}"
echo "built ${1:-site}"
