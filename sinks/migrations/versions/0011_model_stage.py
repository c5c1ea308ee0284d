"""How often each stage that a text model gives is right."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "model_stage",
        sa.Column(
            "model_version",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Text model.",
        ),
        sa.Column(
            "stage",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Stage that it can give.",
        ),
        sa.Column(
            "given",
            sa.BigInteger(),
            nullable=False,
            comment="Texts of the cross-validation that it was sure enough to give this stage.",
        ),
        sa.Column("right_given", sa.BigInteger(), nullable=False, comment="Of these, right."),
        sa.Column(
            "precision_low",
            sa.Double(),
            nullable=False,
            comment="Lower end of the 95 % interval (Wilson) of their share.",
        ),
        sa.PrimaryKeyConstraint("model_version", "stage", name=op.f("pk_model_stage")),
        comment="How often a stage that a text model gives is right, measured on texts it had not seen.",
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("model_stage")
