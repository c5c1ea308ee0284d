"""The metric tree with evidence."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "metric_edge",
        sa.Column(
            "driver",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Metric that is thought to act.",
        ),
        sa.Column(
            "outcome",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Metric that it acts on: a parent of it in the governance file.",
        ),
        sa.Column(
            "grade",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Grade of evidence: association, before_after or experiment.",
        ),
        sa.Column(
            "verdict",
            sa.Text(),
            nullable=False,
            comment="proven, not proven or not enough data; proven holds for all edges of the grade together.",
        ),
        sa.Column(
            "method",
            sa.Text(),
            nullable=True,
            comment="How it was estimated: customers, groups, series or intervention; NULL if not.",
        ),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=True,
            comment="Why there is no estimate, or what it is held back for; NULL if nothing.",
        ),
        sa.Column(
            "driver_step",
            sa.Text(),
            nullable=False,
            comment="What one step of the driver is: percentage point, point or %.",
        ),
        sa.Column(
            "outcome_step", sa.Text(), nullable=False, comment="Unit of the effect: percentage point, point or %."
        ),
        sa.Column(
            "lag_days",
            sa.Integer(),
            nullable=True,
            comment="Customers: longest time from driver to outcome; groups, series: the lag.",
        ),
        sa.Column(
            "effect",
            sa.Double(),
            nullable=True,
            comment="Change of the outcome for one step more of the driver; NULL if not estimated.",
        ),
        sa.Column("interval_low", sa.Double(), nullable=True, comment="Lower end of its 95 % interval."),
        sa.Column("interval_high", sa.Double(), nullable=True, comment="Upper end of its 95 % interval."),
        sa.Column(
            "smallest_effect",
            sa.Double(),
            nullable=True,
            comment="Effect that the data would have shown in four of five cases.",
        ),
        sa.Column("p_value", sa.Double(), nullable=True, comment="Probability of such an effect by chance alone."),
        sa.Column(
            "p_adjusted",
            sa.Double(),
            nullable=True,
            comment="The same for all edges of the grade together (Benjamini and Hochberg).",
        ),
        sa.Column(
            "n", sa.BigInteger(), nullable=True, comment="Outcomes, or cells of group and period, that it rests on."
        ),
        sa.Column("clusters", sa.Integer(), nullable=True, comment="Customers or groups: what counts as independent."),
        sa.Column(
            "weight",
            sa.Double(),
            nullable=True,
            comment="Relative weight: share of the outcome's variance that goes with the driver.",
        ),
        sa.Column(
            "weight_low",
            sa.Double(),
            nullable=True,
            comment="Lower end of its 95 % interval; NULL for a weight below the floor.",
        ),
        sa.Column(
            "weight_high",
            sa.Double(),
            nullable=True,
            comment="Upper end of its 95 % interval; NULL for a weight below the floor.",
        ),
        sa.Column(
            "weight_floor",
            sa.Double(),
            nullable=True,
            comment="What the heaviest of the drivers weighs if scores are dealt at random.",
        ),
        sa.Column(
            "is_driver",
            sa.SmallInteger(),
            nullable=True,
            comment="1: even weight_low is above the floor; 0: not; NULL: not weighed.",
        ),
        sa.Column("first_date", sa.Date(), nullable=True, comment="First local date of the data."),
        sa.Column("last_date", sa.Date(), nullable=True, comment="Last local date of the data."),
        sa.Column("fitted_at", sa.BigInteger(), nullable=False, comment="When it was estimated."),
        sa.PrimaryKeyConstraint("driver", "outcome", "grade", name=op.f("pk_metric_edge")),
        comment="The metric tree with evidence: one row for each edge of the governance file and grade of evidence.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("metric_edge")
