"""What the processes that write have counted, for the exporter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "worker_metric",
        sa.Column(
            "process",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Random id of the process; 'ended:' and a command for the sum of those that are gone.",
        ),
        sa.Column("command", sa.Text(), nullable=False, comment="Command it belongs to: run or backfill."),
        sa.Column("run_epoch", sa.BigInteger(), nullable=False, comment="Run that it belongs to."),
        sa.Column("started_at", sa.BigInteger(), nullable=False, comment="When it began to count."),
        sa.Column("flushed_at", sa.BigInteger(), nullable=False, comment="When it last wrote this row: its heartbeat."),
        sa.Column(
            "ended_at", sa.BigInteger(), nullable=True, comment="When it ended; NULL while it runs or if killed."
        ),
        sa.Column("counts", sa.Text(), nullable=False, comment="Name → sum since its start, JSON."),
        sa.PrimaryKeyConstraint("process", name=op.f("pk_worker_metric")),
        comment="One row a process that writes: heartbeat and counts, written every few seconds; read by the exporter.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("worker_metric")
