"""Room in PostgreSQL's pages of the tables whose rows are added to, so that a new version of a row fits beside the old.

Such an update changes no index and writes half as much log (a heap-only tuple:
https://www.postgresql.org/docs/current/storage-hot.html).
"""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

ADDED_TO = ("measure", "customer_day")


def upgrade() -> None:
    """Applies the change: to pages that are filled from now on."""
    if op.get_context().dialect.name == "postgresql":
        for table in ADDED_TO:
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")


def downgrade() -> None:
    """Takes the change back."""
    if op.get_context().dialect.name == "postgresql":
        for table in ADDED_TO:
            op.execute(f"ALTER TABLE {table} RESET (fillfactor)")
