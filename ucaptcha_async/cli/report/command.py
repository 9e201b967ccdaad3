"""`ucaptcha report`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ucaptcha_async.cli.batch.results import read_results
from ucaptcha_async.cli.exits import CommandError, Exit
from ucaptcha_async.cli.output import say

from .facts import Facts, gather

if TYPE_CHECKING:
    from .charts import Picture


def report(
    results: Annotated[Path, Parameter(help="The output of ucaptcha batch.")],
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The page. Default: the name of the results, ending in .html."),
    ] = None,
    png: Annotated[Path | None, Parameter(help="A folder for the charts as PNG files; it is made if need be.")] = None,
    title: Annotated[str | None, Parameter(help="The headline. Default: the name of the results.")] = None,
) -> int:
    """Draw what a batch has come to: one HTML page that needs no network, and PNG files if wanted.

    It shows how long solves take by type, throughput and tasks in flight over time, what was spent, failures by cause,
    and the waiting between ready and known. No token is in it.
    """
    facts = gather(read_results(results))
    target = output or results.with_suffix(".html")
    if target.resolve() == results.resolve():
        raise CommandError("the page would replace the results: give another --output")
    charts, text = _draw(title or results.name, facts)
    _write(target, text.encode())
    say(str(target))
    if png is not None:
        _write_pngs(png, charts)
    return Exit.DONE


def _draw(title: str, facts: Facts) -> tuple[list[Picture], str]:
    try:
        from .charts import pictures
        from .page import page
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'ucaptcha_async[report]'") from None
    charts = pictures(facts)
    try:
        return charts, page(title, facts, charts)
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'ucaptcha_async[report]'") from None


def _write_pngs(folder: Path, charts: list[Picture]) -> None:
    from .charts import png

    for picture in charts:
        if picture.chart is not None:
            target = folder / f"{picture.name}.png"
            _write(target, png(picture))
            say(str(target))


def _write(target: Path, data: bytes) -> None:
    """Replace a file as a whole, for the owner's eyes only: a reader sees the old one or the new one."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
            file.write(data)
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise CommandError(f"{str(target)!r} cannot be written: {error.strerror}", Exit.FILE) from None
