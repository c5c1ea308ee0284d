"""`vocbeam tag`: people correct tags, see what was corrected, and draw samples to judge tags by."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.job_steps import WarehouseModels
from vocbeam.pipelines.retag import MODEL_CHANGES, EventTagger
from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.pipelines.watch import watch
from vocbeam.schemas.corrections import Correction, Target
from vocbeam.schemas.errors import ConfigError, ModelChanged
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.records import EVENT_TYPES, MACHINE_METHODS, NO_TOPIC, UNASSIGNED
from vocbeam.schemas.timebase import LocalCalendar, from_micros
from vocbeam.sinks import read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.overrides import (
    Done,
    Known,
    Listed,
    Override,
    Overrider,
    Sampled,
    count_reviewed,
    draw_sample,
    find_targets,
    list_overrides,
    standing_of,
)
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.restate import Restater
from vocbeam.transforms.corrections import (
    CORRECTION_COLUMNS,
    INFORMING_COLUMNS,
    correction,
    raise_wrong,
    read_corrections,
    write_rows,
)
from vocbeam.transforms.redact import Redactor, phone_regions
from vocbeam.transforms.statistics import wilson_interval
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.subjects import subject_key
from vocbeam.transforms.tag import Tagger

F = TypeVar("F", bound=Callable[..., Any])

LOWER_BOUND = (
    "Events are corrected where somebody looked: unless they were drawn at random (vocbeam tag sample), the rate is a "
    "lower bound of the error rate."
)


@dataclass(frozen=True)
class Warehouse:
    """What these commands need of a warehouse: connections, and the governance file in force."""

    reader: Engine
    engine: Engine
    governance: Governance

    def restater(self) -> Restater:
        """What gives events of this warehouse other tags."""
        return Restater(
            self.engine,
            rules=subject_rules(self.governance),
            calendar=LocalCalendar(self.governance.timezone),
        )

    def find(self, targets: Iterable[Target]) -> dict[Target, list[Known]]:
        """What the targets are in this warehouse."""
        with snapshot(self.reader) as connection:
            return find_targets(connection, list(targets), partial(subject_key, "ticket"))


def _open(home: Home, url: str | None) -> Warehouse:
    """A warehouse of this release. Raises ConfigError or SinkError where there is none."""
    url = url or home.warehouse_url
    reader = open_engine(url)
    require_current(reader)
    with snapshot(reader) as connection:
        governance = parse_governance(read.taxonomy(connection).governance_text)
    return Warehouse(reader, open_engine(url, write=True), governance)


@click.group()
def tag() -> None:
    """Correct tags, see what was corrected, draw events at random to judge tags by, watch drift.

    Corrections win over hints, rules and the model, take effect at once, and stand whatever is retagged. On PostgreSQL
    all but `rate` and a part of `watch` take the warehouse's owner.
    """


tag.add_command(watch)


def _target_options(command: F) -> F:
    """`--source`, and `--event-id` with `--type`, or `--ticket`."""
    for option in reversed(
        (
            click.option("--source", required=True, help="System that the event or ticket comes from."),
            click.option("--event-id", help="The source's id of the event."),
            click.option(
                "--type", "event_type", type=click.Choice(EVENT_TYPES), help="Its type, where ids are ambiguous."
            ),
            click.option("--ticket", "ticket_id", help="The source's number of a ticket: all its events."),
        )
    ):
        command = option(command)
    return command


def _reviewer_option(command: F) -> F:
    return click.option("--reviewer", help="Who says so.  [default: the account that runs the command]")(command)


@tag.command("override")
@home_option
@warehouse_option
@_target_options
@click.option("--stage", required=True, help="Stage of the governance file in force, or unassigned.")
@click.option("--department", help="Department.  [default: the owner of the stage]")
@click.option("--topic", help="Topic.  [default: stays where the stage does, else none]")
@_reviewer_option
@click.option("--note", help="Why; redacted like a customer's text.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def override_command(
    *, home: Home, warehouse: str | None, reviewer: str | None, as_json: bool, **values: str | None
) -> None:
    """Correct the tag of one event, or of a ticket with all its events.

    The correction of an event wins over that of its ticket, and the latest one over those before.
    """
    opened = _open(home, warehouse)
    try:
        wanted = correction({**values, "reviewer": reviewer}, opened.governance)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    known = _only(wanted.target, opened.find([wanted.target]))
    (override,) = _overrides(opened, [(known, wanted)], reviewer)
    done = Overrider(opened.restater(), now=now_us).make([override])
    if done.gone:
        raise ConfigError(f"{wanted.target} was erased or has expired just now; there is nothing left to correct")
    if as_json:
        click.echo(json.dumps(_as_json(done)))
        return
    what = "stands already" if done.unchanged else "is corrected"
    click.echo(f"{wanted.target} {what}: {_place(override)}; {_changed(done)}")


@tag.command("import")
@home_option
@warehouse_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@_reviewer_option
@click.option("--dry-run", is_flag=True, help="Only check the file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def import_command(
    *, home: Home, warehouse: str | None, file: Path, reviewer: str | None, dry_run: bool, as_json: bool
) -> None:
    """Correct what a CSV file names: columns source, event_type, event_id or ticket_id, stage, department, topic,
    reviewer, note.

    The whole file is checked first, and refused if any row is wrong. Rows without a stage were not reviewed and are
    left out. The same file again changes nothing; after an interruption, import it again.
    """
    opened = _open(home, warehouse)
    content = read_corrections(file, opened.governance)
    chosen, repeated = _check(file, content.corrections, opened)
    overrides = _overrides(opened, chosen, reviewer)
    report: dict[str, Any] = {
        "rows": len(content.corrections) + content.not_reviewed,
        "not_reviewed": content.not_reviewed,
        "repeated": repeated,
    }
    if dry_run:
        text = "the file is fine; nothing was changed"
    else:
        done = Overrider(opened.restater(), now=now_us).make(overrides)
        with snapshot(opened.reader) as connection:
            events = [place for known, _ in chosen if known.event_id is not None for place in known.places]
            reviewed, wrong = count_reviewed(connection, events)
        low, high = wilson_interval(reviewed, wrong)
        report |= _as_json(done)
        report |= {"tags_reviewed": reviewed, "tags_wrong": wrong, "interval_low": low, "interval_high": high}
        text = f"{done.made:,} made, {done.unchanged:,} stood already"
        if done.gone:
            text += f", {len(done.gone):,} erased or expired meanwhile"
        text += f"; {_changed(done)}"
        if reviewed:
            text += (
                f"\nof {reviewed:,} single events that a machine had tagged, {wrong:,} were tagged wrong: "
                f"{_percent(wrong / reviewed)} ({_percent(low)} to {_percent(high)}, 95 % interval, for events like "
                "these: of all only if they were drawn at random)"
            )
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{report['rows']:,} rows, {content.not_reviewed:,} not reviewed, {repeated:,} repeated: {text}")


@tag.command("withdraw")
@home_option
@warehouse_option
@_target_options
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def withdraw_command(
    *,
    home: Home,
    warehouse: str | None,
    source: str,
    event_id: str | None,
    event_type: str | None,
    ticket_id: str | None,
    as_json: bool,
) -> None:
    """Take the corrections of an event or a ticket back, also earlier ones that the latest had replaced.

    Events are tagged anew: by their hint, the rules in force, the published model.
    """
    if (event_id is None) == (ticket_id is None):
        raise ConfigError("give --event-id or --ticket")
    target = Target(source, event_type if ticket_id is None else None, event_id, ticket_id)
    opened = _open(home, warehouse)
    known = _only(target, opened.find([target]))
    with snapshot(opened.reader) as connection:
        stands = bool(standing_of(connection, [known]))
    if not stands:
        hint = ""
        if known.event_id is not None and known.ticket_id is not None:
            hint = f"; its ticket may be corrected as a whole: --ticket {known.ticket_id}"
        raise ConfigError(f"no correction of {target} stands, so there is none to withdraw{hint}")
    done = _withdraw(opened, known)
    if as_json:
        click.echo(json.dumps(_as_json(done)))
        return
    click.echo(f"{target}: {done.made:,} corrections withdrawn; {_changed(done)}")


def _withdraw(opened: Warehouse, known: Known) -> Done:
    stored = WarehouseModels(opened.reader)
    overrider = Overrider(opened.restater(), now=now_us)
    for attempt in range(MODEL_CHANGES):
        version = stored.active_model()
        model = None if version is None else stored.load_model(version)
        tagger = EventTagger(Tagger(opened.governance, model))
        try:
            return overrider.withdraw([known], tagger.decide, tagger.tagging)
        except ModelChanged:
            if attempt + 1 == MODEL_CHANGES:
                raise
    raise AssertionError("the loop returns or raises")


@tag.command("list")
@home_option
@warehouse_option
@click.option("--all", "every", is_flag=True, help="Also corrections that were withdrawn or replaced.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV that `vocbeam tag import` takes.")
def list_command(home: Home, warehouse: str | None, every: bool, as_json: bool, as_csv: bool) -> None:
    """List the corrections that stand."""
    if as_csv and (every or as_json):
        raise ConfigError("--csv exports the corrections that stand: without --all and --json")
    with snapshot(_open(home, warehouse).reader) as connection:
        rows = [_listed(row) for row in list_overrides(connection, every=every)]
    if as_csv:
        write_rows(sys.stdout, (*CORRECTION_COLUMNS, "made_at"), rows)
    elif as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        table = Table(box=SIMPLE)
        columns = ("made_at", "source", "event_type", "event_id", "ticket_id", "stage", "department", "topic",
                   "reviewer", *(["withdrawn_at"] if every else []))  # fmt: skip
        for name in columns:
            table.add_column(name)
        for row in rows:
            table.add_row(*[escape(row[name] or "") for name in columns])
        Console().print(table)


def _listed(row: Listed) -> dict[str, Any]:
    fields = row._asdict()
    # The ticket of a corrected event says where it is, not what is corrected.
    ticket_id = row.ticket_id if row.event_id is None else None
    return {
        **fields,
        "ticket_id": ticket_id,
        "made_at": _iso(row.made_at),
        "withdrawn_at": None if row.withdrawn_at is None else _iso(row.withdrawn_at),
    }


@tag.command("sample")
@home_option
@warehouse_option
@click.option("--n", default=200, show_default=True, type=click.IntRange(1, 100_000), help="Events to draw.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Draws the same events again.  [default: at random]")
@click.option(
    "--method", "methods", multiple=True, type=click.Choice(MACHINE_METHODS), help="Only tags of this method."
)
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), help="First local date of the events.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), help="Last local date of the events.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="A file that only you can read, not stdout."
)
def sample_command(
    *,
    home: Home,
    warehouse: str | None,
    n: int,
    seed: int | None,
    methods: Sequence[str],
    first: datetime | None,
    last: datetime | None,
    out: Path | None,
) -> None:
    """Draw machine-tagged events at random, with their redacted text, as CSV to be reviewed.

    Write the right stage into each row, also where it is the machine's, then `vocbeam tag import` the file: it says
    which share of the tags is wrong. Rows left without a stage count as not reviewed. A stage that is there already
    is that of a correction that stands.
    """
    if out is not None and out.exists():
        raise ConfigError(f"{out} is there already, and may hold somebody's review; name another file")
    opened = _open(home, warehouse)
    calendar = LocalCalendar(opened.governance.timezone)
    seed = secrets.randbelow(2**31) if seed is None else seed
    with snapshot(opened.reader) as connection:
        drawn = draw_sample(
            connection,
            n,
            seed,
            methods=methods or MACHINE_METHODS,
            since=None if first is None else calendar.day_bounds(first.date())[0],
            until=None if last is None else calendar.day_bounds(last.date())[1],
        )
    columns = (*CORRECTION_COLUMNS, *INFORMING_COLUMNS[: INFORMING_COLUMNS.index("override_id")])
    # Texts of customers: a file is made readable for nobody else.
    private = partial(os.open, mode=0o600)
    with (
        nullcontext(sys.stdout) if out is None
        else open(out, "x", encoding="utf-8", newline="", opener=private)
    ) as file:  # fmt: skip
        write_rows(file, columns, [_drawn(row) for row in drawn])
    fewer = "" if len(drawn) == n else f" (there are no more than {len(drawn):,})"
    click.echo(f"{len(drawn):,} events drawn with seed {seed}{fewer}", err=True)


def _drawn(row: Sampled) -> dict[str, Any]:
    return {**row._asdict(), "event_time": _iso(row.event_time)}


@tag.command("rate")
@home_option
@warehouse_option
@click.option("--by", "period", type=click.Choice(("month", "week")), default="month", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def rate_command(home: Home, warehouse: str | None, period: str, as_json: bool) -> None:
    """Which share of the events that a machine tagged was corrected, by department and method of its tag.

    Corrected means that the person says another stage or department; reviewed counts those that were confirmed too.
    """
    reader = open_engine(warehouse or home.warehouse_url)
    with snapshot(reader) as connection:
        rows = read.override_rates(connection, period)
    if as_json:
        click.echo(json.dumps([{**asdict(row), "period_start": _day(row.period_start)} for row in rows], indent=2))
        return
    table = Table(box=SIMPLE, caption=LOWER_BOUND, caption_justify="left")
    for name in (period, "department", "method", "tagged", "reviewed", "corrected", "rate", "95 % interval"):
        table.add_column(name, justify="left" if name in (period, "department", "method") else "right")
    for row in rows:
        figures = ("hidden", *[""] * 4)
        if not row.suppressed:
            interval = f"{_percent(row.interval_low)} to {_percent(row.interval_high)}"
            figures = (
                f"{row.n:,}", f"{row.reviewed:,}", f"{row.corrected:,}", _percent(row.override_rate), interval,
            )  # fmt: skip
        table.add_row(_day(row.period_start), row.department, row.tag_method, *figures)
    Console().print(table)


def _check(
    file: Path, corrections: Sequence[tuple[int, Correction]], opened: Warehouse
) -> tuple[list[tuple[Known, Correction]], int]:
    """What each correction is about, and how many say again what another line says.

    Raises ConfigError where one is about nothing that is there, or two say different things of one target.
    """
    found = opened.find(wanted.target for _, wanted in corrections)
    chosen: dict[bytes, tuple[int, Known, Correction]] = {}
    wrong: list[tuple[int, str]] = []
    repeated = 0
    for line, wanted in corrections:
        try:
            known = _only(wanted.target, found)
        except ConfigError as error:
            wrong.append((line, str(error)))
            continue
        before = chosen.get(known.key)
        if before is None:
            chosen[known.key] = (line, known, wanted)
        elif (wanted.stage, wanted.department, wanted.topic) == (
            before[2].stage,
            before[2].department,
            before[2].topic,
        ):
            repeated += 1
        else:
            wrong.append((line, f"says another thing of {wanted.target} than line {before[0]}; keep one of them"))
    raise_wrong(file, wrong)
    return [(known, wanted) for _, known, wanted in chosen.values()], repeated


def _only(target: Target, found: Mapping[Target, Sequence[Known]]) -> Known:
    """The one thing that a target is. Raises ConfigError where there is none, or several."""
    known = found[target]
    if not known:
        raise ConfigError(f"no {target} in this warehouse; check source and id. What was erased or expired is gone")
    if len(known) > 1:
        types = ", ".join(sorted(one.event_type for one in known))
        raise ConfigError(f"{target} is ambiguous: there is one of each type {types}; say which (--type, event_type)")
    return known[0]


def _overrides(opened: Warehouse, chosen: Sequence[tuple[Known, Correction]], reviewer: str | None) -> list[Override]:
    """The rows to be written: topic and reviewer filled in, notes redacted."""
    redactor = Redactor(phone_regions(opened.governance.timezone))
    result = []
    for known, wanted in chosen:
        topic = wanted.topic
        if topic is None:
            topic = known.topic if known.stage == wanted.stage else NO_TOPIC
        note = None if wanted.note is None else redactor.redact(wanted.note)
        who = wanted.reviewer or reviewer or _account()
        result.append(Override(known, wanted.stage, wanted.department, topic, who, note))
    return result


@cache
def _account() -> str:
    """Name of the account that runs this command. Raises ConfigError where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("this account has no name; say who corrects: --reviewer NAME") from None


def _place(override: Override) -> str:
    topic = f", topic {override.topic}" if override.topic else ""
    return f"stage {override.stage}, department {override.department}{topic}"


def _changed(done: Done) -> str:
    """How many events have another tag now, and, of one, what it was."""
    if len(done.moves) != 1:
        return f"{len(done.moves):,} events have another tag now"
    (move,) = done.moves
    before, after = move.before, move.after
    was = f"{before.stage}, {before.department} by {before.method}" if before.method != UNASSIGNED else UNASSIGNED
    return f"1 event that was {was} is {after.stage}, {after.department} by {after.method}"


def _as_json(done: Done) -> dict[str, int]:
    return {
        "corrections": done.made,
        "unchanged": done.unchanged,
        "gone": len(done.gone),
        "events_changed": len(done.moves),
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _day(day: date | None) -> str:
    return "" if day is None else day.isoformat()


def _iso(micros: int) -> str:
    return from_micros(micros).isoformat()
