"""`ucaptcha journal` and `ucaptcha recover`: what is paid for and has not ended."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli_kit import FAST, KEY, Ended, read_lines, task, write_lines
from ucaptcha_async.testing import Drop, RunningService, running_service

pytest.importorskip("cyclopts")

from ucaptcha_async.cli import main
from ucaptcha_async.cli.exits import Exit

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service(speed=40) as running:
        yield running


@pytest.fixture
def run(service: RunningService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("UCAPTCHA_BASE_URL", service.url)
    monkeypatch.setenv("UCAPTCHA_API_KEY", KEY)

    def call(*arguments: str | Path) -> Ended:
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return call


@pytest.fixture
def output(run: Run, service: RunningService, tmp_path: Path) -> Path:
    """A batch with a job of each kind: solved, failed, of unknown fate, and paid for but not ended."""
    output = tmp_path / "results.jsonl"
    first = write_lines(tmp_path / "a.jsonl", [task(1, key="lost")])
    service.script("createTask", Drop(after=True))
    assert run("batch", first, "-o", output, *FAST).code == Exit.UNCERTAIN
    service.fail_next()
    assert run("batch", write_lines(tmp_path / "b.jsonl", [task(2, key="failed")]), "-o", output, *FAST).code == 4
    service.solve_next(after=0.9)
    late = write_lines(tmp_path / "c.jsonl", [task(3, key="late")])
    assert run("batch", late, "-o", output, "--timeout", "0.4", *FAST).code == Exit.UNSOLVED
    assert run("batch", write_lines(tmp_path / "d.jsonl", [task(4, key="done")]), "-o", output, *FAST).code == 0
    return output


def test_journal_shows_what_is_open_and_what_it_cost(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For people and as JSON, given the journal or the output beside it; without a key."""
    monkeypatch.delenv("UCAPTCHA_API_KEY")
    shown = run("journal", output)

    assert shown.code == 0
    assert "USD 0.00145" in shown.out
    assert "2 open" in shown.out
    assert all(word in shown.out for word in ("late", "lost", "accepted", "uncertain", "failed, refunded"))
    assert max(map(len, shown.out.splitlines())) <= 80
    told = run("journal", output.with_name("results.jsonl.journal"), "--json").json
    assert {entry["key"]: entry["state"] for entry in told["open"]} == {"late": "accepted", "lost": "uncertain"}
    assert {total["state"]: total["cost"] for total in told["totals"]}["solved"] == "0.00145"


def test_journal_keeps_tokens_to_itself(run: Run, output: Path) -> None:
    """They are in the file, and nowhere in what is shown."""
    token = next(line["token"] for line in read_lines(output) if line["status"] == "solved")

    assert token not in run("journal", output).out + run("journal", output, "--json").out


def test_forgotten_work_can_be_submitted_anew(run: Run, output: Path, tmp_path: Path) -> None:
    """By its key; what is not there is said."""
    ended = run("journal", output, "--forget", "lost", "--forget", "nonsense")

    assert ended.code == Exit.USAGE
    assert "lost is forgotten" in ended.err
    assert "'nonsense'" in ended.err
    again = write_lines(tmp_path / "a.jsonl", [task(1, key="lost")])
    assert run("batch", again, "-o", tmp_path / "new.jsonl", "--journal", f"{output}.journal", *FAST).code == 0


def test_old_rows_can_be_removed(run: Run, output: Path) -> None:
    """Only what has ended."""
    for wrong in ("-1", "nan", "inf"):
        refused = run("journal", output, f"--prune={wrong}")
        assert (refused.code, "--prune must be" in refused.err) == (Exit.USAGE, True)
    assert "2 ended rows removed" in run("journal", output, "--prune", "0").err
    told = run("journal", output, "--json").json
    assert {total["state"] for total in told["totals"]} == {"accepted", "uncertain"}


@pytest.mark.parametrize("content", [None, b"nonsense" * 100, b""])
def test_journal_that_is_none_is_8(run: Run, tmp_path: Path, content: bytes | None) -> None:
    """And it is not made, nor changed."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with_content = run("journal", file)

    assert with_content.code == (0 if content == b"" else Exit.FILE)
    assert "Traceback" not in with_content.err
    if content:
        assert file.read_bytes() == content
    else:
        assert file.exists() is (content is not None)


def test_recover_waits_for_what_is_open(run: Run, output: Path, service: RunningService) -> None:
    """It pays nothing, appends to a batch's output what is new, and leaves nothing open but what nobody can know."""
    before = service.books()["charged"]
    ended = run("recover", output, "-o", output, *FAST)

    assert ended.code == Exit.UNCERTAIN
    assert "1 solved, 1 of unknown fate" in ended.err
    assert service.books()["charged"] == before
    assert {line["key"]: line["status"] for line in read_lines(output)} == {
        "lost": "uncertain",
        "failed": "failed",
        "late": "solved",
        "done": "solved",
    }
    assert len(read_lines(output)) == 4
    run("journal", output, "--forget", "lost")
    again = run("recover", output, *FAST)
    assert (again.code, again.out) == (0, "")
    assert "nothing is open" in again.err


def test_recover_prints_lines_of_json(run: Run, output: Path) -> None:
    """Without an output of its own."""
    ended = run("recover", output, "-q", *FAST)
    lines = [json.loads(line) for line in ended.out.splitlines()]

    assert ended.err == ""
    assert {line["key"]: line["status"] for line in lines} == {"lost": "uncertain", "late": "solved"}
    assert next(line["token"] for line in lines if line["key"] == "late")


def test_journal_of_another_program_is_refused(run: Run, tmp_path: Path) -> None:
    """A SQLite database of something else is not touched."""
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()

    assert run("journal", file).code == Exit.FILE
