"""Blocks of a self-contained HTML page, and its style.

All functions map values to HTML. Text is escaped, unless it is `Html` already.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from memsim.units import counted
from memsim.version import __version__

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 0 auto; padding: 1em;
  overflow-wrap: break-word; }
h1 { font-size: 1.4em; } h2 { font-size: 1.15em; margin-top: 2em; } h3 { font-size: 1em; margin-bottom: .3em; }
.warning { padding: .7em 1em; border-radius: .4em; background: #fbf1dc; }
.opening { padding: .2em 1.1em; border-radius: .4em; border-left: .4em solid; margin: 1em 0; }
.opening .answer { font-size: 1.2em; font-weight: 600; line-height: 1.35; }
.opening dt { font-weight: 600; } .opening dd { margin: 0 0 .6em 0; }
.pass.opening { background: #e6eef7; border-color: #004488; }
.warn.opening { background: #fbf1dc; border-color: #ddaa33; }
.fail.opening { background: #f8e9eb; border-color: #bb5566; }
details { margin: 1em 0; } summary { cursor: pointer; color: #004488; } details > :not(summary) { margin-top: .5em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 100%), 1fr)); gap: .6em; }
.card { border: 1px solid #ddd; border-radius: .4em; padding: .6em .9em; }
.card b { display: block; font-size: 1.5em; }
table { border-collapse: collapse; font-size: .85em; } .wide { overflow-x: auto; margin: 1em 0; }
th, td { text-align: right; padding: .25em .6em; border-bottom: 1px solid #ddd; vertical-align: top; }
th.text, td.text { text-align: left; }
tr.group th { background: #f2f2f2; text-align: left; } tr.warn td { background: #fdeccd; }
tr.all td { font-weight: 600; border-top: 1px solid #888; }
.pass > td:first-child { color: #004488; } .noise > td:first-child { color: #555; }
.warn > td:first-child { color: #9a5b00; font-weight: 700; }
.checks td:first-child { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: .6em; }
.figures.large { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.figures.large img { max-width: 620px; }
.figures img { width: 100%; } .figures.natural { display: block; }
.figures.natural img { width: auto; max-width: 100%; height: auto; }
.facts td { text-align: left; overflow-wrap: anywhere; }
.facts td:first-child { overflow-wrap: break-word; } small { color: #555; }
pre { background: #f6f6f6; padding: .7em 1em; font-size: .8em; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; } h2, h3 { break-after: avoid; }
  img, tr, .card, .warning, .opening { break-inside: avoid; } .wide { overflow: visible; } table { font-size: .75em; }
  summary { display: none; } details::details-content { content-visibility: visible; block-size: auto; }
  th, td { padding: .15em .35em; overflow-wrap: anywhere; }
}
"""

LONG = 20
"""The most rows of a table that is not folded; on paper all are there."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


_NOT_HTML = {ord("\r"): "&#13;"} | dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
"""Characters that HTML does not keep: carriage returns, NUL, and lone surrogates (of undecodable file names)."""


def html(text: str) -> str:
    """Return `text`, escaped unless it is `Html`."""
    return text if isinstance(text, Html) else escape(text).translate(_NOT_HTML)


def document(title: str, body: Iterable[str]) -> str:
    """Return the whole page, made of the blocks `body`."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html(title)}</h1>
{chr(10).join(block for block in body if block)}
<p><small>Made by memsim {__version__}.</small></p>
</body>
</html>
"""


def heading(text: str, level: int = 2) -> Html:
    """Return a heading."""
    return Html(f"<h{level}>{html(text)}</h{level}>")


def paragraph(text: str) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{html(text)}</p>")


def note(text: str) -> Html:
    """Return a paragraph in small print."""
    return Html(f"<p><small>{html(text)}</small></p>")


def listing(items: Iterable[str]) -> Html:
    """Return a bulleted list, or nothing without items."""
    points = "".join(f"<li>{html(item)}</li>" for item in items)
    return Html(f"<ul>{points}</ul>" if points else "")


def warning(text: str) -> Html:
    """Return a sentence in a coloured box."""
    return Html(f'<p class="warning">{html(text)}</p>')


def opening(kind: str, answer: str, details: Iterable[tuple[str, str]]) -> Html:
    """Return what a page opens with: an answer in a coloured box, with questions and their answers below it.

    `kind` is pass, warn or fail.
    """
    rows = "".join(f"<dt>{html(question)}</dt><dd>{html(said)}</dd>" for question, said in details)
    return Html(f'<div class="opening {kind}"><p class="answer">{html(answer)}</p><dl>{rows}</dl></div>')


def folded(summary: str, block: str) -> Html:
    """Return a block that opens on a click on its `summary`, and is open on paper."""
    return Html(f"<details><summary>{html(summary)}</summary>{html(block)}</details>")


def cards(values: Iterable[tuple[str, str, str]]) -> Html:
    """Return boxes with large numbers; each of `values` is a name, a value and a detail in small print."""
    boxes = "".join(
        f'<div class="card">{html(name)}<b>{html(value)}</b><small>{html(detail)}</small></div>'
        for name, value, detail in values
    )
    return Html(f'<div class="cards">{boxes}</div>')


def row(cells: Iterable[str], kind: str = "", text: int = 1) -> Html:
    """Return a table's row of class `kind`, whose first `text` cells are text and the others numbers."""
    cells = "".join(
        f'<td class="text">{html(cell)}</td>' if number < text else f"<td>{html(cell)}</td>"
        for number, cell in enumerate(cells)
    )
    return Html(f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")


def group(title: str, columns: int) -> Html:
    """Return a row that is the title of the rows below it."""
    return Html(f'<tr class="group"><th colspan="{columns}">{html(title)}</th></tr>')


def table(head: Sequence[str], rows: Iterable[Sequence[str] | Html], text: int = 1, kind: str = "") -> Html:
    """Return a table of class `kind`, which scrolls where it is too wide, and is folded where it has over LONG rows.

    `rows` are cells, or made by `row` and `group`; the first `text` columns are text.
    """
    titles = "".join(
        f'<th class="text">{html(title)}</th>' if number < text else f"<th>{html(title)}</th>"
        for number, title in enumerate(head)
    )
    lines = [cells if isinstance(cells, Html) else row(cells, text=text) for cells in rows]
    start = f'<table class="{kind}">' if kind else "<table>"
    body = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody>"
    made = Html(f'<div class="wide">{start}{body}</table></div>')
    if len(lines) <= LONG:
        return made
    columns = ", ".join(filter(None, (title.removesuffix(" %") for title in head)))
    return folded(f"Table of {counted(len(lines), 'row')}: {columns}", made)


def facts(rows: Mapping[str, str]) -> Html:
    """Return a table of names and values."""
    cells = "".join(f"<tr><td>{html(key)}</td><td>{html(value)}</td></tr>" for key, value in rows.items())
    return Html(f'<div class="wide"><table class="facts">{cells}</table></div>')


def figures(pictures: Iterable[tuple[str, bytes]], kind: str = "") -> Html:
    """Return named SVGs, side by side as the width of the screen allows.

    `kind` large makes them wider; natural gives each the size that it was drawn in, where the screen has it.
    """
    images = "".join(
        f'<img alt="{html(name)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
        for name, svg in pictures
    )
    return Html(f'<div class="{f"figures {kind}".rstrip()}">{images}</div>')


def verbatim(text: str) -> Html:
    """Return text with its line breaks kept, such as a command or a file."""
    return Html(f"<pre>{html(text)}</pre>")
