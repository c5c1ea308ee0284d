"""PostgreSQL roles of a warehouse, and what each may do with every table and view.

Five group roles (NOLOGIN) per warehouse, named by a prefix, which is the database's name unless another is chosen:
`<prefix>_writer` is what `vocbeam run` needs, `<prefix>_reader` is for BI tools, `<prefix>_auditor` for the commands
that look at the books, `<prefix>_web` for `vocbeam web`, `<prefix>_receiver` for `vocbeam case receive`. Roles belong
to the whole cluster, their rights to one database: a prefix of its own keeps the readers of one warehouse out of
another. Everything else (schema, governance, views) is the owner's alone.

`rights` alone decides: of tables by `TABLE_ACCESS`, of views by `sinks.views.ROW_LEVEL_VIEWS`. A table that is not
classified is granted to nobody, and a test fails. SQLite has no roles: there the file's permissions decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sqlalchemy import BigInteger, Connection, text

from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks.flags import flag_event
from vocbeam.sinks.tables import EVENT_TAG, EVENT_WORDS, event, metadata
from vocbeam.sinks.views import ROW_LEVEL_VIEWS, view_names

Role = Literal["writer", "reader", "auditor", "web", "receiver"]
ROLES: tuple[Role, ...] = get_args(Role)

Grants = Mapping[str, tuple[str, ...]]
"""Privilege → the columns it is granted on; none named means the whole table."""

LONGEST_NAME = 63
"""Bytes of a PostgreSQL name; it cuts longer ones in silence."""

_NOTHING: Grants = {}
_READ: Grants = {"SELECT": ()}
_KEEP: Grants = {"SELECT": (), "INSERT": (), "UPDATE": ()}
_FLAGS: Grants = {"SELECT": (), "UPDATE": ("lockable",)}
_CONTRIBUTIONS: Grants = {"SELECT": ("contributions", "restated")}


@dataclass(frozen=True)
class Access:
    """What each role may do with one table."""

    writer: Grants = field(default_factory=dict)
    reader: Grants = field(default_factory=dict)
    auditor: Grants = field(default_factory=dict)
    web: Grants = field(default_factory=dict)
    receiver: Grants = field(default_factory=dict)

    def of(self, role: Role) -> Grants:
        """The grants of one role."""
        grants: Grants = getattr(self, role)
        return grants


_DIMENSION = Access(reader=_READ, auditor=_READ, web=_READ)
_PLACE = Access(reader=_READ, auditor=_READ, web=_READ, receiver=_READ)

TABLE_ACCESS: Mapping[str, Access] = {
    "schema_version": Access(writer=_READ, auditor=_READ, web=_READ, receiver=_READ),
    "warehouse_setting": Access(writer=_READ, auditor=_READ, web=_READ),
    "taxonomy_version": Access(writer=_READ, auditor=_READ, web=_READ),
    # Locking the row FOR SHARE takes the right to update some column: `only` can hold nothing but 1.
    "active_tagging": Access(writer={"SELECT": (), "UPDATE": ("only",)}, auditor=_READ, web=_READ),
    "text_model": Access(
        writer=_READ, auditor={"SELECT": ("model_version", "card", "taxonomy_version", "stored_at")}
    ),
    "model_stage": Access(auditor=_READ),
    "run_epoch": Access(writer={"SELECT": (), "INSERT": (), "UPDATE": ("ended_at", "outcome")}, auditor=_READ),
    # Deleted are rows of processes that are gone, after they were added to the sum.
    "worker_metric": Access(writer={**_KEEP, "DELETE": ()}, auditor=_READ),
    "ingest_ledger": Access(writer=_KEEP, auditor=_READ, web={"SELECT": ("ledger_id", "topic")}),
    "event_key": Access(writer={"SELECT": (), "INSERT": ()}, auditor={"SELECT": ("loaded_at",)}),
    "key_span": Access(),
    # Attribution by touchpoint changes tags; it has no need of what customers wrote.
    "event": Access(
        writer={
            "INSERT": (),
            "SELECT": tuple(column.name for column in event.columns if column.name not in EVENT_WORDS),
            "UPDATE": tuple(name for name in EVENT_TAG if name not in EVENT_WORDS),
        },
        auditor={
            "SELECT": (
                "ledger_id", "kafka_offset", "event_key", "event_type", "source", "event_time", "stage", "department",
                "topic", "flag_kind", "tag_method", "tag_confidence", "taxonomy_version", "model_version", "sentiment",
                "reported_stage",
                "reported_department", "reported_topic", "contributions", "restated", "loaded_at",
            )
        },
    ),
    "ticket": Access(
        writer=_KEEP,
        # The report's backlog and service levels are counted from here.
        auditor={
            "SELECT": (
                "contributions", "restated", "is_open", "stage", "department", "opened_at", "first_response_at",
                "first_response_due_at", "responded_in_sla", "resolution_us", "resolution_due_at", "resolved_in_sla",
            )
        },
    ),
    "survey_answer": Access(writer=_KEEP, auditor=_CONTRIBUTIONS),
    "survey_response": Access(writer=_KEEP, auditor=_CONTRIBUTIONS),
    # Without names and notes. Who corrects is the owner's account; attribution puts what stands over its own tags.
    "tag_override": Access(
        writer={
            "SELECT": ("override_id", "event_key", "subject_key", "stage", "department", "topic", "withdrawn_at")
        },
        auditor={
            "SELECT": (
                "override_id", "event_type", "stage", "department", "topic", "made_at", "withdrawn_at",
            )
        },
    ),
    # What is done about flags and cases names the person who did it.
    "flag_action": Access(
        auditor={"SELECT": ("event_key", "action", "made_at")}, web={"SELECT": (), "INSERT": ()}
    ),
    # The board's page tells why targets were missed and what was done; who did it, it does not.
    "alert_case": Access(
        auditor={
            "SELECT": (
                "case_id", "alert", "metric", "stage", "department", "unit", "window_length", "started_at", "opened_at",
                "acknowledged_at", "closed_at", "root_cause", "action",
            )
        },
        web={
            "SELECT": (),
            "UPDATE": ("acknowledged_at", "acknowledged_by", "closed_at", "closed_by", "root_cause", "action"),
        },
        receiver={"SELECT": ("case_id", "fingerprint", "closed_at"), "INSERT": ()},
    ),
    "case_alert": Access(
        auditor=_READ, web=_READ, receiver={"SELECT": (), "INSERT": (), "UPDATE": ("ended_at",)}
    ),
    "settle_position": Access(writer=_KEEP, auditor=_READ),
    "settle_again": Access(writer={"SELECT": (), "INSERT": (), "DELETE": ()}, auditor=_READ),
    "settle_event": Access(writer={"SELECT": (), "INSERT": ()}),
    # Deleted are days that customers' events moved away from.
    "customer_day": Access(writer={**_KEEP, "DELETE": ()}),
    # The pages read it for the months they show, since views read all of it; what they show of it is protected.
    "measure": Access(writer={**_KEEP, "DELETE": ()}, auditor=_READ, web=_READ),
    # Shared as `active_tagging` is; what was folded is corrected in `measure_month` too.
    "measure_grain": Access(writer={"SELECT": (), "UPDATE": ("only",)}, auditor=_READ),
    "measure_month": Access(writer={**_KEEP, "DELETE": ()}, auditor=_READ, web=_READ),
    "dead_letter": Access(
        writer={"INSERT": ()},
        auditor={
            "SELECT": (
                "ledger_id", "kafka_offset", "event_type", "step", "error_class", "message", "raw_bytes", "dead_at",
                "run_epoch",
            )
        },
    ),
    "measure_retired": Access(auditor=_READ),
    "retired_row": Access(auditor=_READ),
    "erasure_marker": Access(writer=_READ, auditor={"SELECT": ("marker_id", "erased_at")}),
    "retired_subject": Access(writer=_READ, auditor={"SELECT": ("subject_table", "reason", "retired_at")}),
    "replay_attempt": Access(auditor=_READ),
    "audit_trail": Access(auditor=_READ, web={"SELECT": (), "INSERT": ()}),
    "department": _PLACE,
    "journey_stage": _PLACE,
    "metric": _PLACE,
    "target": _DIMENSION,
    "calendar_date": _DIMENSION,
    "measure_bin": _DIMENSION,
    "privacy": _DIMENSION,
    "metric_edge": _DIMENSION,
    "intervention": _DIMENSION,
    "intervention_effect": _DIMENSION,
    # Figures of groups that are large enough, like views.
    "value_segment": _DIMENSION,
    "value_issue": _DIMENSION,
    "data_dictionary": _DIMENSION,
}  # fmt: skip
"""Every table, Alembic's own included. No role but the owner's sees text or raw bytes of dead letters, and none but the
writer's customer keys; the writer inserts dead letters and can't read them back."""


def rights(relation: str, role: Role) -> Grants:
    """What a role may do with a table or view. Raises KeyError for a table that nobody has classified."""
    if relation == flag_event.name and role == "web":
        return _FLAGS
    if relation in ROW_LEVEL_VIEWS:
        return _NOTHING
    if relation in view_names():
        return _NOTHING if role in ("writer", "receiver") else _READ
    return TABLE_ACCESS[relation].of(role)


def role_names(prefix: str) -> dict[Role, str]:
    """The roles' names. Raises ConfigError for a prefix that PostgreSQL would cut or that begins with `pg_`."""
    names = {role: f"{prefix}_{role}" for role in ROLES}
    longest = max(len(name.encode()) for name in names.values())
    if not prefix or prefix.startswith("pg_") or longest > LONGEST_NAME:
        raise ConfigError(
            f"{prefix!r} can't be the prefix of PostgreSQL roles (1 to {LONGEST_NAME - len('_receiver')} bytes, not "
            "beginning with pg_); choose another: vocbeam migrate --role-prefix"
        )
    return names


def creation_statements(prefix: str) -> dict[str, str]:
    """Role name → SQL that creates it; for `vocbeam`, or for an administrator where the owner may not create roles."""
    purpose = {
        "writer": "loads events (vocbeam run)",
        "reader": "reads published views and dimensions",
        "auditor": "reads the books (vocbeam reconcile, status, report, exporter)",
        "web": "shows pages and writes what people do there (vocbeam web)",
        "receiver": "opens cases for what Alertmanager tells (vocbeam case receive)",
    }
    return {
        name: f"CREATE ROLE {_quoted(name)} NOLOGIN; "
        f"COMMENT ON ROLE {_quoted(name)} IS '{_mark(role)}: {purpose[role]}';"
        for role, name in role_names(prefix).items()
    }


def ensure_roles(connection: Connection, prefix: str) -> list[str]:
    """Creates the roles that are missing, where this account may; the names that are missing still.

    Raises ConfigError where a role of that name is somebody else's.
    """
    query = text(
        "SELECT rolname, shobj_description(oid, 'pg_authid') AS mark FROM pg_roles WHERE rolname = ANY(:names)"
    )
    names = role_names(prefix)
    present = {row.rolname: row.mark or "" for row in connection.execute(query, {"names": list(names.values())})}
    for role, name in names.items():
        if name in present and not present[name].startswith(_mark(role)):
            raise ConfigError(
                f"the PostgreSQL role {name} was not made for vocbeam (its comment would say so); choose another "
                "prefix: vocbeam migrate --role-prefix"
            )
    missing = [name for name in names.values() if name not in present]
    if (
        missing
        and not connection.execute(
            text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        ).scalar_one()
    ):
        return missing
    statements = creation_statements(prefix)
    _execute(connection, [statements[name] for name in missing])
    return []


def grant(connection: Connection, prefix: str) -> None:
    """Gives the roles that exist exactly what is declared here, on everything that exists; takes the rest away."""
    _execute(connection, _all_statements(connection, prefix, revoke_only=False))


def revoke(connection: Connection, prefix: str) -> None:
    """Takes everything in this database away from the roles of a former prefix."""
    _execute(connection, _all_statements(connection, prefix, revoke_only=True))


def _execute(connection: Connection, statements: Sequence[str]) -> None:
    """Sends all in one message; through SQLAlchemy it would be a prepared statement, which holds one command."""
    if statements:
        cursor = connection.connection.cursor()
        try:
            cursor.execute("\n".join(statements))
        finally:
            cursor.close()


def _all_statements(connection: Connection, prefix: str, *, revoke_only: bool) -> list[str]:
    known = text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names)")
    names = role_names(prefix)
    existing = set(connection.execute(known, {"names": list(names.values())}).scalars())
    present = set(
        connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace")
        ).scalars()
    )
    schema, database = connection.execute(text("SELECT current_schema(), current_database()")).one()
    return [
        statement
        for role, name in names.items()
        if name in existing
        for statement in _statements(role, name, present, schema, database, revoke_only=revoke_only)
    ]


def _statements(
    role: Role, name: str, present: set[str], schema: str, database: str, *, revoke_only: bool
) -> Iterator[str]:
    grantee = _quoted(name)
    relations = [relation for relation in (*TABLE_ACCESS, *view_names()) if relation in present]
    sequences = {sequence: table for sequence, table in _sequences().items() if sequence in present}
    places = (f"SCHEMA {_quoted(schema)}", f"DATABASE {_quoted(database)}")
    for what in (*map(_quoted, relations), *(f"SEQUENCE {_quoted(s)}" for s in sequences), *places):
        yield f"REVOKE ALL ON {what} FROM {grantee};"
    if revoke_only:
        return
    yield f"GRANT USAGE ON {places[0]} TO {grantee};"
    # The writer stages its rows in temporary tables.
    yield f"GRANT CONNECT{', TEMPORARY' if role == 'writer' else ''} ON {places[1]} TO {grantee};"
    for relation in relations:
        for privilege, columns in rights(relation, role).items():
            on = f" ({', '.join(map(_quoted, columns))})" if columns else ""
            yield f"GRANT {privilege}{on} ON {_quoted(relation)} TO {grantee};"
    for sequence, table in sequences.items():
        if "INSERT" in rights(table, role):
            yield f"GRANT USAGE ON SEQUENCE {_quoted(sequence)} TO {grantee};"


def _sequences() -> dict[str, str]:
    """Sequence behind a column that PostgreSQL numbers by itself → its table."""
    return {
        f"{table.name}_{column.name}_seq": table.name
        for table in metadata.sorted_tables
        if (column := table.autoincrement_column) is not None and isinstance(column.type, BigInteger)
    }


def _mark(role: Role) -> str:
    return f"vocbeam {role}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
