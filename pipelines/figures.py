"""What `vocbeam verify real` compares: tables of figures of each real data set, and their comparison.

Each field of `Olist`, `ServiceNow` and `Sfo` is one comparison. `figures_from_files.py` fills them from the raw files
with pandas, `figures_from_warehouse.py` from the warehouse with SQL; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple, TypeVar, get_type_hints

Row = tuple[int | float, ...]
Rows = Mapping[str, Row]
"""Place (a month, a score, a ticket) → its figures, in the order that the comparison names them."""

BINS = 0.02
"""Promised error of a percentile from logarithmic bins."""

ROUNDING = 1e-9
"""Of square roots and quotients taken in another order."""


FEW = 6
"""Rows of a table that are shown each, instead of their sums."""


class About(NamedTuple):
    """What the figures of a table are, the relative difference that counts as equal, and whether sums over all rows
    mean something.
    """

    what: str
    tolerance: float = 0.0
    additive: bool = True


@dataclass(frozen=True)
class Olist:
    """Orders, reviews and payments; months are local to Brazil, weights in 1/10,000, money in centavos."""

    accounts: Annotated[Rows, About("Kafka records")]
    events: Annotated[Rows, About("events by type and name")]
    csat_scores: Annotated[Rows, About("CSAT answers by month and score: answers, weight")]
    csat_means: Annotated[Rows, About("CSAT mean by month: sum of scores, answers, mean")]
    csat_weighted_means: Annotated[Rows, About("CSAT weighted mean by month: weighted sum of scores, weight")]
    csat_shares: Annotated[Rows, About("CSAT share by month: 4 and 5, answers, share, weighted share")]
    late_deliveries: Annotated[Rows, About("late deliveries by month of delivery: late, delivered, share")]
    revenue: Annotated[Rows, About("revenue in all: centavos, payments")]
    revenue_by_month: Annotated[Rows, About("revenue by month of purchase: centavos, payments")]
    durations: Annotated[Rows, About("times to approval, handover, delivery by month: seconds, orders")]
    percentiles: Annotated[Rows, About("50th and 90th percentile of these times by month", BINS, additive=False)]
    reported_percentiles: Annotated[
        Rows, About("90th percentile of these times by month, as the view has it", BINS, additive=False)
    ]


@dataclass(frozen=True)
class ServiceNow:
    """Incidents; times in microseconds, months in UTC."""

    accounts: Annotated[Rows, About("rows of the file")]
    opened: Annotated[Rows, About("opening of each incident", additive=False)]
    first_responses: Annotated[Rows, About("time to first response of each incident: microseconds")]
    resolutions: Annotated[Rows, About("time to resolution of each incident: microseconds")]
    unresolved: Annotated[Rows, About("incidents without resolved_at, listed as open")]
    open: Annotated[Rows, About("all open incidents")]
    backlog: Annotated[Rows, About("open incidents in the backlog view: open, unanswered")]
    reopened: Annotated[Rows, About("reopenings of each incident, from transitions")]
    reopened_otherwise: Annotated[Rows, About("reopen_count of the file differs: transitions, file")]
    opened_by_month: Annotated[Rows, About("incidents by month of opening")]
    durations: Annotated[Rows, About("times to both by month of opening: seconds, incidents")]
    reported_percentiles: Annotated[
        Rows, About("median of these times by month, as the view has it", BINS, additive=False)
    ]
    reopened_by_month: Annotated[Rows, About("reopened by month of opening: reopened, incidents, share")]


@dataclass(frozen=True)
class Sfo:
    """The passenger survey of 2017; weights in 1/10,000."""

    accounts: Annotated[Rows, About("Kafka records")]
    nps_scores: Annotated[Rows, About("NPS answers by score: answers, weight")]
    nps_counts: Annotated[Rows, About("NPS: promoters less detractors, answers, weight, squared weight")]
    nps: Annotated[Rows, About("NPS", ROUNDING)]
    nps_interval: Annotated[Rows, About("NPS 95 % interval (adjusted Wald)", ROUNDING)]
    nps_weighted: Annotated[Rows, About("NPS weighted", ROUNDING)]
    nps_weighted_interval: Annotated[Rows, About("NPS weighted, 95 % interval (adjusted Wald, effective n)", ROUNDING)]
    ratings: Annotated[Rows, About("touchpoint ratings by score: answers, weight")]


Figures = TypeVar("Figures", Olist, ServiceNow, Sfo)


@dataclass(frozen=True)
class Comparison:
    """One table as it was expected and as it was found."""

    about: About
    expected: Rows
    found: Rows

    @property
    def places(self) -> list[str]:
        """Places that either has."""
        return [*self.expected, *(place for place in self.found if place not in self.expected)]

    @property
    def differing(self) -> list[str]:
        """Places where the two are not equal, or that only one of them has."""
        return [place for place in self.places if not self._agrees(self.expected.get(place), self.found.get(place))]

    @property
    def equal(self) -> bool:
        """Whether nothing differs; a comparison of nothing proves nothing and is not equal."""
        return bool(self.expected) and not self.differing

    @property
    def deviation(self) -> float:
        """Largest relative difference between figures of places that both have."""
        pairs = [
            pair
            for place in self.expected.keys() & self.found.keys()
            for pair in zip(self.expected[place], self.found[place], strict=False)
        ]
        return max((abs(one - other) / abs(one or 1) for one, other in pairs), default=0.0)

    def _agrees(self, expected: Row | None, found: Row | None) -> bool:
        if expected is None or found is None or len(expected) != len(found):
            return False
        if not self.about.tolerance:
            return expected == found
        return all(
            abs(one - other) <= self.about.tolerance * abs(one) for one, other in zip(expected, found, strict=True)
        )


def compare(expected: Figures, found: Figures) -> list[Comparison]:
    """One comparison for each table of two records of the same class, in their order."""
    hints = get_type_hints(type(expected), include_extras=True)
    comparisons = []
    for one in fields(expected):
        (about,) = hints[one.name].__metadata__
        comparisons.append(Comparison(about, getattr(expected, one.name), getattr(found, one.name)))
    return comparisons


def write_row(row: Row | None) -> str:
    """A place's figures for people: whole numbers in full, others to six digits; a dash for no place."""
    if row is None:
        return "–"
    return " / ".join(f"{figure:,}" if isinstance(figure, int) else f"{figure:,.6g}" for figure in row)


def write_table(rows: Rows, *, additive: bool) -> str:
    """A table in one line: its only row, or how many there are and, if they add up, the sums of whole numbers."""
    if len(rows) == 1:
        return write_row(next(iter(rows.values())))
    columns = zip(*rows.values(), strict=False)
    whole = [column for column in columns if all(isinstance(figure, int) for figure in column)]
    text = f"{len(rows):,} rows"
    return f"{text}, in all {write_row(tuple(sum(column) for column in whole))}" if additive and whole else text
