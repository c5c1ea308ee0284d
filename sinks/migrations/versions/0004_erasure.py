"""Erasure markers and retired subjects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "erasure_marker",
        sa.Column(
            "marker_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Grows; markers are only ever added.",
        ),
        sa.Column("customer_key", sa.Text(), nullable=False, comment="Pseudonym of the erased customer."),
        sa.Column(
            "erased_at",
            sa.BigInteger(),
            nullable=False,
            comment="Events of this customer up to this time are dropped by every writer.",
        ),
        sa.PrimaryKeyConstraint("marker_id", name=op.f("pk_erasure_marker")),
        comment="Who was erased, and when: keeps what was erased from coming back.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "retired_subject",
        sa.Column("subject_key", sa.LargeBinary(length=16), nullable=False, comment="Key that its row had."),
        sa.Column("subject_table", sa.Text(), nullable=False, comment="ticket, survey_answer or survey_response."),
        sa.Column("reason", sa.Text(), nullable=False, comment="erased or expired."),
        sa.Column(
            "retired_at",
            sa.BigInteger(),
            nullable=False,
            comment="When its row was removed; if it expired, forgotten after the deduplication horizon.",
        ),
        sa.PrimaryKeyConstraint("subject_key", name=op.f("pk_retired_subject")),
        comment="Tickets, answers and responses whose rows are gone: later events of theirs don't change the aggregates.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("retired_subject")
    op.drop_table("erasure_marker")
