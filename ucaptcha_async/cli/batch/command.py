"""`ucaptcha batch`: its options, and what it tells at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import anyio
import attrs
from cyclopts import Group, Parameter

from ucaptcha_async.checks import seconds
from ucaptcha_async.cli.connection import Connection, JsonFlag, QuietFlag
from ucaptcha_async.cli.exits import CommandError
from ucaptcha_async.cli.kinds import parse_words
from ucaptcha_async.cli.output import duration, money, note, say_json
from ucaptcha_async.cli.progress import choose_mode, showing
from ucaptcha_async.client import MAX_IN_FLIGHT, AsyncClient
from ucaptcha_async.journal import SQLiteJournal
from ucaptcha_async.pacing import RateLimiter
from ucaptcha_async.results import SelectionMode
from ucaptcha_async.solving.session import OnUncertain
from ucaptcha_async.solving.statistics import ClientStatistics

from .index import KeyIndex, Met
from .results import Rejects, Results
from .runner import Batch, Files, Gate, left_open
from .source import Defaults, Format, open_source

LIMITS = Group("Limits", sort_key=3)
INPUT = Group("Input", sort_key=2)
FILES = Group("Files", sort_key=4)

LARGE = 50_000_000
"""Bytes of earlier results whose reading takes long enough to be told of."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Work:
    """What is done with each line."""

    type: Annotated[
        str | None,
        Parameter(group=INPUT, help="The task type of all lines that name none, for example turnstile."),
    ] = None
    set: Annotated[
        list[str],
        Parameter(
            group=INPUT,
            help="name=text or name:=JSON: a field of all lines that have none of that name. May be repeated.",
            negative=(),
            show_default=False,
        ),
    ] = attrs.field(factory=list)
    format: Annotated[
        Format | None,
        Parameter(group=INPUT, help="What the input is. Default: by its name; standard input is jsonl."),
    ] = None
    attempts: Annotated[
        int, Parameter(group=LIMITS, help="Tasks to use for a line until one is solved; failed ones are refunded.")
    ] = 1
    timeout: Annotated[float, Parameter(group=LIMITS, help="Seconds for one line.")] = 300.0
    selection_mode: Annotated[
        SelectionMode | None, Parameter(group=LIMITS, help="How the service chooses providers.")
    ] = None
    provider: Annotated[str | None, Parameter(group=LIMITS, help="The one provider to use.")] = None
    max_spend: Annotated[
        Decimal | None,
        Parameter(
            group=LIMITS,
            help="USD that the whole batch may cost, earlier runs included (as the journal knows them).",
        ),
    ] = None
    max_in_flight: Annotated[int, Parameter(group=LIMITS, help="Tasks at the service at once.")] = MAX_IN_FLIGHT
    rate_limit: Annotated[
        int, Parameter(group=LIMITS, help="Requests in any 10 s; lower it where others share your address.")
    ] = 10_000
    drain: Annotated[
        float,
        Parameter(group=LIMITS, help="Seconds to wait, after a first Ctrl-C or SIGTERM, for what is in flight."),
    ] = 30.0


def batch(
    tasks: Annotated[
        Path,
        Parameter(
            help="A file of tasks (.jsonl, .json, .csv, .tsv), a folder of images, or - for standard input.",
            allow_leading_hyphen=True,
        ),
    ],
    /,
    *,
    output: Annotated[
        Path,
        Parameter(
            name=["--output", "-o"],
            help="Where results go, or - for standard output.",
            group=FILES,
            allow_leading_hyphen=True,
        ),
    ],
    journal: Annotated[
        Path | None,
        Parameter(
            help="Where paid tasks are kept until they end. Default: the output's name and .journal.", group=FILES
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        Parameter(help="Where bad lines go. Default: the output's name and .rejects.", group=FILES),
    ] = None,
    retry_failed: Annotated[
        bool,
        Parameter(
            help="Do lines again that an earlier run saw fail. A second result of a line replaces the first.",
            negative=(),
            show_default=False,
        ),
    ] = False,
    resubmit_uncertain: Annotated[
        bool,
        Parameter(
            help="Submit lines of unknown fate (sent, and no answer came) again, which may pay for them twice.",
            negative=(),
            show_default=False,
        ),
    ] = False,
    work: Work | None = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
    connection: Connection | None = None,
) -> int:
    """Solve a file of tasks, or a folder of images; start it again, and it goes on where it was.

    Each line of a .jsonl file is a task: `{"type": "turnstile", "website_url": "https://…", "website_key": "0x4…"}`;
    such objects may also stand in one JSON array. Types and fields are those of `ucaptcha solve`; "key" may name a
    line. The first line of a .csv file names the fields; `,`, `;`, `|` or tabs may part them. Each result is a line of
    the output, written as soon as it is known.

    However the command is stopped (Ctrl-C, SIGTERM, SIGKILL), the same command goes on where it was: what is in the
    output is not done again, and what is paid for is waited for and not paid again. Bad lines go to the rejects file
    with the reason, and the rest goes on.
    """
    work, connection = work or Work(), connection or Connection()
    for path in (tasks, output):
        if str(path).startswith("-") and str(path) != "-":
            raise CommandError(f"there is no option {str(path)!r} (a file of that name: ./{path})")
    if json and _is_stdout(output):
        raise CommandError("--json and --output - both want standard output")
    run = Batch(
        source=open_source(tasks, work.format, Defaults(type=work.type, fields=parse_words(tuple(work.set), None))),
        journal=_journal(output, journal),
        gate=Gate(max_spend=work.max_spend),
        drain=seconds("drain", work.drain),
        again=frozenset([*([Met.FAILED] if retry_failed else []), *([Met.UNCERTAIN] if resubmit_uncertain else [])]),
        quiet=quiet,
    )
    client = _client(connection, work, run, on_uncertain="resubmit" if resubmit_uncertain else "raise")
    if not quiet and output.is_file() and output.stat().st_size > LARGE:
        note(f"reading the results that {str(output)!r} has already")
    with _files(output, rejects) as files:
        summary = anyio.run(_run, run, client, files)
    if json:
        say_json(summary.as_json())
    elif not quiet:
        summary.tell()
    return run.code


def _client(connection: Connection, work: Work, run: Batch, on_uncertain: OnUncertain) -> AsyncClient:
    return connection.client(
        timeout=work.timeout,
        attempts=work.attempts,
        selection_mode=work.selection_mode,
        provider=work.provider,
        max_in_flight=work.max_in_flight,
        rate_limit=RateLimiter(limit=work.rate_limit),
        journal=run.journal,
        budget=run.gate,
        on_uncertain=on_uncertain,
        on_event=run.hear,
    )


def _is_stdout(output: Path) -> bool:
    return str(output) == "-"


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


def _journal(output: Path, chosen: Path | None) -> SQLiteJournal | None:
    if chosen is None and _is_stdout(output):
        note("no journal: what is paid for is lost if this is killed (--journal FILE keeps it)")
        return None
    # With the solutions, because the one of a task that ended just before a crash is in no output yet.
    return SQLiteJournal(chosen or _beside(output, ".journal"), store_solutions=True)


@contextlib.contextmanager
def _files(output: Path, rejects: Path | None) -> Iterator[Files]:
    if rejects is None and not _is_stdout(output):
        rejects = _beside(output, ".rejects")
    with KeyIndex() as index:
        results = Results.to_stdout() if _is_stdout(output) else Results.open(output, index)
        files = Files(index=index, results=results, rejects=Rejects(rejects))
        try:
            yield files
        finally:
            files.rejects.close()
            results.close()


async def _run(run: Batch, client: AsyncClient, files: Files) -> Summary:
    async with client:
        if files.results.earlier and not run.quiet:
            note(f"{files.results.earlier:,} results are there already; going on")
        async with showing(lambda: run.meter.snapshot(client.statistics()), *choose_mode(quiet=run.quiet)):
            await run.run(client, files)
        paid_open, spent_in_all = len(client.abandoned), None
        if run.journal is not None:
            paid_open, spent_in_all = await left_open(run.journal)
        else:
            for task_id in client.abandoned:
                note(f"paid for and not waited for: ucaptcha result {task_id} --wait")
        return Summary(
            run=run,
            files=files,
            elapsed=run.meter.elapsed,
            statistics=client.statistics(),
            paid_open=paid_open,
            spent_in_all=spent_in_all,
        )


@attrs.frozen(kw_only=True)
class Summary:
    """What the run has come to.

    Attributes:
        run: The run.
        files: Its files.
        elapsed: Seconds.
        statistics: What the client counted.
        paid_open: Tasks that are paid for and have not ended, as the journal knows them.
        spent_in_all: USD that the journal knows of, earlier runs included.
    """

    run: Batch
    files: Files
    elapsed: float
    statistics: ClientStatistics
    paid_open: int
    spent_in_all: Decimal | None

    @property
    def spent(self) -> Decimal:
        """USD, in this run."""
        return sum(self.statistics.spent.values(), Decimal(0))

    def as_json(self) -> dict[str, object]:
        """As plain values; money is text."""
        counts = self.run.counts
        return {
            "solved": counts.here["solved"],
            "failed": counts.here["failed"],
            "uncertain": counts.here["uncertain"],
            "done_before": dict(counts.before),
            "rejected": counts.rejected,
            "not_done": counts.here["unsent"],
            "paid_open": self.paid_open,
            "causes": dict(counts.causes),
            "spent": str(self.spent),
            "spent_in_all": None if self.spent_in_all is None else str(self.spent_in_all),
            "elapsed": round(self.elapsed, 3),
            "requests": self.statistics.requests,
            "exit": int(self.run.code),
            "reason": self.run.reason,
        }

    def tell(self) -> None:
        """Tell it to people, on standard error."""
        counts = self.run.counts
        before = counts.before.total()
        parts = [f"{counts.here['solved']:,} solved", f"{counts.here['failed']:,} failed"]
        parts += [f"{counts.here['uncertain']:,} of unknown fate"] if counts.here["uncertain"] else []
        parts += [f"{before:,} were done before"] if before else []
        note(f"{', '.join(parts)}, in {duration(self.elapsed)} for USD {money(self.spent)}")
        for cause, number in counts.causes.most_common(5):
            note(f"  {number:,} x {cause}")
        if counts.rejected:
            first, path = self.files.rejects.first, self.files.rejects.path
            which = "1 bad line" if counts.rejected == 1 else f"{counts.rejected:,} bad lines, the first"
            note(f"{which}: {first}" + ("" if path is None else f" (see {path})"))
        if self.run.reason is not None:
            note(f"stopped: {self.run.reason}")
        if self.paid_open and self.run.journal is not None:
            note(f"{self.paid_open:,} tasks are paid for and have not ended: start it again to take them up")
