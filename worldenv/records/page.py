"""What the sections of a report are made of: tables, grids of plots, figures as text, and the style of the page."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from worldenv.records.progress import format_figure

STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --grid: #d5d9de;
        --before: #8b929c; --after: #1a66d6; --other: #c2570c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1d2026; --ink: #e8eaed; --soft: #a3abb5; --grid: #3a3f47;
          --before: #8b929c; --after: #5ea6ff; --other: #ff9f43; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; } .soft, figcaption, .missing { color: var(--soft); font-size: .9rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.card, figure { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; margin: 0; }
.grid > figure { max-width: 34rem; }
.big { font-size: 1.8rem; font-weight: 600; white-space: nowrap; } .big .was { color: var(--before); }
.big .is { color: var(--after); }
svg { display: block; width: 100%; height: auto; } img { display: block; max-width: 100%; margin: 0 auto .5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--grid); white-space: nowrap;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; white-space: normal; min-width: 11rem; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


def policy_name(name: str) -> str:
    return "evaluated" if name == "success" else name


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def missing(reason: str) -> str:
    return f'<p class="missing">Left out: {escape(reason)}.</p>'


def grid(plots: Iterable[str]) -> str:
    html = "".join(f"<figure>{plot}</figure>" for plot in plots)
    return f'<div class="grid">{html}</div>' if html else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: Sequence[int] = ()) -> str:
    def row(tag: str, cells: Sequence[Any]) -> str:
        kinds = [' class="text"' if i in text_columns else "" for i in range(len(cells))]
        texts = [escape(format_figure(cell)) for cell in cells]
        return "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True))

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f'<div class="scroll"><table><tr>{row("th", columns)}</tr>{body}</table></div>'
