"""`ucaptcha batch`: what goes in, what comes out, and what an interruption leaves behind."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.cli_kit import (
    FAST,
    KEY,
    PIXEL,
    Ended,
    end,
    environment,
    page,
    read_lines,
    standing,
    start,
    task,
    wait_until,
    write_lines,
)
from ucaptcha_async.testing import Drop, Error, RunningService, running_service

pytest.importorskip("cyclopts")

from ucaptcha_async.cli import main
from ucaptcha_async.cli.batch import lines as line_reader
from ucaptcha_async.cli.batch.index import KeyIndex, Met
from ucaptcha_async.cli.batch.lines import Line, Reader, count_lines
from ucaptcha_async.cli.exits import Exit

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[RunningService]:
    with running_service(speed=40, balance="1000") as running:
        yield running


@pytest.fixture
def service(shared_service: RunningService) -> RunningService:
    shared_service.clear_faults()
    return shared_service


@pytest.fixture
def own_service() -> Iterator[RunningService]:
    """For tests that read all of the books."""
    with running_service(speed=10, balance="1000") as running:
        yield running


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `batch` in this process, against the service that is given first."""
    monkeypatch.setenv("UCAPTCHA_API_KEY", KEY)

    def call(service: RunningService, *arguments: str | Path) -> Ended:
        monkeypatch.setenv("UCAPTCHA_BASE_URL", service.url)
        code = main(["batch", *map(str, arguments), *FAST])
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return call


@pytest.fixture
def run(service: RunningService, run_on: Run) -> Run:
    """Run `batch` in this process."""
    return functools.partial(run_on, service)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


# --- inputs


def test_lines_of_json_become_lines_of_results(run: Run, tmp_path: Path, output: Path) -> None:
    """Friendly types and fields, the service's own, and a nested `task`; each result names its line and its key."""
    tasks = write_lines(
        tmp_path / "tasks.jsonl",
        [
            task(1, key="mine"),
            {"type": "TurnstileTaskProxyless", "websiteURL": page(2), "websiteKey": "0x4A", "id": 7},
            "",
            {"key": "nested", "task": {"type": "image", "image": PIXEL}},
        ],
    )
    ended = run(tasks, "-o", output)

    assert ended.code == 0
    results = {line["key"]: line for line in read_lines(output)}
    assert {key: line["line"] for key, line in results.items()} == {"mine": 1, "7": 2, "nested": 4}
    assert results["mine"].keys() >= {"type", "status", "task_id", "token", "cost", "solve_time", "polls", "ended_at"}
    assert results["mine"]["token"].startswith("0.")
    assert results["mine"]["submitted_at"] < results["mine"]["ended_at"]
    assert (results["nested"]["type"], results["nested"]["cost"]) == ("ImageToTextTask", "0.0005")
    assert "3 solved" in ended.err


def test_table_names_its_fields_in_its_first_line(run: Run, tmp_path: Path, output: Path) -> None:
    """Empty cells are left out, quoted cells may hold line breaks, a name that ends in `:` has JSON in its cells."""
    table = tmp_path / "tasks.csv"
    table.write_text(
        "\ufefftype,website_url,website_key,min_score,key,extra:\r\n"
        f"recaptcha-v3,{page(1)},6L,0.7,a,\r\n"
        f'turnstile,{page(2)},0x4A,,"b\n2",\r\n'
        "\r\n"
        f'RecaptchaV3TaskProxyless,{page(3)},6L,0.3,c,"{{"\r\n'
    )
    ended = run(table, "-o", output)

    assert ended.code == Exit.REJECTS
    assert {(line["key"], line["line"]) for line in read_lines(output)} == {("a", 2), ("b\n2", 3)}
    (reject,) = read_lines(output.with_name("results.jsonl.rejects"))
    assert reject["line"] == 6
    assert "JSON" in reject["reason"]


def test_table_with_a_broken_record_goes_on(run: Run, tmp_path: Path, output: Path) -> None:
    """Too many cells, and a quote that is never closed."""
    table = write_lines(
        tmp_path / "tasks.tsv", ["website_url\twebsite_key", f"{page(1)}\t0x4A\tmore", f"{page(2)}\t0x4A", '"open\t']
    )
    ended = run(table, "-o", output, "--type", "turnstile")

    assert ended.code == Exit.REJECTS
    assert [line["line"] for line in read_lines(output)] == [3]
    assert [line["line"] for line in read_lines(output.with_name("results.jsonl.rejects"))] == [2, 4]


def test_folder_of_images_is_solved_by_name(run: Run, tmp_path: Path, output: Path) -> None:
    """Other files are passed over; a file that is no image is a reject."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.gif", "b.png"):
        (folder / name).write_bytes(base64.b64decode(PIXEL) + name.encode())
    (folder / "broken.png").write_bytes(b"nonsense")
    (folder / "notes.txt").write_text("nothing")
    ended = run(folder, "-o", output, "--set", "numeric:=1")

    assert ended.code == Exit.REJECTS
    assert {line["file"] for line in read_lines(output)} == {"a.gif", "b.png"}
    assert [line["file"] for line in read_lines(output.with_name("results.jsonl.rejects"))] == ["broken.png"]


def test_standard_input_may_come_slowly(service: RunningService, output: Path) -> None:
    """A line is worked on as soon as it is there."""
    process = start(service.url, "batch", "-", "-o", output, *FAST, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(task(1)) + "\n")
    process.stdin.flush()
    wait_until(lambda: output.exists() and output.read_text())
    process.stdin.write(json.dumps(task(2)) + "\nnonsense")
    process.stdin.close()
    process.stdin = None
    ended = end(process)

    assert ended.code == Exit.REJECTS
    assert [line["line"] for line in read_lines(output)] == [1, 2]
    rejects = output.with_name("results.jsonl.rejects")
    assert read_lines(rejects) == [{"line": 3, "reason": "not JSON: Expecting value", "text": "nonsense"}]
    assert rejects.stat().st_mode & 0o077 == 0


def test_defaults_fill_what_lines_leave_out(run: Run, tmp_path: Path, output: Path) -> None:
    """`--type` and `--set`; what a line says itself comes first."""
    tasks = write_lines(tmp_path / "t.jsonl", [{"website_url": page(1)}, {"type": "image", "image": PIXEL}])
    ended = run(tasks, "-o", output, "--type", "turnstile", "--set", "website_key=0x4A")

    # The image has no website_key.
    assert ended.code == Exit.REJECTS
    assert [line["type"] for line in read_lines(output)] == ["TurnstileTokenProxyLess"]


BAD = [
    ("[1, 2]", "a list"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"a": NaN}', "type is missing"),
    ({"type": 7}, "type is missing"),
    ({"type": "turnstil"}, "did you mean 'turnstile'"),
    ({"type": "turnstile", "website_url": "no", "website_key": "k"}, "website_url must be an absolute URL"),
    ({"type": "turnstile", "website_url": page(0)}, "needs website_key"),
    (task(0, colour="red"), "no field 'colour'"),
    (task(0, key=True), "key must be"),
    (task(0, key=""), "key must be"),
    (task(0, key="x" * 501), "key must be"),
    (task(0, key="\ud800"), "key must be"),
    (task(0, key="a", id="b"), "both"),
    (task(0, website_key="\ud800"), "website_key"),
    (task(0, task={"type": "turnstile"}), "beside 'task'"),
    (task(0, proxy="http://user:hush-hush@nowhere"), "port"),
    ({"type": "image", "image": "no-such-file.png"}, "there is no file"),
]


def test_bad_lines_go_to_the_rejects_and_the_rest_goes_on(run: Run, tmp_path: Path, output: Path) -> None:
    """Each with its reason and the number of its line, and without what it said."""
    tasks = write_lines(tmp_path / "t.jsonl", [*(line for line, _ in BAD), task(1, key="good"), task(2, key="good")])
    ended = run(tasks, "-o", output)

    assert ended.code == Exit.REJECTS
    assert [line["key"] for line in read_lines(output)] == ["good"]
    rejects = output.with_name("results.jsonl.rejects")
    assert "hush" not in rejects.read_text()
    found = {line["line"]: line["reason"] for line in read_lines(rejects)}
    assert found.pop(len(BAD) + 2) == "the key 'good' stands before in the input"
    for number, (_, reason) in enumerate(BAD, 1):
        assert reason in found[number]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--nonsense"], "no option"),
        ([".", "--format", "csv"], "is a folder"),
        (["t.jsonl", "--format", "images"], "is no folder"),
        (["t.jsonl", "--max-spend", "-1"], "max_spend"),
        (["t.jsonl", "--attempts", "0"], "attempts"),
        (["t.jsonl", "--timeout", "-3"], "timeout"),
        (["t.jsonl", "--drain", "-3"], "drain"),
        (["t.jsonl", "--max-in-flight", "0"], "max_in_flight"),
        (["t.jsonl", "--rate-limit", "0"], "limit"),
        (["t.jsonl", "--set", "nonsense"], "name=value"),
        (["empty.csv"], "must name its fields"),
    ],
)
def test_wrong_options_are_2(
    run: Run, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    """And say which."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "t.jsonl", [task(1)])
    (tmp_path / "empty.csv").write_text("type,type\n")
    ended = run(*words, "-o", output)

    assert ended.code == Exit.USAGE
    assert reason in ended.err


# --- outputs


def test_second_run_has_nothing_to_do(run: Run, tmp_path: Path, output: Path, service: RunningService) -> None:
    """What is in the output is not done again, and nothing is added to it."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(20)])
    assert run(tasks, "-o", output).code == 0
    before, spent = output.read_bytes(), service.books()["charged"]

    ended = run(tasks, "-o", output, "--json")
    assert ended.code == 0
    assert ended.json["done_before"] == {"solved": 20}
    assert output.read_bytes() == before
    assert service.books()["charged"] == spent


def test_lost_and_torn_results_come_back_from_the_journal(
    run: Run, tmp_path: Path, output: Path, service: RunningService
) -> None:
    """A crash may tear the last line, or come between journal and output: nothing is paid again."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(10)])
    assert run(tasks, "-o", output).code == 0
    complete = {line["key"]: line for line in read_lines(output)}
    charged = service.books()["charged"]
    for kept in (b"".join(output.read_bytes().splitlines(keepends=True)[:6])[:-30], b"", b'{"key":"x'):
        output.write_bytes(kept)
        ended = run(tasks, "-o", output)

        assert ended.code == 0
        again = {line["key"]: line for line in read_lines(output)}
        assert len(read_lines(output)) == 10
        assert {key: line["token"] for key, line in again.items()} == {k: line["token"] for k, line in complete.items()}
    assert service.books()["charged"] == charged
    assert all(line["from_journal"] for line in read_lines(output))


def test_line_that_lacks_only_its_end_is_kept(run: Run, tmp_path: Path, output: Path) -> None:
    """It is whole: it is ended, not cut."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(3)])
    run(tasks, "-o", output)
    output.write_bytes(output.read_bytes()[:-1])

    assert run(tasks, "-o", output, "--json").json["done_before"] == {"solved": 3}
    assert len(read_lines(output)) == 3


def test_file_of_somebody_else_is_left_alone(run: Run, tmp_path: Path, output: Path) -> None:
    """An output that holds anything but results is refused."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1)])
    output.write_text("my diary\n")
    ended = run(tasks, "-o", output)

    assert ended.code == Exit.FILE
    assert "line 1" in ended.err
    assert output.read_text() == "my diary\n"


def test_full_disk_is_8(run_on: Run, service: RunningService, tmp_path: Path) -> None:
    """And says so; with a journal, what was paid comes with the next run."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(5)])
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    journal = ("--journal", tmp_path / "j", "--rejects", tmp_path / "r")
    ended = run_on(service, tasks, "-o", full, *journal)
    assert ended.code == Exit.FILE
    assert "No space left" in ended.err
    charged = service.books()["charged"]

    output = tmp_path / "results.jsonl"
    assert run_on(service, tasks, "-o", output, "--journal", tmp_path / "j").code == 0
    assert len(read_lines(output)) == 5
    assert charged == service.books()["charged"]


def test_results_may_go_to_standard_output(run: Run, tmp_path: Path, service: RunningService) -> None:
    """With a journal of one's own choice they come again, and are not paid again."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(3)])
    outs = [run(tasks, "-o", "-", "--journal", tmp_path / "j") for _ in range(2)]

    first, second = ({line["key"]: line["token"] for line in map(json.loads, e.out.splitlines())} for e in outs)
    assert len(first) == 3
    assert first == second
    assert run(tasks, "-o", "-", "--json").code == Exit.USAGE


def test_failures_are_results_too(run: Run, tmp_path: Path, output: Path, service: RunningService) -> None:
    """With class, code and whether money was spent; `--retry-failed` does them again."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1), {"type": "NoSuchTask", "key": "odd"}])
    service.fail_next(type="TurnstileTokenProxyLess")
    ended = run(tasks, "-o", output, "--json")

    assert ended.code == Exit.UNSOLVED
    assert ended.json["causes"] == {
        "Unsolvable ERROR_CAPTCHA_UNSOLVABLE": 1,
        "UnsupportedTask TASK_NOT_SUPPORTED": 1,
    }
    errors = {line["type"]: line["error"] for line in read_lines(output)}
    assert errors["TurnstileTokenProxyLess"]["class"] == "UnsolvableError"
    assert errors["TurnstileTokenProxyLess"]["charged"] is False
    assert run(tasks, "-o", output).code == Exit.UNSOLVED
    assert len(read_lines(output)) == 2

    assert run(tasks, "-o", output, "--retry-failed").code == Exit.UNSOLVED
    latest = {line["key"]: line["status"] for line in read_lines(output)}
    assert sorted(latest.values()) == ["failed", "solved"]


def test_attempts_are_counted(run: Run, tmp_path: Path, output: Path, service: RunningService) -> None:
    """A failed task is refunded, and a new one submitted."""
    service.fail_next(times=2)
    run(write_lines(tmp_path / "t.jsonl", [task(1)]), "-o", output, "--attempts", "3")

    (line,) = read_lines(output)
    assert (line["status"], line["attempts"]) == ("solved", 3)


def test_submit_of_unknown_fate_is_told_and_not_repeated(
    run: Run, tmp_path: Path, output: Path, service: RunningService
) -> None:
    """It is a result of its own kind, until `--resubmit-uncertain` says to risk it."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1)])
    service.script("createTask", Drop(after=True))
    accepted = int(str(service.books()["accepted"]))

    assert run(tasks, "-o", output).code == Exit.UNCERTAIN
    assert run(tasks, "-o", output).code == Exit.UNCERTAIN
    assert [line["status"] for line in read_lines(output)] == ["uncertain"]
    assert service.books()["accepted"] == accepted + 1
    assert run(tasks, "-o", output, "--resubmit-uncertain").code == 0
    assert read_lines(output)[-1]["status"] == "solved"


def test_line_that_runs_out_of_time_is_taken_up_by_the_next_run(
    run: Run, tmp_path: Path, output: Path, service: RunningService
) -> None:
    """It is paid for, and has not ended: it is no result yet."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1)])
    service.solve_next(after=1.0)
    accepted = int(str(service.books()["accepted"]))
    ended = run(tasks, "-o", output, "--timeout", "0.4", "--json")

    assert ended.code == Exit.UNSOLVED
    assert ended.json["paid_open"] == 1
    assert read_lines(output) == []
    assert run(tasks, "-o", output).code == 0
    (line,) = read_lines(output)
    assert line["status"] == "solved"
    assert line["submitted_at"] is not None
    assert service.books()["accepted"] == accepted + 1


def test_money_ends_the_batch_and_never_runs_over(
    run_on: Run, own_service: RunningService, tmp_path: Path, output: Path
) -> None:
    """`--max-spend` holds for all runs of a batch together; exit code 7."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(60)])
    limit = Decimal("0.05")
    for _ in range(2):
        ended = run_on(own_service, tasks, "-o", output, "--max-spend", str(limit))
        assert ended.code == Exit.BUDGET
        assert "max_spend" in ended.err
    spent = Decimal(str(own_service.books()["spent"]))

    assert limit - Decimal("0.00145") < spent <= limit
    assert len(read_lines(output)) == spent / Decimal("0.00145")
    assert run_on(own_service, tasks, "-o", output, "--max-spend", "1").code == 0
    assert Counter(standing(own_service)) == Counter(page(n) for n in range(60))


def test_refused_account_ends_the_batch_at_once(
    run: Run, tmp_path: Path, output: Path, service: RunningService
) -> None:
    """The rest is left for the next run; exit code 3."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(200)])
    service.script("createTask", Error("ERROR_ZERO_BALANCE"))
    before = service.books()["request_counts"]
    ended = run(tasks, "-o", output, "--max-in-flight", "5")

    assert ended.code == Exit.ACCOUNT
    after = service.books()["request_counts"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["createTask"] - before["createTask"] < 20
    assert run(tasks, "-o", output).code == 0
    assert len(read_lines(output)) == 200


def test_secrets_are_nowhere_but_in_the_input(run: Run, tmp_path: Path, output: Path) -> None:
    """Neither the key nor a proxy's password is in what is shown or written; tokens are in output and journal alone."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1, proxy="http://user:hush-hush@127.0.0.1:8080")])
    ended = run(tasks, "-o", output)
    token = read_lines(output)[0]["token"]
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != tasks}

    assert ended.code == 0
    assert token not in ended.out + ended.err
    for content in (*written.values(), (ended.out + ended.err).encode()):
        assert KEY.encode() not in content
        assert b"hush-hush" not in content
    assert output.with_name("results.jsonl.journal").stat().st_mode & 0o077 == 0


def test_quiet_says_nothing(run: Run, tmp_path: Path, output: Path) -> None:
    """Unless something is wrong."""
    ended = run(write_lines(tmp_path / "t.jsonl", [task(1)]), "-o", output, "-q")

    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_two_batches_do_not_share_an_output(run_on: Run, service: RunningService, tmp_path: Path, output: Path) -> None:
    """The second is told so."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1)])
    process = start(service.url, "batch", "-", "-o", output, *FAST, stdin=subprocess.PIPE)
    wait_until(lambda: output.with_name("results.jsonl.journal").exists())
    second = run_on(service, tasks, "-o", output)
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None

    assert end(process).code == 0
    assert second.code == Exit.FILE
    assert "another batch" in second.err


# --- interruptions


def _signalled(process: subprocess.Popen[str], number: signal.Signals) -> Ended:
    process.send_signal(number)
    return end(process)


def _flying(service: RunningService, count: int) -> Callable[[], bool]:
    return lambda: int(str(service.books()["accepted"])) >= count


def test_first_interrupt_drains(run_on: Run, own_service: RunningService, tmp_path: Path, output: Path) -> None:
    """Nothing more is submitted, what is in flight ends and is written; the next run does the rest."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(90)])
    arguments = (tasks, "-o", output, "--max-in-flight", "30", "--drain", "20")
    process = start(own_service.url, "batch", *arguments, *FAST)
    wait_until(_flying(own_service, 40))
    ended = _signalled(process, signal.SIGINT)

    assert ended.code == Exit.INTERRUPTED
    assert "stopping" in ended.err
    assert "Traceback" not in ended.err
    accepted = int(str(own_service.books()["accepted"]))
    assert 40 <= accepted < 90
    assert len(read_lines(output)) == accepted
    assert own_service.books()["paid_not_delivered"] == 0

    assert run_on(own_service, *arguments).code == 0
    assert len({line["key"] for line in read_lines(output)}) == len(read_lines(output)) == 90
    assert Counter(standing(own_service)) == Counter(page(n) for n in range(90))


def test_second_signal_stops_now(run_on: Run, own_service: RunningService, tmp_path: Path, output: Path) -> None:
    """What is paid stays open in the journal, and is waited for by the next run."""
    own_service.solve_next(after=4.0, times=20)
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(20)])
    process = start(own_service.url, "batch", tasks, "-o", output, "--drain", "60", *FAST)
    wait_until(_flying(own_service, 20))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    started = time.monotonic()
    ended = _signalled(process, signal.SIGTERM)

    assert time.monotonic() - started < 3
    assert ended.code == Exit.TERMINATED
    assert "20 tasks are paid for" in ended.err
    assert read_lines(output) == []
    assert run_on(own_service, tasks, "-o", output).code == 0
    assert Counter(standing(own_service)) == Counter(page(n) for n in range(20))


def test_drain_ends_in_time(own_service: RunningService, tmp_path: Path, output: Path) -> None:
    """However long the tasks would take."""
    own_service.solve_next(after=60.0, times=5)
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(5)])
    process = start(own_service.url, "batch", tasks, "-o", output, "--drain", "0.5", *FAST)
    wait_until(_flying(own_service, 5))
    started = time.monotonic()
    ended = _signalled(process, signal.SIGTERM)

    assert time.monotonic() - started < 4
    assert ended.code == Exit.TERMINATED
    assert "5 tasks are paid for" in ended.err
    assert read_lines(output) == []


def test_sigterm_waits_for_what_is_on_its_way(run_on: Run, tmp_path: Path, output: Path) -> None:
    """What is submitted just then is answered, waited for and written; nothing is submitted after it."""
    with running_service(seed=3, speed=20, latency=0.7) as service:
        tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(60)])
        process = start(service.url, "batch", tasks, "-o", output, "--max-in-flight", "20", "--drain", "30", *FAST)
        wait_until(_flying(service, 20))  # accepted, and not yet answered
        ended = _signalled(process, signal.SIGTERM)
        books = service.books()

    assert ended.code == Exit.TERMINATED
    results = read_lines(output)
    assert {line["status"] for line in results} == {"solved"}
    assert len(results) == int(str(books["accepted"])) < 60
    assert books["paid_not_delivered"] == 0


def test_ids_are_told_where_there_is_no_journal(own_service: RunningService, tmp_path: Path) -> None:
    """Results go to standard output, and what is paid for and left is named."""
    own_service.solve_next(after=60.0, times=3)
    tasks = write_lines(tmp_path / "t.jsonl", [task(n) for n in range(3)])
    process = start(own_service.url, "batch", tasks, "-o", "-", "--drain", "0.3", *FAST)
    wait_until(_flying(own_service, 3))
    ended = _signalled(process, signal.SIGTERM)

    told = re.findall(r"ucaptcha result (\S+) --wait", ended.err)
    assert sorted(told) == sorted(entry["id"] for entry in own_service.books(full=True)["task_list"])
    assert (ended.code, ended.out) == (Exit.TERMINATED, "")


def test_interrupt_wakes_a_batch_that_waits_for_input(service: RunningService, output: Path) -> None:
    """With nothing in flight it ends at once."""
    process = start(service.url, "batch", "-", "-o", output, "--drain", "60", *FAST, stdin=subprocess.PIPE)
    wait_until(lambda: output.with_name("results.jsonl.journal").exists())
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == Exit.INTERRUPTED
    end(process)


def _count(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


def _has_grown(output: Path, written: int, process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or _count(output) > written


def test_killed_again_and_again_nothing_is_lost_or_paid_twice(
    run_on: Run, own_service: RunningService, tmp_path: Path, output: Path
) -> None:
    """SIGKILL at random moments: in the end each line has one result, and the books have one charge for each solved."""
    count, rng = 200, random.Random(5)
    tasks = write_lines(tmp_path / "t.jsonl", [task(n, key=str(n)) for n in range(count)])
    arguments = (tasks, "-o", output, "--max-in-flight", "60")
    for _ in range(4):
        written = _count(output)
        process = start(own_service.url, "batch", *arguments, *FAST)
        wait_until(functools.partial(_has_grown, output, written, process))
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        end(process)
    ended = run_on(own_service, *arguments)

    assert ended.code in (0, Exit.UNCERTAIN)
    results = read_lines(output)
    assert sorted(int(line["key"]) for line in results) == list(range(count))
    charges = Counter(standing(own_service))
    assert max(charges.values()) == 1
    for line in results:
        if line["status"] == "solved":
            assert charges[page(int(line["key"]))] == 1
        else:
            assert line["status"] == "uncertain"
    # Only what was on its way to the service at the moment of a kill may be of unknown fate.
    assert sum(line["status"] == "uncertain" for line in results) <= 4 * 60


def test_memory_does_not_grow_with_the_input(service: RunningService, tmp_path: Path) -> None:
    """Neither bad lines nor lines done before nor their keys are held."""
    peaks = [_peak(service, tmp_path, lines) for lines in (500, 20_000)]

    assert peaks[1] - peaks[0] < 15 * 1024


def _peak(service: RunningService, tmp_path: Path, lines: int) -> int:
    """The most memory that a batch held, in KiB."""
    tasks, output = tmp_path / f"{lines}.jsonl", tmp_path / f"{lines}-results.jsonl"
    with tasks.open("w") as wanted, output.open("w") as done:
        for n in range(lines):
            wanted.write(json.dumps(task(n, key=f"k{n}")) + "\n" if n % 2 else '{"type": "turnstile"}\n')
            if n % 2 and n > 10:
                done.write(json.dumps({"key": f"k{n}", "status": "solved", "token": "t" * 300}) + "\n")
    program = (
        "import resource, sys; from ucaptcha_async.cli import main; code = main(sys.argv[1:]);"
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, "batch", str(tasks), "-o", str(output), "-q", *FAST]
    ended = subprocess.run(
        command, env=environment(service.url), capture_output=True, text=True, timeout=60, check=True
    )
    code, peak = map(int, ended.stdout.split())
    assert code == Exit.REJECTS
    return peak


# --- the parts


def test_missing_input_is_8(run: Run, tmp_path: Path, output: Path) -> None:
    """Like every other file that is not there."""
    ended = run(tmp_path / "nowhere.jsonl", "-o", output)

    assert (ended.code, ended.err.count("\n")) == (Exit.FILE, 1)
    assert "there is no file or folder" in ended.err


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_tables_as_spreadsheets_write_them(run: Run, tmp_path: Path, output: Path, mark: str, encoding: str) -> None:
    """Whatever parts the cells, in any encoding that a byte order mark tells."""
    bom = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    rows = [("website_url", "website_key", "key"), (page(1), "0x4A", "\u010aи"), (page(2), "0x4A", f'"a{mark}b"')]
    table = tmp_path / "tasks.csv"
    table.write_bytes((bom + "\r\n".join(mark.join(row) for row in rows)).encode(encoding))
    ended = run(table, "-o", output, "--type", "turnstile", "--json")

    assert ended.code == 0
    assert {(line["key"], line["line"]) for line in read_lines(output)} == {("\u010aи", 2), (f"a{mark}b", 3)}
    assert count_lines(table) == 3


def test_table_of_another_encoding_is_not_sent_changed(run: Run, tmp_path: Path, output: Path) -> None:
    """An address with replaced characters would be paid for."""
    table = tmp_path / "t.csv"
    rows = ["website_url,website_key", f"{page(1)}?caf\u00e9,k", f"{page(2)},k", f"{page(3)},k\r{page(4)},k"]
    table.write_bytes("\n".join(rows).encode("latin-1"))
    ended = run(table, "-o", output, "--type", "turnstile")

    assert ended.code == Exit.REJECTS
    assert [line["line"] for line in read_lines(output)] == [3]
    rejects = read_lines(output.with_name("results.jsonl.rejects"))
    assert [line["reason"].partition(":")[0] for line in rejects] == [
        "the text is not UTF-8",
        "a carriage return stands inside the line",
    ]


@pytest.mark.parametrize(
    ("ends", "encoding", "why"),
    [("\r", "utf-8", "a carriage return"), ("\r\n", "utf-16-le", "zero bytes"), ("\n", "latin-1", "not UTF-8")],
)
def test_table_that_cannot_be_read_says_why(
    run: Run, tmp_path: Path, output: Path, ends: str, encoding: str, why: str
) -> None:
    """In one sentence, not as a batch that is done, or as a field that nobody has named."""
    table = tmp_path / "t.csv"
    table.write_bytes(f"website_url,website_key,\u00e9{ends}{page(1)},k,{ends}".encode(encoding))
    ended = run(table, "-o", output, "--type", "turnstile")

    assert (ended.code, ended.err.count("\n")) == (Exit.USAGE, 1)
    assert "the first line of the table cannot be read" in ended.err
    assert why in ended.err


def test_cell_may_hold_a_large_image(run: Run, tmp_path: Path, output: Path) -> None:
    """Larger than what the csv module takes unless told."""
    image = base64.b64encode(base64.b64decode(PIXEL) + bytes(150_000)).decode()
    table = write_lines(tmp_path / "t.csv", ["image", image])

    assert run(table, "-o", output, "--type", "image").code == 0


def test_table_may_say_what_parts_its_cells(run: Run, tmp_path: Path, output: Path) -> None:
    """As spreadsheets do."""
    table = write_lines(tmp_path / "t.csv", ["sep=;", "website_url;website_key,x:", f"{page(1)};1"])
    ended = run(table, "-o", output, "--type", "turnstile")

    assert ended.code == Exit.REJECTS
    (reject,) = read_lines(output.with_name("results.jsonl.rejects"))
    assert (reject["line"], reject["reason"].partition(";")[0]) == (3, "turnstile has no field 'website_key,x'")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_array_of_json_is_taken(
    run: Run, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, encoding: str
) -> None:
    """In one line or in many, in pieces of any size; each result names its item."""
    monkeypatch.setattr(line_reader, "CHUNK", 50)
    tasks = tmp_path / "tasks.json"
    items = [task(1, key="a]}"), 7, task(2), ["x"], task(3, key="\u0436")]
    tasks.write_bytes(json.dumps(items, indent=indent, ensure_ascii=False).encode(encoding))
    ended = run(tasks, "-o", output)

    assert ended.code == Exit.REJECTS
    assert {line["item"] for line in read_lines(output)} == {1, 3, 5}
    assert {line["key"] for line in read_lines(output)} >= {"a]}", "\u0436"}
    rejects = read_lines(output.with_name("results.jsonl.rejects"))
    assert [(line["item"], line["reason"].rpartition(" ")[2]) for line in rejects] == [(2, "number"), (4, "list")]
    assert "2 bad lines, the first: item 2: a JSON object is wanted; this is a number" in ended.err
    assert run(tasks, "-o", output, "--json").json["done_before"] == {"solved": 3}


@pytest.mark.parametrize("rest", ["", ", {", ", {]", "] more", ", nonsense]"])
def test_broken_array_is_read_as_far_as_it_goes(run: Run, tmp_path: Path, output: Path, rest: str) -> None:
    """And then says so."""
    (tmp_path / "t.json").write_text("[" + json.dumps(task(1)) + rest)
    ended = run(tmp_path / "t.json", "-o", output)

    assert ended.code == Exit.REJECTS
    assert len(read_lines(output)) == 1
    assert "item 2: the array is broken here" in ended.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("urls.txt", "https://example.com/1\nhttps://example.com/2\n"),
        ("urls.csv", "https://example.com/1\nhttps://example.com/2\n"),
        ("urls.jsonl", "\n\n  HTTP://example.com/1\n"),
        ("urls.json", '["https://example.com/1", "https://example.com/2"]'),
    ],
)
def test_list_of_urls_is_refused_with_the_reason(
    run: Run, tmp_path: Path, output: Path, service: RunningService, name: str, content: str
) -> None:
    """In one sentence, before anything is sent."""
    before = service.books()["requests"]
    (tmp_path / name).write_text(content)
    ended = run(tmp_path / name, "-o", output)

    assert (ended.code, ended.err.count("\n")) == (Exit.USAGE, 1)
    assert "is a list of URLs, and a page alone is no task" in ended.err
    assert service.books()["requests"] == before


def test_url_among_tasks_is_a_bad_line(run: Run, tmp_path: Path, output: Path) -> None:
    """The rest goes on, and the summary says where and why."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1), "https://example.com"])
    ended = run(tasks, "-o", output)

    assert ended.code == Exit.REJECTS
    assert "1 bad line: line 2: a URL alone is no task (see " in ended.err


def test_results_are_for_the_owner_only(run: Run, tmp_path: Path, output: Path) -> None:
    """They hold tokens; what somebody made readable before stays so."""
    tasks = write_lines(tmp_path / "t.jsonl", [task(1)])
    before = os.umask(0)
    try:
        run(tasks, "-o", output)
        shared = tmp_path / "shared.jsonl"
        shared.touch(0o644)
        run(tasks, "-o", shared)
    finally:
        os.umask(before)

    assert [path.stat().st_mode & 0o777 for path in (output, shared)] == [0o600, 0o644]


async def _lines(fd: int) -> list[Line]:
    return [line async for line in Reader(fd).lines()]


async def test_reader_gives_lines_of_files_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without an end, with either kind of end, in pieces of any size; too long ones are only counted."""
    monkeypatch.setattr(line_reader, "LONGEST", 20)
    monkeypatch.setattr(line_reader, "CHUNK", 7)
    content = b"one\r\n\ntwo" + b"x" * 30 + b"\nthree\n" + b"y" * 21
    wanted = [Line(1, b"one"), Line(2, b""), Line(3, None), Line(4, b"three"), Line(5, None)]
    file = tmp_path / "lines"
    file.write_bytes(content)
    with file.open("rb") as opened:
        assert await _lines(opened.fileno()) == wanted
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    with contextlib.closing(os.fdopen(read, "rb")):
        assert await _lines(read) == wanted
    assert count_lines(file) == 5


async def test_reader_that_waits_can_be_stopped() -> None:
    """And then ends without a line."""
    import anyio

    read, write = os.pipe()
    reader = Reader(read)
    async with anyio.create_task_group() as group:

        async def stop() -> None:
            await anyio.sleep(0.05)
            reader.stop()

        group.start_soon(stop)
        assert [line async for line in reader.lines()] == []
    os.close(read)
    os.close(write)


def test_index_knows_what_it_has_met() -> None:
    """The last word of the output on a key counts; within the input, a key comes once."""
    with KeyIndex() as index:
        index.note([("a", Met.FAILED), ("b", Met.UNCERTAIN), ("a", Met.SOLVED)])

        assert [index.meet(key) for key in ("a", "b", "c", "a", "c")] == [
            Met.SOLVED,
            Met.UNCERTAIN,
            Met.NEW,
            Met.REPEATED,
            Met.REPEATED,
        ]
