"""`event` by partitions on PostgreSQL: flags by themselves, everything else by month. SQLite stays as it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_COMMENT = "One row an event: tagged, redacted, customer pseudonymised."

_NEXT_MONTH = sa.text(
    "SELECT (extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') * 1000000)::bigint"
)

_MOVE = sa.text(
    "WITH moved AS (DELETE FROM event_early WHERE event_type = 'flag' OR event_time >= :end RETURNING *) "
    "INSERT INTO event SELECT * FROM moved"
)

_OTHERS_WITH_RIGHTS = sa.text(
    "SELECT DISTINCT quote_ident(rolname) FROM pg_roles WHERE oid IN ("
    "SELECT (aclexplode(relacl)).grantee FROM pg_class WHERE oid = to_regclass('event_early') "
    "UNION SELECT (aclexplode(attacl)).grantee FROM pg_attribute WHERE attrelid = to_regclass('event_early')"
    ") AND rolname <> current_user"
)


def upgrade() -> None:
    """Applies the change: the present table becomes the partition of all events before the next month.

    It is locked meanwhile. It is read twice, to find flags and events of later months, which are moved, and to check
    what is left; no other row is written.
    """
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    op.execute("SET LOCAL statement_timeout = 0")
    end = connection.execute(_NEXT_MONTH).scalar_one()
    op.execute("ALTER TABLE event RENAME TO event_early")
    op.execute("ALTER TABLE event_early RENAME CONSTRAINT pk_event TO pk_event_early")
    for role in connection.execute(_OTHERS_WITH_RIGHTS).scalars().all():
        op.execute(f"REVOKE ALL ON event_early FROM {role}")
    op.execute("CREATE TABLE event (LIKE event_early INCLUDING COMMENTS) PARTITION BY LIST (event_type)")
    op.execute("CREATE TABLE event_month PARTITION OF event DEFAULT PARTITION BY RANGE (event_time)")
    op.execute("CREATE TABLE event_flag (LIKE event_early INCLUDING COMMENTS INCLUDING INDEXES)")
    op.execute("CREATE TABLE event_later (LIKE event_early INCLUDING COMMENTS INCLUDING INDEXES)")
    op.execute("ALTER TABLE event ATTACH PARTITION event_flag FOR VALUES IN ('flag')")
    op.execute("ALTER TABLE event_month ATTACH PARTITION event_later DEFAULT")
    op.execute(_MOVE.bindparams(end=end))
    op.execute(f"ALTER TABLE event_month ATTACH PARTITION event_early FOR VALUES FROM (MINVALUE) TO ({end})")
    for table, comment in (
        ("event", _COMMENT),
        ("event_flag", "Flags: a partition of `event`."),
        ("event_month", "Events, without flags, by month of `event_time`: a partition of `event`."),
        ("event_early", "Events, without flags, before the first month that has a partition."),
        ("event_later", "Events, without flags, of no month that has a partition."),
    ):
        op.execute(f"COMMENT ON TABLE {table} IS '{comment}'")


def downgrade() -> None:
    """Takes the change back: what is not in the partition of early events is copied into it."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    op.execute("SET LOCAL statement_timeout = 0")
    op.execute("ALTER TABLE event_month DETACH PARTITION event_early")
    # Only what is left is found through `event` now.
    op.execute("INSERT INTO event_early SELECT * FROM event")
    op.execute("DROP TABLE event")
    op.execute("ALTER TABLE event_early RENAME TO event")
    op.execute("ALTER TABLE event RENAME CONSTRAINT pk_event_early TO pk_event")
    op.execute(f"COMMENT ON TABLE event IS '{_COMMENT}'")
