"""History of replays."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "replay_attempt",
        sa.Column(
            "ledger_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="Topic-partition of the letter."
        ),
        sa.Column(
            "kafka_offset", sa.BigInteger(), autoincrement=False, nullable=False, comment="Offset of the letter."
        ),
        sa.Column(
            "run_epoch",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Run that tried: a replay, or the run that refused it first.",
        ),
        sa.Column("attempted_at", sa.BigInteger(), nullable=False, comment="When."),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=False,
            comment="refused (by the run), then healed, healed_duplicate, erased or failed (by a replay).",
        ),
        sa.Column("step", sa.Text(), nullable=True, comment="Step that refused it; NULL where none did."),
        sa.Column("error_class", sa.Text(), nullable=True, comment="Cause, as a short name; NULL where none."),
        sa.Column("message", sa.Text(), nullable=True, comment="Cause, in words; quotes no content. NULL where none."),
        sa.PrimaryKeyConstraint("ledger_id", "kafka_offset", "run_epoch", name=op.f("pk_replay_attempt")),
        comment="What became of each dead letter that was replayed, from its first refusal on; it outlives the letter.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("replay_attempt")
