"""Satisfied against dissatisfied customers, by what they answered before a landmark."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "value_segment",
        sa.Column(
            "landmark", sa.Date(), nullable=False, comment="Local date: known is what came before, counted what after."
        ),
        sa.Column(
            "horizon_days",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Length of the follow-up, in days.",
        ),
        sa.Column(
            "basis",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Which tags: restated (present) or as_reported.",
        ),
        sa.Column(
            "metric",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Survey metric whose answers before the landmark make the classes.",
        ),
        sa.Column(
            "customer_class",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="promoter, passive or detractor (NPS), satisfied or dissatisfied (others), or no answer.",
        ),
        sa.Column(
            "quantity",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="retention, churn, revenue, repeat_contacts or cost_to_serve.",
        ),
        sa.Column(
            "unit",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="share, contacts, or the currency (minor units), which is never added across.",
        ),
        sa.Column(
            "day",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Days since the landmark: retention has a row a day, the others one for the whole follow-up.",
        ),
        sa.Column("n", sa.BigInteger(), nullable=True, comment="Customers of the class; NULL where suppressed."),
        sa.Column(
            "value",
            sa.Double(),
            nullable=True,
            comment="Share who stay or left, or mean per customer; NULL where suppressed.",
        ),
        sa.Column(
            "interval_low",
            sa.Double(),
            nullable=True,
            comment="Lower end of the 95 % interval; NULL if the data give none.",
        ),
        sa.Column(
            "interval_high",
            sa.Double(),
            nullable=True,
            comment="Upper end of the 95 % interval; NULL if the data give none.",
        ),
        sa.Column(
            "p_value",
            sa.Double(),
            nullable=True,
            comment="Rows of churn: log-rank test that the classes that answered stay equally long.",
        ),
        sa.Column(
            "suppressed",
            sa.SmallInteger(),
            nullable=False,
            comment="1: too few customers, all figures are NULL; 0: shown.",
        ),
        sa.Column(
            "taxonomy_version", sa.Integer(), nullable=False, comment="Governance version under which it was fitted."
        ),
        sa.Column(
            "model_version", sa.Text(), nullable=True, comment="Text model published then; NULL while there was none."
        ),
        sa.Column("vocbeam_version", sa.Text(), nullable=False, comment="Release of vocbeam."),
        sa.Column("fitted_at", sa.BigInteger(), nullable=False, comment="When it was fitted."),
        sa.PrimaryKeyConstraint(
            "landmark",
            "horizon_days",
            "basis",
            "metric",
            "customer_class",
            "quantity",
            "unit",
            "day",
            name=op.f("pk_value_segment"),
        ),
        comment="Satisfied against dissatisfied customers, classed by answers before a landmark and followed after it.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("value_segment")
