"""Cases: what departments do about alerts on their targets.

Alertmanager tells which alerts fire and which have recovered, at least once and in any order. A firing alert opens a
case unless one with the same labels is open; it is known by its fingerprint and the moment it began to fire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, case, false, func, insert, or_, select, update

from vocbeam.schemas.errors import Refused
from vocbeam.schemas.timebase import to_micros
from vocbeam.sinks.flags import MAX_NAME_CHARS, MAX_WORDS_CHARS, Acted, words
from vocbeam.sinks.tables import alert_case, case_alert, department, journey_stage
from vocbeam.sinks.tables import metric as metric_table
from vocbeam.sinks.target_windows import LENGTHS, Length

State = Literal["open", "acknowledged", "closed"]
STATES: tuple[State, ...] = ("open", "acknowledged", "closed")

CASE_ALERTS = ("TargetMissed", "ControlChartSignal")
"""Alerts that open cases: those on targets."""

MAX_ALERTS = 1_000
"""Most alerts of one notification; Alertmanager sends those of one group."""

MAX_SUMMARY_CHARS = 1_000

_TURN = int.from_bytes(b"cases", "big")
"""Key of the advisory lock under which notifications are taken in one after another."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """A case. Times are UTC microseconds; `recovered_at` is when its alert last recovered, None while it fires."""

    case_id: int
    alert: str
    metric: str
    stage: str
    department: str
    unit: str
    window_length: Length
    summary: str
    started_at: int
    opened_at: int
    recovered_at: int | None
    acknowledged_at: int | None
    acknowledged_by: str | None
    closed_at: int | None
    closed_by: str | None
    root_cause: str | None
    action: str | None

    @property
    def state(self) -> State:
        """open, acknowledged or closed."""
        if self.closed_at is not None:
            return "closed"
        return "open" if self.acknowledged_at is None else "acknowledged"


@dataclass(frozen=True, slots=True)
class Received:
    """What a notification told: cases opened, firings added to open cases, alerts that recovered, told before, and
    alerts that open no case (of another kind, or of a place that the governance file in force doesn't have).
    """

    opened: int = 0
    continued: int = 0
    recovered: int = 0
    repeated: int = 0
    ignored: int = 0


class _Alert(NamedTuple):
    fingerprint: str
    starts_at: int
    ended_at: int | None
    labels: Mapping[str, str]
    summary: str


def receive_alerts(connection: Connection, payload: object, *, at: int) -> Received:
    """Takes in what Alertmanager's webhook sends (version 4), parsed from JSON. Call it in a writing transaction.

    The same notification again changes nothing. An alert that is told of only when it has recovered opens a case too:
    the target was missed. `at` is UTC microseconds. Raises Refused for a payload of another form; nothing of it is
    taken in then.
    """
    alerts = _parsed(payload)
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_TURN)))
    counts: dict[str, int] = dict.fromkeys(Received.__slots__, 0)
    known = _Known(connection)
    for alert in sorted(alerts, key=lambda alert: (alert.fingerprint, alert.starts_at)):
        if not known.opens_case(alert):
            counts["ignored"] += 1
            continue
        for outcome in _take_in(connection, alert, at):
            counts[outcome] += 1
    return Received(**counts)


class _Known:
    """What of the governance file in force an alert on a target must name."""

    def __init__(self, connection: Connection) -> None:
        def ids(column: Any) -> set[str]:
            return set(connection.execute(select(column)).scalars())

        self._allowed: dict[str, set[str]] = {
            "department": ids(department.c.department),
            "stage": ids(journey_stage.c.stage),
            "metric": ids(metric_table.c.metric),
            "alertname": set(CASE_ALERTS),
            "window": set(LENGTHS),
        }

    def opens_case(self, alert: _Alert) -> bool:
        return all(alert.labels.get(label) in allowed for label, allowed in self._allowed.items())


def _take_in(connection: Connection, alert: _Alert, at: int) -> list[str]:
    """What it was in words of `Received`."""
    c, made = case_alert.c, alert_case.c
    told = and_(c.fingerprint == alert.fingerprint, c.starts_at == alert.starts_at)
    before = connection.execute(select(c.ended_at).where(told)).one_or_none()
    if before is not None:
        if alert.ended_at is None or before.ended_at is not None:
            return ["repeated"]
        connection.execute(update(case_alert).where(told).values(ended_at=alert.ended_at))
        return ["recovered"]
    open_case = select(func.max(made.case_id)).where(made.fingerprint == alert.fingerprint, made.closed_at.is_(None))
    case_id = connection.execute(open_case).scalar_one()
    outcome = "continued"
    if case_id is None:
        case_id, outcome = _open(connection, alert, at), "opened"
    connection.execute(
        insert(case_alert).values(
            fingerprint=alert.fingerprint, starts_at=alert.starts_at, case_id=case_id, ended_at=alert.ended_at
        )
    )
    return [outcome, *(["recovered"] if alert.ended_at is not None else [])]


def _open(connection: Connection, alert: _Alert, at: int) -> int:
    labels = alert.labels
    row = insert(alert_case).values(
        fingerprint=alert.fingerprint,
        alert=labels["alertname"],
        metric=labels["metric"],
        stage=labels["stage"],
        department=labels["department"],
        unit=words("unit", labels.get("unit", ""), MAX_NAME_CHARS),
        window_length=labels["window"],
        summary=alert.summary,
        started_at=alert.starts_at,
        opened_at=at,
    )
    case_id: int = connection.execute(row.returning(alert_case.c.case_id)).scalar_one()
    return case_id


def cases(
    connection: Connection,
    *,
    department: str | None = None,
    stage: str | None = None,
    state: State | None = None,
    limit: int = 200,
) -> list[CaseRow]:
    """Cases, the latest first."""
    c = alert_case.c
    query = _query().order_by(c.case_id.desc()).limit(limit)
    if department is not None:
        query = query.where(c.department == department)
    if stage is not None:
        query = query.where(c.stage == stage)
    if state == "closed":
        query = query.where(c.closed_at.is_not(None))
    elif state is not None:
        query = query.where(
            c.closed_at.is_(None), c.acknowledged_at.is_(None) if state == "open" else c.acknowledged_at.is_not(None)
        )
    return [CaseRow(**row) for row in connection.execute(query).mappings()]


def unclosed_cases(connection: Connection) -> Counter[tuple[str, str]]:
    """(stage, department) → cases that nobody has closed."""
    c = alert_case.c
    query = select(c.stage, c.department, func.count()).where(c.closed_at.is_(None)).group_by(c.stage, c.department)
    return Counter({(stage, department): n for stage, department, n in connection.execute(query)})


def get_case(connection: Connection, case_id: int) -> CaseRow:
    """One case. Raises Refused where there is none of this number."""
    row = connection.execute(_query().where(_is(case_id))).mappings().one_or_none()
    if row is None:
        raise Refused(f"there is no case {case_id}; see `vocbeam case list`", "case_id")
    return CaseRow(**row)


def stages_with_cases(connection: Connection, metric: str, start: int, end: int) -> set[str]:
    """Stages with a case of a metric that was open at any moment from `start` to `end`, UTC microseconds."""
    c = alert_case.c
    overlaps = and_(c.metric == metric, c.started_at < end, or_(c.closed_at.is_(None), c.closed_at >= start))
    return set(connection.execute(select(c.stage).where(overlaps)).scalars())


def acknowledge_case(connection: Connection, case_id: int, *, by: str, at: int) -> Acted:
    """Says that somebody works on a case; the first one counts. Call it in a writing transaction.

    `at` is UTC microseconds. Raises Refused where there is no such case, or `by` is empty or too long.
    """
    by = words("by", by, MAX_NAME_CHARS)
    standing = _locked(connection, case_id)
    if standing.acknowledged_at is not None and standing.acknowledged_by is not None:
        return Acted(False, standing.acknowledged_by, standing.acknowledged_at)
    changed = update(alert_case).where(alert_case.c.case_id == case_id)
    connection.execute(changed.values(acknowledged_at=at, acknowledged_by=by))
    return Acted(True, by, at)


def close_case(connection: Connection, case_id: int, *, by: str, at: int, root_cause: str, action: str) -> Acted:
    """Closes a case with why it came to it and what was done; acknowledges it where nobody has.

    What was closed stays as it was closed. As `acknowledge_case`; raises Refused also where `root_cause` or `action` is
    empty or too long.
    """
    by = words("by", by, MAX_NAME_CHARS)
    root_cause, action = words("root_cause", root_cause, MAX_WORDS_CHARS), words("action", action, MAX_WORDS_CHARS)
    standing = _locked(connection, case_id)
    if standing.closed_at is not None and standing.closed_by is not None:
        return Acted(False, standing.closed_by, standing.closed_at)
    acknowledge_case(connection, case_id, by=by, at=at)
    changed = update(alert_case).where(alert_case.c.case_id == case_id)
    connection.execute(changed.values(closed_at=at, closed_by=by, root_cause=root_cause, action=action))
    return Acted(True, by, at)


def _locked(connection: Connection, case_id: int) -> CaseRow:
    connection.execute(select(alert_case.c.case_id).where(_is(case_id)).with_for_update())
    return get_case(connection, case_id)


def _is(case_id: int) -> ColumnElement[bool]:
    """Whether a row is that case; no database takes a number beyond 64 bits, and no case has it."""
    return alert_case.c.case_id == case_id if 0 < case_id < 1 << 63 else false()


def _query() -> Select[Any]:
    c, told = alert_case.c, case_alert.c
    # While one firing has not ended, the case has not recovered.
    ended = case((func.count() == func.count(told.ended_at), func.max(told.ended_at)))
    recovered = select(ended).where(told.case_id == c.case_id).scalar_subquery()
    names = [name for name in CaseRow.__slots__ if name != "recovered_at"]
    return select(*(c[name] for name in names), recovered.label("recovered_at"))


def _parsed(payload: object) -> list[_Alert]:
    alerts = payload.get("alerts") if isinstance(payload, Mapping) else None
    if not isinstance(alerts, Sequence) or isinstance(alerts, str):
        raise Refused("this is no notification of Alertmanager: a JSON object with a list `alerts` is expected")
    if len(alerts) > MAX_ALERTS:
        raise Refused(f"the notification holds {len(alerts):,} alerts; at most {MAX_ALERTS:,} are taken in")
    return [_alert(entry, f"alerts[{i}]") for i, entry in enumerate(alerts)]


def _alert(entry: object, where: str) -> _Alert:
    if not isinstance(entry, Mapping):
        raise Refused(f"{where} is no object")
    status, fingerprint = entry.get("status"), entry.get("fingerprint")
    if status not in ("firing", "resolved"):
        raise Refused(f"{where}.status must be firing or resolved")
    if not isinstance(fingerprint, str):
        raise Refused(f"{where}.fingerprint must be text")
    return _Alert(
        fingerprint=words(f"{where}.fingerprint", fingerprint, MAX_NAME_CHARS),
        starts_at=_moment(entry.get("startsAt"), f"{where}.startsAt"),
        ended_at=_moment(entry.get("endsAt"), f"{where}.endsAt") if status == "resolved" else None,
        labels=_texts(entry.get("labels"), f"{where}.labels"),
        summary=_storable(_texts(entry.get("annotations", {}), f"{where}.annotations").get("summary", "")),
    )


def _storable(text: str) -> str:
    """`text` without what no database stores; an alert is not refused for how it is worded."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")[:MAX_SUMMARY_CHARS]


def _texts(value: object, where: str) -> Mapping[str, str]:
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()):
        return value
    raise Refused(f"{where} must map names to text")


def _moment(value: object, where: str) -> int:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None and moment.tzinfo is not None:
            return to_micros(moment)
    except ValueError:
        pass
    raise Refused(f"{where} must be a time such as 2026-01-31T09:00:00Z")
