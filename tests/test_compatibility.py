"""The compatibility tables of the documentation cannot rot: what they name exists, and what exists is named."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from ucaptcha_async.codes import CODES, PENDING_CODES
from ucaptcha_async.results import Status

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text()


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(ucaptcha_async\.[\w.]+)`", PAGE))))
def test_places_exist(reference: str) -> None:
    """Each place in the library can be imported."""
    module, *names = reference.split(".")[1:]
    found: object = importlib.import_module(f"ucaptcha_async.{module}")
    for name in names:
        found = getattr(found, name)

    assert found is not None


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/[\w./:]+)`", PAGE))))
def test_tests_exist(reference: str) -> None:
    """Each test that is named is there."""
    path, _, name = reference.partition("::")

    assert (ROOT / path).is_file()
    assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_codes_and_statuses_are_all_listed() -> None:
    """Each code with the class that the library gives it, and each status."""
    rows = dict(
        re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \| `?(?:ucaptcha_async\.errors\.)?(\w+)`? \|$", PAGE, re.MULTILINE)
    )

    assert {code: cls.__name__ for code, cls in CODES.items()} | dict.fromkeys(PENDING_CODES, "pending") == rows
    assert all(f"`{status.value}`" in PAGE for status in Status)
