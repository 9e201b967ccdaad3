"""Every example of the README, the documentation and the docstrings is run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from ucaptcha_async.testing import KINDS, RunningService, running_service

_parsers = [PythonCodeBlockParser(), SkipParser()]
_fixtures = ["documented_service"]

_pages = Sybil(_parsers, patterns=["README.md", "docs/*.md", "docs/**/*.md"], fixtures=_fixtures)
_docstrings = Sybil(
    _parsers,
    patterns=["ucaptcha_async/*.py", "ucaptcha_async/**/*.py"],
    document_types={".py": PythonDocStringDocument},
    fixtures=_fixtures,
)
pytest_collect_file = (_pages + _docstrings).pytest()


@pytest.fixture(scope="session")
def _answering_at_once() -> Iterator[RunningService]:
    every_type = [name for kind in KINDS for name in kind.types]
    with running_service(immediate_types=every_type, rate_limit=10**6, allow_private_callbacks=True) as service:
        yield service


@pytest.fixture
def documented_service(
    _answering_at_once: RunningService, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the examples find: a service that solves at once, a key, and an empty folder to write to."""
    monkeypatch.setenv("UCAPTCHA_BASE_URL", _answering_at_once.url)
    monkeypatch.setenv("UCAPTCHA_API_KEY", "ucap_documentation")
    monkeypatch.chdir(tmp_path_factory.mktemp("example"))
