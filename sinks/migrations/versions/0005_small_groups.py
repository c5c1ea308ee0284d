"""Small groups: the threshold k, and metrics that are free of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "privacy",
        sa.Column(
            "only",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="Always 1: the table has one row.",
        ),
        sa.Column(
            "k",
            sa.Integer(),
            nullable=False,
            comment="Fewest answers behind a figure that views show; 1 hides nothing.",
        ),
        sa.CheckConstraint('"only" = 1', name=op.f("ck_privacy_one_row")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_privacy")),
        comment="What the governance file says of privacy and views must know. Without its row, views show nothing.",
    )
    with op.batch_alter_table("metric", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column(
                "small_groups",
                sa.Text(),
                server_default="hidden",
                nullable=False,
                comment="hidden: figures below k answers stay hidden; shown: nobody's answers.",
            )
        )


def downgrade() -> None:
    """Takes it back."""
    with op.batch_alter_table("metric", schema=None) as batch_op:
        batch_op.drop_column("small_groups")
    op.drop_table("privacy")
