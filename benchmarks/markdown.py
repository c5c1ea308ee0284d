"""Tables as the documentation holds them, and figures in them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are figures."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, marks, *rows])


def short(value: float) -> str:
    """Three significant digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """Median and, of several, the least and the greatest."""
    if not values:
        return "–"
    middle = short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({short(min(values))}–{short(max(values))})"


def about_lines(about: Mapping[str, str]) -> str:
    """What the figures depend on, one a line."""
    return "\n".join(f"* {name}: {value}" for name, value in about.items())
