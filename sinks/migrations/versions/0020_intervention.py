"""What was done for customers, and what it changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "intervention",
        sa.Column(
            "intervention_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Number of the intervention.",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="What was done, in a few words."),
        sa.Column("stage", sa.Text(), nullable=False, comment="Stage where it was done."),
        sa.Column(
            "metric", sa.Text(), nullable=True, comment="Metric that it is meant to move; NULL if none was named."
        ),
        sa.Column(
            "compared_by",
            sa.Text(),
            nullable=False,
            comment="What groups are compared: stage, department, or the name of a segment.",
        ),
        sa.Column("treated", sa.Text(), nullable=False, comment="The groups where it was done, JSON array."),
        sa.Column("start_date", sa.Date(), nullable=False, comment="First local date on which it was in force."),
        sa.Column("marked_at", sa.BigInteger(), nullable=False, comment="When it was entered."),
        sa.PrimaryKeyConstraint("intervention_id", name=op.f("pk_intervention")),
        comment="What was done for customers, where and from when.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "intervention_effect",
        sa.Column(
            "intervention_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
            comment="Intervention.",
        ),
        sa.Column(
            "metric",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Metric that was looked at.",
        ),
        sa.Column(
            "grade", sa.Text(), nullable=True, comment="experiment (with groups to compare) or before_after (without)."
        ),
        sa.Column(
            "outcome", sa.Text(), nullable=False, comment="helped, hurt, no change proven, doubtful or not enough data."
        ),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=True,
            comment="Why there is no estimate, or why it is doubtful; NULL if neither.",
        ),
        sa.Column("step", sa.Text(), nullable=False, comment="Unit of the effect: percentage point, point or %."),
        sa.Column(
            "effect", sa.Double(), nullable=True, comment="Change that the intervention made; NULL if not estimated."
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
            comment="The same for all metrics of the intervention (Benjamini and Hochberg).",
        ),
        sa.Column(
            "deals_p",
            sa.Double(),
            nullable=True,
            comment="Probability of such an effect if the treated groups had been chosen at random.",
        ),
        sa.Column("treated_groups", sa.Integer(), nullable=True, comment="Treated groups."),
        sa.Column("untreated_groups", sa.Integer(), nullable=True, comment="Groups they are compared with."),
        sa.Column("periods_before", sa.Integer(), nullable=True, comment="Weeks before the date."),
        sa.Column("periods_after", sa.Integer(), nullable=True, comment="Weeks from the date on."),
        sa.Column(
            "trend",
            sa.Double(),
            nullable=True,
            comment="How much faster treated groups rose a week before the date; should be 0.",
        ),
        sa.Column("trend_low", sa.Double(), nullable=True, comment="Lower end of its 95 % interval."),
        sa.Column("trend_high", sa.Double(), nullable=True, comment="Upper end of its 95 % interval."),
        sa.Column(
            "placebo", sa.Double(), nullable=True, comment="Effect of a date halfway before the real one; should be 0."
        ),
        sa.Column("placebo_low", sa.Double(), nullable=True, comment="Lower end of its 95 % interval."),
        sa.Column("placebo_high", sa.Double(), nullable=True, comment="Upper end of its 95 % interval."),
        sa.Column("estimated_at", sa.BigInteger(), nullable=False, comment="When it was estimated."),
        sa.ForeignKeyConstraint(
            ["intervention_id"], ["intervention.intervention_id"], name=op.f("fk_intervention_effect_intervention_id")
        ),
        sa.PrimaryKeyConstraint("intervention_id", "metric", name=op.f("pk_intervention_effect")),
        comment="What interventions changed, with the checks that the comparison stands on; the last estimate of each.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("intervention_effect")
    op.drop_table("intervention")
