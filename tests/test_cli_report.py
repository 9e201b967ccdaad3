"""`ucaptcha report`: what it computes, and what it draws."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.cli_kit import read_lines, write_lines

pytest.importorskip("cyclopts")

from ucaptcha_async.cli import main
from ucaptcha_async.cli.exits import Exit
from ucaptcha_async.cli.report.facts import OTHERS, gather, nice_step

BEGIN = datetime(2026, 5, 1, 12, tzinfo=UTC)


def line(number: int, **more: Any) -> dict[str, Any]:
    """A solved line: submitted after `number` s, ready 10 s later, known after 2 s more."""
    known = {
        "key": f"k{number}",
        "type": "TurnstileTaskProxyless",
        "status": "solved",
        "token": f"secret-token-{number}",
        "cost": "0.00145",
        "solve_time": 10.0,
        "polls": 2,
        "submitted_at": (BEGIN + timedelta(seconds=number)).isoformat(),
        "ended_at": (BEGIN + timedelta(seconds=number + 12)).isoformat(),
    }
    return known | more


def failure(number: int, kind: str, code: str | None, charged: bool | None, **more: Any) -> dict[str, Any]:
    """A line without a solution."""
    error = {"class": kind, "code": code, "message": "no", "charged": charged}
    lost = line(number, **{"status": "failed", "error": error, "cost": None, "solve_time": None, **more})
    del lost["token"]
    return lost


def mixed() -> Iterator[dict[str, Any]]:
    """An output with something of everything."""
    rng = random.Random(1)
    for number in range(200):
        kind = rng.choice(["TurnstileTaskProxyless", "HCaptchaTaskProxyless", "<b>&\"'</script><script>alert(1)"])
        yield line(number, type=kind, solve_time=rng.lognormvariate(2, 0.5))
    for number in range(200, 210):
        yield failure(number, "UnsolvableError", "ERROR_CAPTCHA_UNSOLVABLE", False)
    yield failure(210, "SubmitUncertainError", None, None, status="uncertain")


def test_facts_are_exact_where_they_can_be() -> None:
    """Counts, money, quantiles, waiting, failures by cause."""
    facts = gather(
        [
            *(line(n) for n in range(10)),
            failure(10, "UnsolvableError", "ERROR_CAPTCHA_UNSOLVABLE", False),
            failure(11, "SolutionError", None, True),
        ]
    )

    assert facts.counts == {"solved": 10, "failed": 2, "uncertain": 0}
    assert facts.spent == 10 * Decimal("0.00145")
    assert facts.begin == BEGIN.timestamp()
    assert facts.elapsed == pytest.approx(23)
    assert facts.polls_per_solve == 2
    assert facts.wait == pytest.approx((2.0, 2.0))
    (spread,) = facts.spreads
    assert (spread.count, spread.p10, spread.p50, spread.p90) == (10, 10, 10, 10)
    assert {(cause.cause, cause.charged, cause.count) for cause in facts.causes} == {
        ("ERROR_CAPTCHA_UNSOLVABLE", "not charged", 1),
        ("Solution", "charged", 1),
    }


def test_course_of_time_adds_up() -> None:
    """Throughput integrates to the lines, tasks in flight to the time they took."""
    facts = gather(line(n) for n in range(50))

    steps = [moment.until - moment.at for moment in facts.course]
    solved = sum(moment.solved * step for moment, step in zip(facts.course, steps, strict=True))
    flying = sum(moment.in_flight * step for moment, step in zip(facts.course, steps, strict=True))
    assert solved == pytest.approx(50)
    assert flying == pytest.approx(50 * 12, rel=0.01)
    assert max(moment.in_flight for moment in facts.course) == pytest.approx(12, abs=1)
    assert facts.spending[-1].usd == pytest.approx(50 * 0.00145)


def test_distributions_have_a_share_for_each_type() -> None:
    """They add up to one, however long the tail is."""
    rng = random.Random(2)
    facts = gather(line(n, type=f"T{n % 3}", solve_time=rng.lognormvariate(2, 1.5)) for n in range(300))

    for name in ("T0", "T1", "T2"):
        assert sum(bar.share for bar in facts.solve_times if bar.type == name) == pytest.approx(1)
    assert len(facts.solve_times) <= 3 * 41


def test_later_line_of_a_key_replaces_the_earlier_one() -> None:
    """A line that was tried again counts once."""
    facts = gather([failure(1, "UnsolvableError", "E", False), line(1)])

    assert facts.counts == {"solved": 1, "failed": 0, "uncertain": 0}
    assert facts.causes == []


def test_rare_types_are_one() -> None:
    """A chart tells eight apart at the most."""
    facts = gather(line(n, type=f"T{n % 20}") for n in range(400))

    assert len(facts.spreads) == 8
    assert OTHERS in {spread.type for spread in facts.spreads}


def test_lines_without_times_and_costs_do_no_harm() -> None:
    """As they come from the journal of an earlier run, or from a hand that has edited them."""
    facts = gather(
        [
            line(1, submitted_at=None, solve_time=None),
            line(2, submitted_at="yesterday", cost="much", solve_time=float("nan"), polls="many"),
            line(3, submitted_at=7, ended_at=None, cost=3, type=None),
            failure(4, "X", None, None) | {"error": "odd"},
        ]
    )

    assert facts.total == 4
    assert facts.wait is None
    assert [cause.cause for cause in facts.causes] == ["Unknown"]


@pytest.mark.parametrize(("least", "step"), [(0.003, 0.005), (0.1, 0.1), (1.1, 2), (7, 10), (0.25, 0.5)])
def test_bars_are_as_wide_as_people_count(least: float, step: float) -> None:
    """1, 2 or 5 times a power of ten."""
    assert nice_step(least) == pytest.approx(step)


def test_page_stands_alone_and_hides_tokens(tmp_path: Path) -> None:
    """One file that may load nothing; names from outside are text; a PNG for each chart."""
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    results = write_lines(tmp_path / "results.jsonl", mixed())
    assert main(["report", str(results), "--png", str(tmp_path / "png"), "--title", "A & <B>"]) == 0

    text = (tmp_path / "results.html").read_text()
    assert "default-src 'none'" in text
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=|url\(|@import", markup)
    assert "secret-token" not in text
    assert "<h1>A &amp; &lt;B&gt;</h1>" in text
    assert "<script>alert(1)" not in text
    found = re.search(r"^const specs = (.*);$", text, re.MULTILINE)
    assert found is not None
    charts = json.loads(found[1])
    assert set(charts) == {"solve-times", "spread", "waiting", "throughput", "in-flight", "spend", "failures"}
    assert {path.stem for path in (tmp_path / "png").iterdir()} == set(charts)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "results.html", *(tmp_path / "png").iterdir())} == {
        0o600
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "png").iterdir())
    assert len(read_lines(results)) == 211


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the script that draws: it takes seconds to put together."""
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    monkeypatch.setattr("ucaptcha_async.cli.report.page.bundle", lambda: "")


@pytest.mark.usefixtures("quick")
def test_page_of_nothing_says_so(tmp_path: Path) -> None:
    """An output without lines is no error."""
    results = tmp_path / "results.jsonl"
    results.write_text("")

    assert main(["report", str(results), "-o", str(tmp_path / "page.html"), "--png", str(tmp_path / "png")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count("nothing to show") == 7
    assert not (tmp_path / "png").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("content", "arguments", "code", "reason"),
    [
        (None, [], Exit.FILE, "cannot be read"),
        ("my diary\n", [], Exit.FILE, "line 1"),
        ("", ["-o", "results.jsonl"], Exit.USAGE, "would replace"),
        ("", ["-o", "results.jsonl/page.html"], Exit.FILE, "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    arguments: list[str],
    code: Exit,
    reason: str,
) -> None:
    """In one line, and nothing is overwritten."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("results.jsonl").write_text(content)

    assert main(["report", "results.jsonl", *arguments]) == code
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["results.jsonl"])


def test_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command that brings it."""
    import sys

    for name in ("altair", "ucaptcha_async.cli.report.charts", "ucaptcha_async.cli.report.page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)
    results = write_lines(tmp_path / "results.jsonl", [line(1)])

    assert main(["report", str(results)]) == Exit.USAGE
    assert "pip install 'ucaptcha_async[report]'" in capsys.readouterr().err
