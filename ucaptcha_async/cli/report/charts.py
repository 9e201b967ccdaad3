"""The charts of a report, made with Altair. Each is one view, so that it fits any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt
import attrs

from .facts import Facts

HEIGHT = 240
LONGEST_LABEL = 190
DAY = 86_400.0

PALETTE = ["#3b76c4", "#e8833a", "#2f9e7f", "#c7548d", "#8a6fd1", "#b3902c", "#5aa9d6", "#8c8c8c"]
"""Hues of similar weight that people with colour blindness can tell apart, on white and on black."""

GOOD, BAD, UNSURE = "#2f9e7f", "#d1495b", "#b3902c"

Chart: TypeAlias = alt.Chart | alt.LayerChart


@attrs.frozen(kw_only=True)
class Picture:
    """One chart of a report.

    Attributes:
        name: Its file's name, without ending.
        title: What it shows.
        text: How to read it, in a sentence.
        chart: The chart, or `None` if there is nothing to show.
        wide: Whether it takes the whole width of a wide page.
    """

    name: str
    title: str
    text: str
    chart: Chart | None
    wide: bool = False


def pictures(facts: Facts) -> list[Picture]:
    """All charts of a report, in order."""
    return [
        Picture(
            name="solve-times",
            title="How long solves take",
            text="Share of the solves of each type by seconds, as the service reports them. Answers at once are left "
            "out; the last step takes in all that took longer.",
            chart=_solve_times(facts) if facts.solve_times else None,
            wide=True,
        ),
        Picture(
            name="spread",
            title="Solve time by type",
            text="From the fastest tenth to the slowest tenth of the solves; the mark is the median.",
            chart=_spread(facts) if facts.spreads else None,
        ),
        Picture(
            name="waiting",
            title="Waiting between ready and known",
            text="Seconds from the moment at which a solution was ready to that at which a poll brought it.",
            chart=_waiting(facts) if facts.waiting else None,
        ),
        Picture(
            name="throughput",
            title="Throughput",
            text="Jobs that ended, per second.",
            chart=_throughput(facts) if facts.course else None,
            wide=True,
        ),
        Picture(
            name="in-flight",
            title="In flight",
            text="Tasks at the service at the same time.",
            chart=_in_flight(facts) if facts.course else None,
            wide=True,
        ),
        Picture(
            name="spend",
            title="Spent",
            text="USD so far, by type. Refunded tasks cost nothing.",
            chart=_spend(facts) if facts.spending else None,
        ),
        Picture(
            name="failures",
            title="Failures by cause",
            text="Jobs that ended without a solution.",
            chart=_failures(facts) if facts.causes else None,
        ),
    ]


def _inline(rows: list[dict[str, Any]]) -> alt.Data:
    make: Any = alt.Data  # untyped
    data: alt.Data = make(values=rows)
    return data


def _data(rows: Sequence[Any]) -> alt.Data:
    return _inline([{name: _plain(value) for name, value in attrs.asdict(row).items()} for row in rows])


def _plain(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def _over_time(rows: Sequence[Any]) -> alt.Data:
    """Rows with their times in milliseconds, as Vega counts them."""
    times = {"at", "until"}
    return _inline(
        [{n: round(v * 1000) if n in times else _plain(v) for n, v in attrs.asdict(row).items()} for row in rows]
    )


def _high(chart: Any, height: int) -> Chart:
    sized: Chart = chart.properties(height=height)
    return sized


def _types(names: Sequence[str]) -> alt.Color:
    unique = list(dict.fromkeys(names))
    scale = alt.Scale(domain=unique, range=PALETTE[: len(unique)])
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=LONGEST_LABEL, symbolOpacity=1)
    return alt.Color("type:N", scale=scale, legend=legend)


def _clock(facts: Facts) -> alt.X:
    shape = "%H:%M:%S" if facts.elapsed < DAY else "%m-%d %H:%M"
    axis = alt.Axis(tickCount=6, labelOverlap=True, format=shape)
    return alt.X("at:T", scale=alt.Scale(type="utc"), title="UTC", axis=axis)


def _solve_times(facts: Facts) -> Chart:
    end = max(row.high for row in facts.solve_times)
    # A step reaches to the next point: the last one needs a point behind it.
    closing = [attrs.evolve(row, low=row.high, high=row.high) for row in facts.solve_times if row.high == end]
    chart = alt.Chart(_data([*facts.solve_times, *closing])).mark_area(
        opacity=0.12, line=True, interpolate="step-after"
    )
    encoded = chart.encode(
        x=alt.X("low:Q", title="seconds"),
        y=alt.Y("share:Q", title="share of solves", stack=None, axis=alt.Axis(format="%", tickCount=5)),
        color=_types([row.type for row in facts.spreads]),
        tooltip=[
            alt.Tooltip("type:N"),
            alt.Tooltip("low:Q", title="from, s"),
            alt.Tooltip("high:Q", title="to, s"),
            alt.Tooltip("count:Q", title="solves"),
        ],
    )
    return _high(encoded, HEIGHT)


def _spread(facts: Facts) -> Chart:
    names = [row.type for row in facts.spreads]
    base = alt.Chart(_data(facts.spreads)).encode(
        y=alt.Y("type:N", sort=names, title=None, axis=alt.Axis(labelLimit=180)),
        color=_types(names).legend(None),
        tooltip=[
            alt.Tooltip("type:N"),
            alt.Tooltip("count:Q", title="solves"),
            *(alt.Tooltip(f"{name}:Q", format=".1f") for name in ("p10", "p50", "p90")),
        ],
    )
    bars = base.mark_bar(height=10, cornerRadius=5, opacity=0.45).encode(
        x=alt.X("p10:Q", title="seconds", scale=alt.Scale(zero=True)), x2="p90:Q"
    )
    marks = base.mark_tick(thickness=3, size=20).encode(x="p50:Q")
    return _high(alt.layer(bars, marks), max(HEIGHT, 34 * len(names)))


def _waiting(facts: Facts) -> Chart:
    room = alt.Scale(domain=[0, max(row.share for row in facts.waiting) * 1.15], nice=False)  # for the labels on top
    bars = (
        alt.Chart(_data(facts.waiting))
        .mark_bar(color=PALETTE[0], opacity=0.75, binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title="seconds", axis=alt.Axis(tickCount=8, grid=False)),
            x2="high:Q",
            y=alt.Y("share:Q", title="share of solves", axis=alt.Axis(format="%", tickCount=5), scale=room),
            tooltip=[
                alt.Tooltip("low:Q", title="from, s"),
                alt.Tooltip("high:Q", title="to, s"),
                alt.Tooltip("count:Q", title="solves"),
            ],
        )
    )
    if facts.wait is None:
        return _high(bars, HEIGHT)
    lines = [
        {"at": round(at, 3), "name": f"{name} {at:.1f} s"} for name, at in zip(("p50", "p90"), facts.wait, strict=True)
    ]
    base = alt.Chart(_inline(lines)).encode(x="at:Q")
    rules = base.mark_rule(strokeDash=[4, 3], color=BAD, strokeWidth=1.5)
    labels = base.mark_text(align="left", dx=4, baseline="top", color=BAD).encode(text="name:N", y=alt.value(0))
    return _high(alt.layer(bars, rules, labels), HEIGHT)


def _throughput(facts: Facts) -> Chart:
    rows = [
        {"at": round(row.at * 1000), "until": round(row.until * 1000), "end": end, "rate": round(rate, 3)}
        for row in facts.course
        for end, rate in (("solved", row.solved), ("not solved", row.failed))
    ]
    chart = (
        alt.Chart(_inline(rows))
        .mark_area(interpolate="step-after", opacity=0.75)
        .encode(
            x=_clock(facts),
            y=alt.Y("rate:Q", title="per second", axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "end:N",
                scale=alt.Scale(domain=["solved", "not solved"], range=[GOOD, BAD]),
                legend=alt.Legend(title=None, orient="top", symbolOpacity=1),
            ),
            order=alt.Order("end:N", sort="descending"),
            tooltip=[alt.Tooltip("at:T", format="%H:%M:%S"), "end:N", alt.Tooltip("rate:Q", format=".2f")],
        )
    )
    return _high(chart, HEIGHT)


def _in_flight(facts: Facts) -> Chart:
    chart = (
        alt.Chart(_over_time(facts.course))
        .mark_area(interpolate="step-after", color=PALETTE[0], opacity=0.35, line={"color": PALETTE[0]})
        .encode(
            x=_clock(facts),
            y=alt.Y("in_flight:Q", title="tasks", axis=alt.Axis(tickCount=5)),
            tooltip=[
                alt.Tooltip("at:T", format="%H:%M:%S"),
                alt.Tooltip("in_flight:Q", format=".1f", title="in flight"),
            ],
        )
    )
    return _high(chart, HEIGHT)


def _spend(facts: Facts) -> Chart:
    chart = (
        alt.Chart(_over_time(facts.spending))
        .mark_area(interpolate="step-after", opacity=0.75)
        .encode(
            x=_clock(facts),
            y=alt.Y("usd:Q", title="USD", axis=alt.Axis(format="~f", tickCount=5)),
            color=_types([row.type for row in facts.spreads] + [row.type for row in facts.spending]),
            tooltip=[alt.Tooltip("at:T", format="%H:%M:%S"), "type:N", alt.Tooltip("usd:Q", format=".4f")],
        )
    )
    return _high(chart, HEIGHT)


def _failures(facts: Facts) -> Chart:
    names = list(dict.fromkeys(row.cause for row in facts.causes))
    words = {"not charged": GOOD, "charged": BAD, "unknown": UNSURE}
    money = [word for word in words if any(row.charged == word for row in facts.causes)]
    chart = (
        alt.Chart(_data(facts.causes))
        .mark_bar(height=14, cornerRadiusEnd=4)
        .encode(
            y=alt.Y("cause:N", sort=names, title=None, axis=alt.Axis(labelLimit=LONGEST_LABEL)),
            x=alt.X("count:Q", title="jobs", axis=alt.Axis(tickMinStep=1, tickCount=6)),
            color=alt.Color(
                "charged:N",
                scale=alt.Scale(domain=money, range=[words[word] for word in money]),
                legend=alt.Legend(title="money", orient="top", direction="vertical", symbolOpacity=1),
            ),
            tooltip=["cause:N", "charged:N", "count:Q"],
        )
    )
    return _high(chart, max(150, 34 * len(names)))


def spec(picture: Picture) -> Mapping[str, Any]:
    """A picture's chart for a page: as wide as what holds it."""
    assert picture.chart is not None
    fitted = picture.chart.properties(width="container", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    value: dict[str, Any] = fitted.to_dict()
    value.pop("config", None)  # the page chooses colours by the reader's theme
    return value


def png(picture: Picture) -> bytes:
    """A picture as a PNG on white, at twice the usual density."""
    import vl_convert

    assert picture.chart is not None
    whole = picture.chart.properties(width=640, title=picture.title, background="white").configure(**CONFIG)
    data: bytes = vl_convert.vegalite_to_png(whole.to_json(), scale=2)
    return data


CONFIG: dict[str, Any] = {
    "font": "Liberation Sans, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#e6e6e6", "domainColor": "#999", "tickColor": "#999", "labelColor": "#444"},
    "title": {"anchor": "start", "fontSize": 15},
}
