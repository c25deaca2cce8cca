"""A page of HTML that opens offline: its look, tables, and pictures inside it. Text is escaped here, and only here.

    page(title, facts, [section("Sizes", table(("size", "objects"), rows))])

Everything that takes text escapes it; what returns HTML is put together without another look.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
_STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #666; --back: #fff; --card: #f6f7f8; --line: #d5d8db;
        --thin: #ececec; --link: #2f6f9f }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --soft: #a2a6ab; --back: #16181b; --card: #212429; --line: #43484f; --thin: #2c3036;
          --link: #7db8e0 }
  img.chart { filter: invert(.91) hue-rotate(180deg) }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
       max-width: 1170px; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
h3 { font-size: 1rem; margin: 0 0 .4rem } p { margin: .3rem 0 .7rem; max-width: 52rem } a { color: var(--link) }
.facts { color: var(--soft); margin: .2rem 0 1.2rem; max-width: none; overflow-wrap: anywhere }
.note { color: var(--soft) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-bottom: 1rem }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: .4rem 0 1rem }
.tile { background: var(--card); border-radius: 8px; padding: .6rem 1.1rem; min-width: 5.5rem }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; font-weight: 600 } .tile span { color: var(--soft) }
.tables, .charts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start }
.charts figure { flex: 1 1 28rem; max-width: 620px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; overflow-wrap: break-word }
th { font-weight: 600; border-bottom: 1px solid var(--line) } td.n, th.n { text-align: right; white-space: nowrap }
tr + tr td { border-top: 1px solid var(--thin) } tr.strong td { font-weight: 600 }
table.sorts th { cursor: pointer } .scroll { max-height: 34rem; overflow: auto }
img { max-width: 100%; height: auto; display: block } figure { margin: 0 0 1.4rem }
figcaption { overflow-wrap: anywhere; font-size: .93em } figcaption b { font-weight: 600 }
.gallery { columns: 2 30rem; column-gap: 1.4rem } .gallery figure { break-inside: avoid }
.gallery img { border-radius: 4px; margin-bottom: .3rem }
details { margin-top: 1rem } summary { cursor: pointer; color: var(--link) }
.list { columns: 2 26rem; margin-top: .5rem }
.list table { width: 100% } .list tr { break-inside: avoid }
@media print { nav { display: none } body { margin: 0; max-width: none; font-size: 11px }
  .scroll { max-height: none; overflow: visible } .gallery { columns: 2 14rem } .charts figure { flex-basis: 18rem }
  img.chart { max-width: min(100%, 40rem) }
  figure, tr, .tile { break-inside: avoid } h2, h3 { break-after: avoid } }
"""
# A click on the head of a column sorts by it: numbers first by size, largest on top; again: the other way.
_SORTING = """
document.querySelectorAll("table.sorts").forEach(table => table.querySelectorAll("th").forEach((head, column) => {
  let down = column > 0;
  head.onclick = () => {
    const value = row => { const text = row.cells[column].textContent.replaceAll(",", "").replace(" %", "");
                           return column === 0 ? text : text === "-" ? -Infinity : Number(text); };
    const rows = [...table.rows].slice(1).sort((a, b) => {
      const x = value(a), y = value(b);
      return column === 0 ? x.localeCompare(y) : x < y ? -1 : x > y ? 1 : 0; });
    if (down) rows.reverse();
    down = !down;
    rows.forEach(row => table.tBodies[0].append(row));
  };
}));
"""


def page(title: str, facts: str, body: Iterable[str]) -> str:
    """The whole page: a title, one line of facts below it, and parts that are HTML already."""
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1><p class=facts>{html.escape(facts)}</p>{''.join(body)}"
        f"<script>{_SORTING}</script></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, text: int = 1, sorts: bool = False) -> str:
    """Text in the first `text` columns, numbers in the others; with `sorts` a click on a head sorts."""

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= text else ''}>{html.escape(str(value))}</{tag}>"
            for column, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table{' class=sorts' if sorts else ''}><tbody><tr>{cells('th', head)}</tr>{body}</tbody></table>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, of a class of the style."""
    return f"<p{f' class={kind}' if kind else ''}>{html.escape(text)}</p>"


def picture(source: Path | tuple[str, bytes], alt: str, kind: str = "chart") -> str:
    """A picture inside the page: a file, or (".jpg", bytes)."""
    ending, data = (source.suffix, source.read_bytes()) if isinstance(source, Path) else source
    uri = f"data:{_TYPES[ending]};base64,{base64.b64encode(data).decode('ascii')}"
    return f'<img class={kind} alt="{html.escape(alt)}" src="{uri}">'


def figure(image: str, caption: str, strong: str = "") -> str:
    """A picture with text below it, which may begin in bold."""
    bold = f"<b>{html.escape(strong)}</b> " if strong else ""
    return f"<figure>{image}<figcaption>{bold}{html.escape(caption)}</figcaption></figure>"


def section(key: str, title: str, *parts: str) -> str:
    """A part of a page, that a link to #key leads to."""
    return f"<section id={html.escape(key)}><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def link(target: str, text: str) -> str:
    """A link within the page."""
    return f'<a href="{html.escape(target)}">{html.escape(text)}</a>'


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Large numbers, each above its name."""
    shown = (
        f"<div class=tile><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in numbers
    )
    return f"<div class=tiles>{''.join(shown)}</div>"
