"""Printing of what a chip takes, for `eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.cli.progress import stdout

if TYPE_CHECKING:
    from memsim.nn.layer_cost import Cost


def render_cost(cost: Cost, verbose: bool) -> None:
    """Print `memsim.report.tables.cost_parts`."""
    from memsim.report.tables import cost_parts
    from memsim.report.text import show

    show(stdout, *cost_parts(cost, verbose=verbose))
