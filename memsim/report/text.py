"""Rich tables as plain text, for `print`, and as HTML, for notebooks."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

COLUMNS = 120
"""The width of what is printed by itself."""


def as_text(*parts: RenderableType) -> str:
    """Return `parts`, one below the other, as plain text."""
    console = Console(file=io.StringIO(), width=COLUMNS, markup=False, highlight=False, no_color=True)
    with console.capture() as captured:
        _print(console, parts)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def as_html(*parts: RenderableType) -> str:
    """Return `parts`, one below the other, as HTML that a notebook shows."""
    console = Console(file=io.StringIO(), width=COLUMNS, markup=False, highlight=False, record=True)
    _print(console, parts)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: normal">{code}</pre>')


def _print(console: Console, parts: tuple[RenderableType, ...]) -> None:
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
