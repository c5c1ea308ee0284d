"""Roles: the settings also tell their prefix and what was last applied."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Says in the comments what the table now holds; SQLite keeps no comments."""
    if op.get_bind().dialect.name == "postgresql":
        op.create_table_comment(
            "warehouse_setting",
            "What stays the same for the life of this warehouse (time zone of all dates, fingerprint of the "
            "pseudonymisation key), the prefix of its PostgreSQL roles, and the digest of what was last applied.",
        )
        op.alter_column("warehouse_setting", "value", comment="Its value.")
