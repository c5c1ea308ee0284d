"""What stands around the facts: the schema, the dimensions of the governance file, and what must never change."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, timedelta
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import tenacity
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, delete, func, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError

from vocbeam.schemas.errors import ConfigError, SinkUnavailable, WrongKey
from vocbeam.schemas.governance import ANY, Governance, Metric
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import roles
from vocbeam.sinks.bulk import insert_rows
from vocbeam.sinks.engine import driver_error, is_contention, is_forbidden, is_transient
from vocbeam.sinks.partitions import add_months
from vocbeam.sinks.tables import (
    KEY_FINGERPRINT,
    TIMEZONE,
    active_tagging,
    calendar_date,
    data_dictionary,
    department,
    journey_stage,
    measure_bin,
    metadata,
    metric,
    privacy,
    target,
    taxonomy_version,
    warehouse_setting,
)
from vocbeam.sinks.views import create_views, drop_views, view_comments, view_definitions, view_names

log = logging.getLogger(__name__)

FIRST_YEAR, LAST_YEAR = 1999, 2049
"""Years of `calendar_date`. A governance file may accept events from 2000-01-01 UTC on, in some zones a day earlier."""

TURN_WAIT_S = 120
"""Longest wait for others who migrate, apply, or read a view that is to be replaced; each takes some seconds."""

OUTAGE_WAIT_S = 10
"""Longest wait for a database that doesn't answer or is starting: a wrong URL shall be told soon."""

_TURN = int.from_bytes(b"vocbeam", "big")
"""Key of the advisory lock that only `vocbeam` takes."""

VERSION_TABLE = "schema_version"
"""Where Alembic keeps the revision of the schema; `migrations/env.py` says so too."""

ROLE_PREFIX, IN_FORCE = "role_prefix", "in_force"

NO_ROLES = "SQLite has no roles: there the permissions of the file decide; name a PostgreSQL warehouse (--warehouse)"

Bins = Iterable[tuple[int, int, int, float]]


def migrate(engine: Engine, role_prefix: str | None = None) -> None:
    """Brings the schema and the views to this release's version, and on PostgreSQL its roles and their rights.

    `role_prefix` names the roles from now on (None: as before, at first after the database); see `sinks/roles.py`.
    Raises ConfigError when this account may not, when views of others are built on ours, or for a prefix that can't be;
    SinkUnavailable as `apply_governance`.
    """

    def change(connection: Connection) -> None:
        _upgrade(connection)
        create_views(connection)
        _replace(connection, data_dictionary, _dictionary(connection.dialect.name))
        _grant_roles(connection, role_prefix)

    if role_prefix is not None and engine.dialect.name != "postgresql":
        raise ConfigError(NO_ROLES)
    _in_turn(engine, change)


def _upgrade(connection: Connection) -> None:
    config = _alembic()
    if _revision(connection) != ScriptDirectory.from_config(config).get_current_head():
        # Views stand in the way of a change.
        drop_views(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _grant_roles(connection: Connection, prefix: str | None = None) -> None:
    """Makes the roles and grants them their rights; where this account can't make them, says what is to be done."""
    if connection.dialect.name != "postgresql":
        return
    former = _settings(connection).get(ROLE_PREFIX)
    if prefix is None:
        prefix = former or connection.execute(select(func.current_database())).scalar_one()
    elif former not in (None, prefix):
        roles.revoke(connection, former)
    missing = roles.ensure_roles(connection, prefix)
    if missing:
        log.warning(
            "the PostgreSQL roles %s are missing, and this account may not create them; everything else goes on. "
            "Have an administrator run what `vocbeam roles --sql` prints, then run `vocbeam migrate`",
            ", ".join(missing),
        )
    _set(connection, ROLE_PREFIX, prefix)
    roles.grant(connection, prefix)


def role_prefix(engine: Engine) -> str:
    """What the names of a warehouse's roles begin with. Raises ConfigError on SQLite, which has no roles."""
    if engine.dialect.name != "postgresql":
        raise ConfigError(NO_ROLES)
    with engine.connect() as connection:
        known = _settings(connection) if inspect(connection).has_table(warehouse_setting.name) else {}
        database: str = connection.execute(select(func.current_database())).scalar_one()
    return known.get(ROLE_PREFIX, database)


def _settings(connection: Connection) -> dict[str, str]:
    return dict(connection.execute(select(warehouse_setting.c.name, warehouse_setting.c.value)).all())


def _set(connection: Connection, name: str, value: str) -> None:
    connection.execute(delete(warehouse_setting).where(warehouse_setting.c.name == name))
    connection.execute(insert(warehouse_setting).values(name=name, value=value))


def ensure_governance(
    engine: Engine, governance: Governance, *, key_fingerprint: str, bins: Bins, now: Callable[[], int]
) -> None:
    """Like `apply_governance`, but changes nothing, and needs no right to, where all that is in force already."""
    bins = list(bins)
    try:
        if _in_force(engine, governance, key_fingerprint, bins):
            return
    except DBAPIError as error:
        # What waits, retries and explains is there already.
        if not (is_transient(error) or is_forbidden(error)):
            raise
    apply_governance(engine, governance, key_fingerprint=key_fingerprint, bins=bins, now=now)


def _in_force(engine: Engine, governance: Governance, key_fingerprint: str, bins: Bins) -> bool:
    with engine.connect() as connection:
        present = inspect(connection)
        head = ScriptDirectory.from_config(_alembic()).get_current_head()
        if not present.has_table(VERSION_TABLE) or _revision(connection) != head:
            return False
        wanted = {
            KEY_FINGERPRINT: key_fingerprint,
            TIMEZONE: governance.timezone,
            IN_FORCE: _digest(connection, governance, bins),
        }
        same = wanted.items() <= _settings(connection).items()
        return same and set(view_names()) <= set(present.get_view_names())


def _digest(connection: Connection, governance: Governance, bins: Bins) -> str:
    """What `apply_governance` makes of these arguments in this release, told apart from anything else."""
    dialect = connection.dialect.name
    made = [governance.digest, list(bins), view_definitions(dialect), list(_dictionary(dialect))]
    granted = [roles.rights(name, role) for name in (*roles.TABLE_ACCESS, *view_names()) for role in roles.ROLES]
    return hashlib.sha256(json.dumps([*made, granted]).encode()).hexdigest()


SchemaState = Literal["current", "older", "newer"]


def schema_state(connection: Connection) -> SchemaState:
    """Whether the schema is that of this release, one that this release can migrate, or that of another release."""
    revisions, head = _known_revisions()
    found = _revision(connection)
    return "current" if found == head else "older" if found is None or found in revisions else "newer"


@cache
def _known_revisions() -> tuple[frozenset[str], str | None]:
    scripts = ScriptDirectory.from_config(_alembic())
    return frozenset(script.revision for script in scripts.walk_revisions()), scripts.get_current_head()


def require_current(engine: Engine) -> None:
    """Raises ConfigError unless the warehouse has this release's schema."""
    with engine.connect() as connection:
        found, state = _revision(connection), schema_state(connection)
    if state != "current":
        raise ConfigError(
            f"the warehouse's schema is at revision {found or 'none'}, not that of this release; bring it up to date "
            "with `vocbeam apply`"
        )


def apply_governance(
    engine: Engine,
    governance: Governance,
    *,
    key_fingerprint: str,
    bins: Bins,
    now: Callable[[], int],
) -> None:
    """Migrates, then makes `governance` the one that new events are tagged and measured under; repeatable.

    `bins` are (bin, lower, upper, representative) of the logarithmic bins. Rows of dimensions are replaced as a whole;
    facts are not touched: history stays as it was reported.

    Raises ConfigError when the file's time zone is not the warehouse's, when its taxonomy changed under an old version
    number, when this account may not change the warehouse, or when views of others are built on ours; WrongKey when the
    warehouse holds pseudonyms made with another key; SinkUnavailable when the database can't be reached or stays
    locked.
    """
    bins = list(bins)
    rows_of_bins = [{"bin": b, "lower": low, "upper": high, "representative": middle} for b, low, high, middle in bins]

    def apply(connection: Connection) -> None:
        _upgrade(connection)
        add_months(connection, now())
        known = _settings(connection)
        _keep(connection, known, KEY_FINGERPRINT, key_fingerprint, _wrong_key)
        _keep(connection, known, TIMEZONE, governance.timezone, _other_timezone)
        _activate(connection, governance, now())
        _replace(connection, department, _departments(governance))
        _replace(connection, journey_stage, _stages(governance))
        _replace(connection, metric, _metrics(governance))
        _replace(connection, target, _targets(governance))
        _replace(connection, privacy, [{"only": 1, "k": governance.privacy.k}])
        if TIMEZONE not in known:
            _replace(connection, calendar_date, _dates(LocalCalendar(governance.timezone)))
        _replace(connection, measure_bin, rows_of_bins)
        _replace(connection, data_dictionary, _dictionary(connection.dialect.name))
        create_views(connection)
        _grant_roles(connection)
        _set(connection, IN_FORCE, _digest(connection, governance, bins))

    _in_turn(engine, apply)


def _in_turn(engine: Engine, change: Callable[[Connection], None]) -> None:
    """Runs `change` in a transaction, one process after another; repeats it while others are in the way, or the
    database is away, up to a limit for each.
    """

    def attempt() -> None:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_TURN)))
            change(connection)

    def waited_long_enough(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        limit_s = TURN_WAIT_S if error is not None and is_contention(error) else OUTAGE_WAIT_S
        return (state.seconds_since_start or 0.0) >= limit_s

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and not is_contention(error):
            log.warning("the warehouse is not there yet (%s); tried again", type(driver_error(error)).__name__)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        stop=waited_long_enough,
        before_sleep=announce,
        reraise=True,
    )
    try:
        retrying(attempt)
    except Exception as error:
        if is_forbidden(error):
            raise ConfigError(
                f"this account may not bring schema and governance of the warehouse up to date: {driver_error(error)}; "
                "have its owner run `vocbeam apply` with this release, this governance file and this key, then start "
                "again"
            ) from None
        if not is_transient(error):
            raise
        raise SinkUnavailable(
            f"the warehouse can't be prepared ({type(driver_error(error)).__name__}); nothing was changed: see that "
            "the database is up, that its URL is right, and that nobody holds a lock on its tables or views"
        ) from error


def _keep(
    connection: Connection,
    known: Mapping[str, str],
    name: str,
    value: str,
    refuse: Callable[[str, str], Exception],
) -> None:
    if name not in known:
        connection.execute(insert(warehouse_setting).values(name=name, value=value))
    elif known[name] != value:
        raise refuse(known[name], value)


def _wrong_key(known: str, given: str) -> WrongKey:
    return WrongKey(
        f"this warehouse holds pseudonyms made with the key of fingerprint {known}, but the key given has {given}; "
        "give the former key (VOCBEAM_PSEUDONYM_KEY or VOCBEAM_PSEUDONYM_KEY_FILE), or start a new warehouse"
    )


def _other_timezone(known: str, given: str) -> ConfigError:
    return ConfigError(
        f"this warehouse keeps its days in {known}, but the governance file says {given}; set timezone: {known}, or "
        "start a new warehouse and read the topics again"
    )


def require_new_version(connection: Connection, governance: Governance) -> None:
    """Raises ConfigError where a governance file changes the taxonomy of a version that was in force already."""
    c = taxonomy_version.c
    query = select(c.taxonomy_digest).where(c.taxonomy_version == governance.version)
    known = connection.execute(query).scalar_one_or_none()
    if known not in (None, governance.taxonomy_digest):
        raise ConfigError(
            f"the governance file changes stages, owners, rules, segments or attribution but still says version: "
            f"{governance.version}; raise its version, so that every tag says what it was made under"
        )


def _activate(connection: Connection, governance: Governance, now: int) -> None:
    require_new_version(connection, governance)
    c = taxonomy_version.c
    row = connection.execute(select(taxonomy_version).where(c.taxonomy_version == governance.version)).one_or_none()
    values = {
        "taxonomy_digest": governance.taxonomy_digest,
        "governance_digest": governance.digest,
        "governance_text": governance.to_yaml_text(),
        "applied_at": now,
    }
    if row is None:
        connection.execute(insert(taxonomy_version).values(taxonomy_version=governance.version, **values))
    elif row.governance_digest != governance.digest:
        connection.execute(update(taxonomy_version).where(c.taxonomy_version == governance.version).values(**values))
    active = connection.execute(select(active_tagging.c.taxonomy_version)).scalar_one_or_none()
    if active is None:
        connection.execute(insert(active_tagging).values(only=1, taxonomy_version=governance.version))
    elif active != governance.version:
        connection.execute(update(active_tagging).values(taxonomy_version=governance.version))


def _replace(connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    connection.execute(delete(table))
    columns = table.columns.keys()
    insert_rows(connection, table, columns, [[row.get(name) for name in columns] for row in rows])


def _departments(governance: Governance) -> Iterator[dict[str, Any]]:
    for entry in governance.departments:
        yield {
            "department": entry.id,
            "name": entry.name,
            "representative": entry.representative,
            "alert_route": entry.alert_route,
            "acknowledge_flags_within_s": entry.acknowledge_flags_within,
        }
    yield {
        "department": UNASSIGNED,
        "name": "Unassigned",
        "representative": None,
        "alert_route": None,
        "acknowledge_flags_within_s": None,
    }


def _stages(governance: Governance) -> Iterator[dict[str, Any]]:
    for stage in governance.stages:
        yield {
            "stage": stage.id,
            "name": stage.name,
            "journey": stage.journey,
            "position": stage.position,
            "owner": stage.owner,
            "description": stage.description,
        }
    yield {
        "stage": UNASSIGNED,
        "name": "Unassigned",
        "journey": "",
        "position": len(governance.stages) + 1,
        "owner": None,
        "description": "Neither hint nor rule nor model could tell.",
    }


def _metrics(governance: Governance) -> Iterator[dict[str, Any]]:
    for entry in governance.metrics:
        yield {
            "metric": entry.id,
            "name": entry.name,
            "level": entry.level,
            "kind": entry.kind,
            "definition": entry.definition,
            # A target of money is in the company's currency, and says nothing of amounts in another one.
            "unit": governance.currency if entry.unit == "currency" else entry.unit,
            "direction": entry.direction,
            "clock": entry.clock,
            "scale_min": entry.scale.min if entry.scale else None,
            "scale_max": entry.scale.max if entry.scale else None,
            "satisfied_from": entry.satisfied_from,
            "satisfied_to": entry.satisfied_to,
            "percentile": entry.percentile,
            "min_n": entry.min_n,
            "parents": ",".join(entry.parents) or None,
            "small_groups": entry.small_groups,
        }


def _targets(governance: Governance) -> Iterator[dict[str, Any]]:
    """Targets spelled out for each stage and department, for either alone, and for the whole company, with dates."""
    stages = [*governance.stage_owner, UNASSIGNED]
    departments = [*governance.department_ids, UNASSIGNED]
    places = [(s, d) for s in [ANY, *stages] for d in [ANY, *departments]]
    for entry in governance.metrics:
        yield from _targets_of(governance, entry, places)


def _targets_of(governance: Governance, entry: Metric, places: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    own = [t for t in governance.targets if t.metric == entry.id]
    turns = sorted({day for t in own for day in (t.valid_from, t.valid_to) if day is not None})
    for stage, owner in places:
        for start, end in zip_longest(turns, turns[1:]):
            found = governance.target_on(entry.id, stage, owner, start)
            if found is not None:
                yield {
                    "metric": entry.id,
                    "stage": stage,
                    "department": owner,
                    "valid_from": start.isoformat(),
                    "valid_to": end.isoformat() if end else None,
                    "value": found.value,
                }


def _dates(calendar: LocalCalendar) -> Iterator[dict[str, Any]]:
    day = date(FIRST_YEAR, 1, 1)
    while day.year <= LAST_YEAR:
        iso = day.isocalendar()
        starts_at, ends_at = calendar.day_bounds(day)
        yield {
            "date": day.isoformat(),
            "week_start": (day - timedelta(days=day.weekday())).isoformat(),
            "iso_year": iso.year,
            "iso_week": iso.week,
            "month_start": day.replace(day=1).isoformat(),
            "quarter_start": day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1).isoformat(),
            "year": day.year,
            "weekday": iso.weekday,
            "starts_at": starts_at,
            "ends_at": ends_at,
        }
        day += timedelta(days=1)


def _dictionary(dialect_name: str) -> Iterator[dict[str, str]]:
    for table in metadata.sorted_tables:
        yield {"object": table.name, "column": "", "comment": table.comment or ""}
        for column in table.columns:
            yield {"object": table.name, "column": column.name, "comment": column.comment or ""}
    for view, column_name, comment in view_comments(dialect_name):
        yield {"object": view, "column": column_name, "comment": comment}
