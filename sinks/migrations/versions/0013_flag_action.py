"""What departments do about flags, and within which time they should."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.add_column(
        "department",
        sa.Column(
            "acknowledge_flags_within_s",
            sa.BigInteger(),
            nullable=True,
            comment="Seconds within which it is to acknowledge a red flag; NULL without a limit.",
        ),
    )
    op.create_table(
        "flag_action",
        sa.Column("event_key", sa.LargeBinary(16), nullable=False, comment="Key of the flag's event."),
        sa.Column(
            "action",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="acknowledged or resolved; each happens once, and resolving acknowledges.",
        ),
        sa.Column("made_by", sa.Text(), nullable=False, comment="Who did it."),
        sa.Column("made_at", sa.BigInteger(), nullable=False, comment="When."),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=True,
            comment="What came of the flag, in their words; NULL where it was acknowledged.",
        ),
        sa.PrimaryKeyConstraint("event_key", "action", name=op.f("pk_flag_action")),
        comment="What departments did about flags. Rows are added, never changed.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("flag_action")
    op.drop_column("department", "acknowledge_flags_within_s")
