"""Event keys of SQLite by spans of loading. PostgreSQL's stay as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change: on SQLite all keys become one span, which the next transaction that is written closes if it
    is large. The table is written anew in its order, some 1 µs a key.
    """
    op.create_table(
        "key_span",
        sa.Column(
            "span",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Its number, counted up; the last is open.",
        ),
        sa.Column(
            "keys", sa.BigInteger(), nullable=False, comment="Keys that came into it, those that expired since too."
        ),
        sa.Column(
            "bits",
            sa.LargeBinary(),
            nullable=True,
            comment="Bloom filter of its keys (`sinks/key_spans.py`); NULL while it is open.",
        ),
        sa.PrimaryKeyConstraint("span", name=op.f("pk_key_span")),
        comment="On SQLite, parts of `event_key` by time of loading, so that a key is looked for in few; else empty.",
    )
    if op.get_context().dialect.name != "sqlite":
        op.alter_column(
            "event_key",
            "event_key",
            existing_type=sa.LargeBinary(16),
            existing_nullable=False,
            comment="Keyed digest of event type, source and event id; on SQLite after the 4 bytes of its `key_span`.",
        )
        return
    _rebuild("CAST(x'00000000' || event_key AS BLOB)", "event_key", _has_span())
    op.execute("INSERT INTO key_span (span, keys) SELECT 0, count(*) FROM event_key")


def downgrade() -> None:
    """Takes the change back."""
    if op.get_context().dialect.name == "sqlite":
        _rebuild("substr(event_key, 5)", "substr(event_key, 5)")
    op.drop_table("key_span")


def _has_span() -> sa.CheckConstraint:
    return sa.CheckConstraint("length(event_key) = 20 OR json('no span')", name=op.f("ck_event_key_has_span"))


def _rebuild(key: str, order: str, *constraints: sa.CheckConstraint) -> None:
    """Writes the table anew, with other keys."""
    op.create_table(
        "event_key_anew",
        sa.Column("event_key", sa.LargeBinary(16), nullable=False),
        sa.Column("content_digest", sa.LargeBinary(16), nullable=False),
        sa.Column("loaded_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_key", name=op.f("pk_event_key")),
        *constraints,
        sqlite_with_rowid=False,
    )
    op.execute(
        f"INSERT INTO event_key_anew SELECT {key}, content_digest, loaded_at "  # noqa: S608
        f"FROM event_key ORDER BY {order}"
    )
    op.drop_table("event_key")
    op.rename_table("event_key_anew", "event_key")
