"""Keeps this project out of the test run of the repository: `tests/test_plugin.py` runs it as a project of its own.

This file alone is not part of it.
"""

from __future__ import annotations

collect_ignore_glob = ["*"]
