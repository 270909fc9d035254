"""Tables and notes for people: on a console, as plain text for `print`, and as HTML for notebooks.

A result is shown as a list of parts, one below the other: rich tables, `Text`, which is wrapped to the width, and
`str`, which is not.
"""

from __future__ import annotations

import io

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

COLUMNS = 120
"""The width in columns of results that print themselves."""


def as_text(*parts: RenderableType) -> str:
    """Return `parts`, one below the other, as plain text."""
    console = Console(file=io.StringIO(), width=COLUMNS, markup=False, highlight=False, no_color=True)
    with console.capture() as captured:
        show(console, *parts)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def as_html(*parts: RenderableType) -> str:
    """Return `parts`, one below the other, as HTML that a notebook shows."""
    console = Console(file=io.StringIO(), width=COLUMNS, markup=False, highlight=False, record=True)
    show(console, *parts)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: normal">{code}</pre>')


def show(console: Console, *parts: RenderableType) -> None:
    """Print `parts` on `console`, one below the other."""
    for part in parts:
        is_one_line = isinstance(part, str) or (isinstance(part, Text) and bool(part.no_wrap))
        console.print(part, highlight=False, soft_wrap=is_one_line)


def note(text: str) -> Text:
    """Return a note below a table."""
    return Text(text, style="dim")


def table_of(name: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    """Return a table whose first column, and those in `left`, are text; the others are numbers."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold", min_width=16)
    for column in columns:
        table.add_column(column, justify="right")
    for column in left:
        table.add_column(column, overflow="fold")
    return table


def percent(fraction: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return a fraction in percent, as text; empty for None."""
    return "" if fraction is None else f"{100 * fraction:{'+' if signed else ''}.{digits}f}"
