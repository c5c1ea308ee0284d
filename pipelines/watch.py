"""`vocbeam tag watch`: coverage, drift against training, new words among what is left open, stages that overlap."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.model_card import share
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError, TagsDrifted
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import DAY_US, LocalCalendar, from_micros
from vocbeam.sinks import models, read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tag_watch import OpenText, TagCount, may_read_texts, newest_event_time, open_texts, tag_counts
from vocbeam.transforms.statistics import wilson_interval

if TYPE_CHECKING:
    from vocbeam.transforms.text_model import LinearTextModel
    from vocbeam.transforms.watching import Drift, NewTerm

WATCHED_DAYS = 28
"""Four weeks, so that every weekday counts as often in the period as in the one before."""

SAMPLED_TEXTS = 50_000
"""Texts that are judged anew, two seconds' work; more would move no index by a hundredth."""

SHOWN_TERMS = 15
OUTPUT_WIDTH = 140

METHODS = ("override", "hint", "rule", "model", "touchpoint", UNASSIGNED)


@dataclass(frozen=True)
class Coverage:
    """How some events were tagged: `department` or `stage`, or neither for all of them."""

    events: int
    unassigned: int
    methods: Mapping[str, int]
    mean_confidence: float | None
    department: str | None = None
    stage: str | None = None


@dataclass(frozen=True)
class Watched:
    """What is known of the tags of a period, UTC microseconds from `since` to before `until`.

    `unseen` says why there are no figures of texts: `drifts` and the terms are then empty.
    """

    since: int
    until: int
    model_version: str | None
    coverage: Sequence[Coverage]
    drifts: Sequence[Drift] = ()
    terms_unassigned: Sequence[NewTerm] = ()
    terms_all: Sequence[NewTerm] = ()
    overlaps: Sequence[Mapping[str, Any]] = ()
    unseen: str | None = None


def coverage(counts: Sequence[TagCount]) -> list[Coverage]:
    """All events, then those of each department, then those of each stage."""
    departments, stages = defaultdict(list), defaultdict(list)
    for count in counts:
        departments[count.department].append(count)
        stages[count.stage].append(count)
    return [
        _covered(counts),
        *(_covered(rows, department=name) for name, rows in sorted(departments.items())),
        *(_covered(rows, stage=name) for name, rows in sorted(stages.items())),
    ]


def _covered(counts: Iterable[TagCount], department: str | None = None, stage: str | None = None) -> Coverage:
    rows = list(counts)
    methods: Counter[str] = Counter()
    for row in rows:
        methods[row.tag_method] += row.events
    by_model = sum(row.confidence for row in rows if row.tag_method == "model")
    return Coverage(
        events=methods.total(),
        unassigned=sum(row.events for row in rows if row.stage == UNASSIGNED),
        methods=methods,
        mean_confidence=by_model / methods["model"] if methods["model"] else None,
        department=department,
        stage=stage,
    )


def watch_tags(connection: Connection, since: int, until: int, *, k: int) -> Watched:
    """Everything about a period, from one snapshot; the period as long before is what new terms are compared with."""
    version = models.published(connection)
    card = models.card(connection, version) if version is not None else {}
    found = Watched(
        since=since,
        until=until,
        model_version=version,
        coverage=coverage(tag_counts(connection, since, until)),
        overlaps=card.get("overlaps", ()),
    )
    if version is None:
        return _without_texts(found, "no model is published; train one with `vocbeam train`")
    if not may_read_texts(connection):
        return _without_texts(found, "this account may not read texts; use the warehouse's owner")
    # Imported where a model is there: scikit-learn takes a second.
    from vocbeam.transforms.text_model import LinearTextModel

    model = LinearTextModel.from_bytes(models.load(connection, version))
    if model.reference is None:
        return _without_texts(found, f"model {version} keeps nothing to compare with; train again with `vocbeam train`")
    texts = list(open_texts(connection, since, until, limit=SAMPLED_TEXTS))
    before = list(open_texts(connection, 2 * since - until, since, limit=SAMPLED_TEXTS))
    return _with_texts(found, model, texts, before, k)


def _without_texts(found: Watched, reason: str) -> Watched:
    return Watched(**{**vars(found), "unseen": reason})


def _with_texts(
    found: Watched, model: LinearTextModel, texts: Sequence[OpenText], before: Sequence[OpenText], k: int
) -> Watched:
    import numpy as np

    from vocbeam.transforms import watching

    reference = model.reference
    assert reference is not None, "the caller has looked"
    confidence: list[float] = []
    stages: Counter[str] = Counter()
    for start in range(0, len(texts), 1_000):
        judged = model.judge([text.text for text in texts[start : start + 1_000]])
        confidence += judged.stage_probabilities[np.arange(len(judged.stages)), judged.stages].tolist()
        stages.update(model.stages[number] for number in judged.stages.tolist())
    terms, earlier = ([watching.terms_of(text.text) for text in part] for part in (texts, before))
    bins = [str(number) for number in range(len(reference.confidence))]
    drifts = [
        watching.drift(
            "confidence",
            dict(zip(bins, reference.confidence, strict=True)),
            dict(zip(bins, watching.confidence_bins(confidence), strict=True)),
        ),
        watching.drift("stages", reference.stages, stages),
        watching.term_drift(reference, terms),
    ]
    least = max(watching.LEAST_DOCUMENTS, k)

    def new(unassigned: bool) -> list[NewTerm]:
        now = [(of, text.author) for of, text in zip(terms, texts, strict=True) if text.unassigned or not unassigned]
        then = [of for of, text in zip(earlier, before, strict=True) if text.unassigned or not unassigned]
        return watching.new_terms(now, then, reference, least=least)

    return Watched(**{**vars(found), "drifts": drifts, "terms_unassigned": new(True), "terms_all": new(False)})


def period(
    since: datetime | None, until: datetime | None, calendar: LocalCalendar, newest: int | None
) -> tuple[int, int]:
    """UTC microseconds from the first to before the end of the last local date; by default the days before `newest`.

    Raises ConfigError where there is nothing to end with, or the first date comes after the last.
    """
    if until is not None:
        end = calendar.day_bounds(until.date())[1]
    elif newest is not None:
        end = newest + 1
    else:
        raise ConfigError("there are no events yet; load some first: vocbeam run --until-caught-up")
    start = calendar.day_bounds(since.date())[0] if since is not None else end - WATCHED_DAYS * DAY_US
    if start >= end:
        raise ConfigError("--since comes after --until, or after the newest event; give an earlier date")
    return start, end


@click.command("watch")
@home_option
@warehouse_option
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    help=f"First local date of event time.  [default: {WATCHED_DAYS} days before the end]",
)
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last local date.  [default: up to the newest event]")
@click.option("--fail-on-drift", is_flag=True, help="End with exit code 8 where a drift is major: for cron.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def watch(
    home: Home,
    warehouse: str | None,
    since: datetime | None,
    until: datetime | None,
    fail_on_drift: bool,
    as_json: bool,
) -> None:
    """Watch the tags: coverage by department and stage, drift of texts against those the published model learned from.

    And the words that are new among texts without a stage, and the stages that are taken for each other. On PostgreSQL
    an account that may not read texts sees coverage and overlaps alone.
    """
    engine = open_engine(warehouse or home.warehouse_url)
    require_current(engine)
    with read.snapshot(engine) as connection:
        governance = parse_governance(read.taxonomy(connection).governance_text)
        newest = newest_event_time(connection, now_us())
        start, end = period(since, until, LocalCalendar(governance.timezone), newest)
        found = watch_tags(connection, start, end, k=governance.privacy.k)
    if as_json:
        click.echo(json.dumps(as_dict(found), ensure_ascii=False, indent=2))
    else:
        print_watched(found, Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH))
    if fail_on_drift:
        if found.unseen is not None:
            raise ConfigError(f"whether the texts drift can't be told: {found.unseen}")
        major = [drift for drift in found.drifts if drift.verdict == "major"]
        if major:
            raise TagsDrifted(
                f"{', '.join(drift.what for drift in major)} of {major[0].texts:,} texts differ from training (PSI "
                f"{max(drift.psi for drift in major):.2f}); look at the new terms, correct tags or add examples, and "
                "train again with `vocbeam train`"
            )


def as_dict(found: Watched) -> dict[str, Any]:
    """The figures for a script; intervals are [low, high]."""
    return {
        "since": from_micros(found.since).isoformat(),
        "until": from_micros(found.until).isoformat(),
        "model_version": found.model_version,
        "coverage": [
            {
                **({"department": row.department} if row.department is not None else {}),
                **({"stage": row.stage} if row.stage is not None else {}),
                "events": row.events,
                "unassigned": row.unassigned,
                "unassigned_share": row.unassigned / row.events if row.events else None,
                "unassigned_interval": list(wilson_interval(row.events, row.unassigned)),
                "methods": dict(row.methods),
                "mean_confidence": row.mean_confidence,
            }
            for row in found.coverage
        ],
        "drift": [{**drift._asdict(), "verdict": drift.verdict} for drift in found.drifts],
        "new_terms_unassigned": [term._asdict() for term in found.terms_unassigned],
        "new_terms_all": [term._asdict() for term in found.terms_all],
        "overlaps": list(found.overlaps),
        "not_compared": found.unseen,
    }


def print_watched(found: Watched, console: Console) -> None:
    """The same for people."""
    last = from_micros(found.until - 1)
    console.print(
        f"[bold]Tags[/] of events from {from_micros(found.since):%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, "
        f"model {found.model_version or 'none'}",
        highlight=False,
    )
    console.print(_coverage_table(found.coverage))
    if found.unseen is not None:
        console.print(f"Texts were not compared with training: {found.unseen}", highlight=False)
    if found.drifts:
        console.print(_drift_table(found.drifts))
        console.print(_terms_table("New among texts without a stage", found.terms_unassigned))
        console.print(_terms_table("New among all texts left to the model", found.terms_all))
    if found.overlaps:
        console.print("Stages that were taken for each other in cross-validation:")
    for pair in found.overlaps:
        console.print(
            f"  {pair['first']} and {pair['second']}: {share(pair['share'])} of {pair['texts']:,} texts "
            f"({pair['first_as_second']} and {pair['second_as_first']})",
            highlight=False,
            markup=False,
        )


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _coverage_table(rows: Sequence[Coverage]) -> Table:
    table = _table(
        "Coverage",
        ("department", "stage"),
        ("events", "without a stage", "95 % interval", *METHODS[:-1], "mean confidence"),
    )
    for row in rows:
        interval = wilson_interval(row.events, row.unassigned)
        known = interval.low is not None and interval.high is not None
        table.add_row(
            row.department or "*",
            row.stage or "*",
            f"{row.events:,}",
            f"{row.unassigned / row.events:.1%}" if row.events else "–",
            f"{interval.low:.1%} – {interval.high:.1%}" if known else "–",
            *[f"{row.methods.get(method, 0):,}" for method in METHODS[:-1]],
            "–" if row.mean_confidence is None else f"{row.mean_confidence:.2f}",
        )
    return table


def _drift_table(drifts: Sequence[Drift]) -> Table:
    table = _table(
        "Texts left to the model, against training: population stability index (PSI)",
        ("of",),
        ("texts", "PSI", "by chance", "95 % by chance below", "drift"),
    )
    styles = {"major": "bold red", "moderate": "yellow", "stable": "green"}
    for drift in drifts:
        style = styles.get(drift.verdict, "dim")
        table.add_row(
            drift.what,
            f"{drift.texts:,}",
            f"{drift.psi:.3f}",
            f"{drift.by_chance:.3f}",
            f"{drift.by_chance_high:.3f}",
            f"[{style}]{drift.verdict}[/]",
        )
    return table


def _terms_table(title: str, terms: Sequence[NewTerm]) -> Table | str:
    if not terms:
        return f"[bold]{title}[/]: no word beyond chance\n"
    table = _table(title, ("term",), ("texts", "people", "share", "× training", "× before", "z"))
    for term in terms[:SHOWN_TERMS]:
        table.add_row(
            escape(term.term),
            f"{term.texts:,}",
            f"{term.people:,}",
            f"{term.share:.1%}",
            f"{term.times_training:.1f}",
            "–" if term.times_before is None else f"{term.times_before:.1f}",
            f"{term.z:.1f}",
        )
    return table
