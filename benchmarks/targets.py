"""What the library must reach, checked against the results of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .imports import DEPENDENCIES_ENTERED, ENTERED

Row = Mapping[str, Any]

BY_HAND = "aiohttp by hand"


class Target(NamedTuple):
    """One line: what, the bound, what was found, and whether it holds."""

    what: str
    target: str
    found: str
    met: bool


def check(results: Row) -> list[Target]:
    """Every target of the parts that were measured."""
    return [
        *_headline(results.get("headline")),
        *_against_peers(results.get("job")),
        *_flat(results.get("requests")),
        *_pacing(results.get("pacing")),
        *_polling(results.get("polling")),
        *_journal(results.get("journal")),
        *_memory(results.get("memory")),
        *_imports(results.get("imports")),
    ]


def at_most(what: str, found: float, bound: float, digits: int = 2, unit: str = "") -> Target:
    """A target that is a greatest value."""
    return Target(what, f"≤ {bound:,g}{unit}", f"{found:,.{digits}f}{unit}", found <= bound)


def _median(row: Row, name: str) -> float:
    figure = row[name]
    return float(figure["median"]) if figure is not None else float("inf")


def _headline(part: Row | None) -> Iterator[Target]:
    rows = {row["client"]: row for row in part["rows"]} if part else {}
    for name, bound in (("ours", 2.5), ("ours, fast", 1.6)):
        if name not in rows:
            continue
        row, count = rows[name], rows[name]["count"]
        least = row["solved"]["low"]
        yield Target(f"{name}: solved", f"{count:,}", f"{least:,.0f}", least == count)
        yield at_most(f"{name}: wall time / ideal", _median(row, "over_ideal"), 1.03, 3)
        yield at_most(f"{name}: most requests in any 10 s", row["worst_window"]["high"], 10_000, 0)
        yield at_most(f"{name}: longest stall", _median(row, "stall_ms"), 50, 0, " ms")
        if BY_HAND in rows:
            ratio = _median(row, "cpu_ms") / _median(rows[BY_HAND], "cpu_ms")
            yield at_most(f"{name}: CPU a solve / {BY_HAND}", ratio, bound, 2, " ×")


def _against_peers(part: Row | None) -> Iterator[Target]:
    rows = part["rows"] if part else []
    for count in sorted({row["count"] for row in rows}):
        found = {row["client"]: row["cpu_ms"] for row in rows if row["count"] == count}
        ours, other = found.get("ours"), found.get("2captcha-python")
        if ours and other:
            ratio = ours["median"] / other["median"]
            yield at_most(f"CPU a solve / 2captcha-python's, {count:,} solves", ratio, 0.05, 4, " ×")


def _flat(part: Row | None) -> Iterator[Target]:
    rows = part["rows"] if part else []
    cost = {(row["client"], row["latency"], row["concurrency"]): row["cpu_ms"] for row in rows}
    for name in dict.fromkeys(row["client"] for row in rows if row["client"].startswith("ours")):
        for concurrency in (100, 1000):
            many, single = cost.get((name, 0.0, concurrency)), cost.get((name, 0.0, 1))
            if many and single:
                ratio = many["median"] / single["median"]
                yield at_most(f"{name}: CPU a request at {concurrency:,} / at 1", ratio, 1.3, 2, " ×")


def _pacing(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["share_of_rest"] is None:
            share = _median(row, "share")
            yield Target(f"{row['way']}: share of the limit", "≥ 0.98", f"{share:.3f}", share >= 0.98)
        else:
            refused = row["throttled"]["high"]
            yield Target(f"{row['way']}: our 429s", "0", f"{refused:.0f}", refused == 0)
        yield at_most(f"{row['way']}: most of ours in 10 s", row["worst_window_of_ours"]["high"], part["limit"], 0)  # type: ignore[index]


def _polling(part: Row | None) -> Iterator[Target]:
    for distribution in part["distributions"] if part else []:
        row = next(row for row in distribution["rows"] if row["polling"] == "learned, 200 solves")
        name = distribution["name"]
        if "12 s" in name:
            yield at_most(f"{name}: polls a solve", row["polls"], 2.5)
            yield at_most(f"{name}: mean delay", row["mean_delay"], 2.7, 2, " s")
        yield at_most(f"{name}: cost over the optimum", 100 * row["over_optimum"], 5, 1, " %")


def _journal(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["steady"]:
            yield at_most(f"journal, {row['way']}: CPU added", row["added"], 10, 1, " %")


def _memory(part: Row | None) -> Iterator[Target]:
    for row in part["rows"] if part else []:
        if row["way"].startswith("solve") and row["kb"] is not None:
            yield at_most(
                f"{row['way']}, {row['backend']}: memory of a waiting solve", row["kb"]["median"], 12, 1, " KB"
            )


def _imports(part: Row | None) -> Iterator[Target]:
    rows = {row["statement"]: row for row in part["rows"]} if part else {}
    if rows:
        ratio = _median(rows[ENTERED], "cpu_ms") / _median(rows[DEPENDENCIES_ENTERED], "cpu_ms")
        yield at_most("CPU up to an entered client / the same of httpx, anyio, attrs", ratio, 1.15, 2, " ×")
