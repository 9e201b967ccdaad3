"""The page of a report: one HTML file with all that it needs, and leave to load nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from ucaptcha_async.cli.output import duration, money

from .charts import Picture, spec
from .facts import Facts

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; \
style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f5f6f8; --card: #fff; --text: #1d2330; --soft: #667085; --line: #e2e5ea; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #12151b; --card: #1b2029; --text: #e7eaf0; --soft: #98a2b3; --line: #2c333f; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 24px 20px 40px; }}
h1 {{ font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }}
h2 {{ font-size: 16px; margin: 0 0 2px; }}
p {{ margin: 0; color: var(--soft); font-size: 13.5px; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; margin: 18px 0; }}
.tile, .card {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; }}
.tile {{ padding: 10px 14px; }}
.tile b {{ display: block; font-size: 21px; line-height: 1.3; font-variant-numeric: tabular-nums; }}
.tile span {{ color: var(--soft); font-size: 13px; }}
.cards {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }}
.card {{ padding: 14px 16px 10px; min-width: 0; }}
.wide {{ grid-column: 1 / -1; }}
.chart {{ width: 100%; margin-top: 10px; }}
.chart svg {{ display: block; max-width: 100%; }}
.none {{ padding: 30px 0; text-align: center; }}
@media (max-width: 760px) {{
  main {{ padding: 16px 12px 28px; }}
  .cards {{ grid-template-columns: minmax(0, 1fr); }}
  .tiles {{ grid-template-columns: repeat(2, 1fr); gap: 8px; }}
}}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{when}</p>
<section class="tiles">
{tiles}
</section>
<section class="cards">
{cards}
</section>
</main>
<script>{bundle}</script>
<script>
const specs = {specs};
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {{
  const [text, line] = dark.matches ? ["#b6bfcc", "#2c333f"] : ["#4b5563", "#e6e8ec"];
  const config = {{
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: {{ stroke: null }},
    axis: {{ labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line,
      titleFontWeight: "normal" }},
    legend: {{ labelColor: text, titleColor: text, titleFontWeight: "normal" }},
  }};
  for (const [id, spec] of Object.entries(specs))
    vegaEmbed("#" + id, spec, {{ actions: false, renderer: "svg", config }}).catch(console.error);
}}
dark.addEventListener("change", draw);
draw();
</script>
</body>
</html>
"""


def page(title: str, facts: Facts, charts: Sequence[Picture]) -> str:
    """The page as text."""
    specs = {picture.name: spec(picture) for picture in charts if picture.chart is not None}
    return _TEMPLATE.format(
        title=html.escape(title),
        when=html.escape(_when(facts)),
        tiles="\n".join(f'<div class="tile"><b>{html.escape(n)}</b><span>{w}</span></div>' for n, w in _tiles(facts)),
        cards="\n".join(_card(picture) for picture in charts),
        bundle=bundle().replace("</script", "<\\/script"),
        # Names in it come from outside: nothing in a script may look like a tag.
        specs=json.dumps(specs, separators=(",", ":")).replace("<", "\\u003c"),
    )


def bundle() -> str:
    """What draws the charts in a browser: Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _card(picture: Picture) -> str:
    body = f'<div class="chart" id="{picture.name}"></div>'
    if picture.chart is None:
        body = '<p class="none">nothing to show</p>'
    kind = "card wide" if picture.wide else "card"
    return f'<article class="{kind}"><h2>{picture.title}</h2><p>{html.escape(picture.text)}</p>{body}</article>'


def _when(facts: Facts) -> str:
    if facts.begin is None:
        return "no results"
    begin = datetime.fromtimestamp(facts.begin, UTC)
    return f"{begin:%Y-%m-%d %H:%M:%S} UTC, {duration(facts.elapsed)} from the first submit to the last result"


def _tiles(facts: Facts) -> Iterator[tuple[str, str]]:
    yield f"{facts.counts['solved']:,}", f"solved of {facts.total:,}"
    yield f"{facts.counts['failed']:,}", "failed"
    if facts.counts["uncertain"]:
        yield f"{facts.counts['uncertain']:,}", "of unknown fate"
    yield f"${money(facts.spent)}", "spent, USD"
    if facts.counts["solved"] and facts.spent:
        yield f"${facts.spent / facts.counts['solved'] * 1000:.2f}", "for 1,000 solves"
    if facts.polls_per_solve is not None:
        yield f"{facts.polls_per_solve:.2f}", "polls for each solve"
    if facts.wait is not None:
        yield f"{facts.wait[0]:.1f} s", "from ready to known (median)"
