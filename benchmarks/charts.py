"""Charts of the results, as SVG (extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

WIDTH, HEIGHT = 340, 240


def draw(results: Row, folder: Path) -> list[Path]:
    """Draw what was measured, and return the files.

    Raises:
        ImportError: altair or vl-convert-python is missing.
    """
    import altair
    import vl_convert  # noqa: F401

    folder.mkdir(parents=True, exist_ok=True)
    makers = {"requests": _requests, "job": _job, "polling": _polling}
    drawn = []
    for name, make in makers.items():
        if results.get(name):
            path = folder / f"benchmark-{name}.svg"
            make(altair, results[name]).configure_view(strokeOpacity=0).save(str(path))
            drawn.append(path)
    return drawn


def _values(altair: Any, rows: list[dict[str, Any]]) -> Any:
    return altair.Data(values=rows)


def _requests(altair: Any, part: Row) -> Any:
    rows = [
        {
            "client": r["client"],
            "at once": r["concurrency"],
            "CPU ms": r["cpu_ms"]["median"],
            "over": "over TLS" if r["scheme"] == "https" else "over plain HTTP",
        }
        for r in part["rows"]
        if r["cpu_ms"] is not None
    ]
    order = list(dict.fromkeys(row["client"] for row in rows))
    return (
        altair.Chart(_values(altair, rows))
        .mark_line(point=True)
        .encode(
            x=altair.X("at once:Q", scale=altair.Scale(type="log"), title="requests at once"),
            y=altair.Y("CPU ms:Q", scale=altair.Scale(type="log"), title="CPU per request, ms"),
            color=altair.Color("client:N", sort=order, title=None),
            column=altair.Column("over:N", title=None),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def _job(altair: Any, part: Row) -> Any:
    order = list(dict.fromkeys(row["client"] for row in part["rows"]))
    rows = [
        {
            "client": row["client"],
            "solves": f"{row['count']:,} solves at once",
            "count": row["count"],
            "CPU ms": row["cpu_ms"]["median"] if row["cpu_ms"] else None,
            "solved, %": 100 * row["solved"]["median"] / row["count"],
        }
        for row in part["rows"]
    ]
    sizes = [f"{count:,} solves at once" for count in sorted({row["count"] for row in rows})]

    def part_of(chart: Any, field: str, title: str, scale: Any, names: bool) -> Any:
        return chart.encode(
            y=altair.Y("client:N", sort=order, title=None, axis=altair.Axis(grid=True) if names else None),
            x=altair.X(f"{field}:Q", title=title, scale=scale),
            color=altair.condition(
                "indexof(datum.client, 'ours') == 0", altair.value("#1f77b4"), altair.value("#b0b7c3")
            ),
            row=altair.Row("solves:N", sort=sizes, title=None, header=altair.Header(labelAnchor="start")),
        ).properties(width=WIDTH, height=150)

    chart = altair.Chart(_values(altair, rows))
    left = part_of(chart.mark_bar(), "solved, %", "solved, %", altair.Scale(domain=[0, 100]), True)
    points = chart.mark_point(filled=True, size=100, opacity=1)
    right = part_of(points, "CPU ms", "CPU per solve, ms", altair.Scale(type="log"), False)
    return left | right


def _polling(altair: Any, part: Row) -> Any:
    rows = [
        {"polling": row["polling"], "polls": row["polls"], "delay": row["mean_delay"], "solve times": each["name"]}
        for each in part["distributions"]
        for row in each["rows"]
    ]
    order = list(dict.fromkeys(row["polling"] for row in rows))
    return (
        altair.Chart(_values(altair, rows))
        .mark_point(filled=True, size=90)
        .encode(
            x=altair.X("polls:Q", title="polls a solve", scale=altair.Scale(zero=False)),
            y=altair.Y("delay:Q", title="mean delay, s", scale=altair.Scale(zero=False)),
            color=altair.Color("polling:N", sort=order, title=None),
            column=altair.Column("solve times:N", title=None, sort=[each["name"] for each in part["distributions"]]),
        )
        .properties(width=240, height=HEIGHT)
        .resolve_scale(x="independent", y="independent")
    )
