"""Issues by payout."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "value_issue",
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
            "stage",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Customer-journey stage.",
        ),
        sa.Column(
            "department",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Owning department.",
        ),
        sa.Column(
            "topic",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="What it is about.",
        ),
        sa.Column(
            "metric",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Operational metric that shows whom the trouble met.",
        ),
        sa.Column("currency", sa.Text(), nullable=False, comment="Currency of the payout, in minor units."),
        sa.Column(
            "rank",
            sa.Integer(),
            nullable=True,
            comment="Place by the lower end of the payout, from 1; NULL without enough data.",
        ),
        sa.Column("status", sa.Text(), nullable=False, comment="proven, not proven or not enough data."),
        sa.Column(
            "grade", sa.Text(), nullable=False, comment="Grade of evidence: association (adjusted, not randomised)."
        ),
        sa.Column(
            "customers",
            sa.BigInteger(),
            nullable=True,
            comment="Customers who were served there; NULL without enough data.",
        ),
        sa.Column(
            "affected", sa.BigInteger(), nullable=True, comment="Of these, met trouble; NULL without enough data."
        ),
        sa.Column(
            "effect",
            sa.Double(),
            nullable=True,
            comment="Adjusted difference in the risk of leaving within the horizon, of the affected.",
        ),
        sa.Column("interval_low", sa.Double(), nullable=True, comment="Lower end of its 95 % interval."),
        sa.Column("interval_high", sa.Double(), nullable=True, comment="Upper end of its 95 % interval."),
        sa.Column("p_value", sa.Double(), nullable=True, comment="Two-sided p-value of no effect."),
        sa.Column(
            "q_value",
            sa.Double(),
            nullable=True,
            comment="The same adjusted for the number of issues (Benjamini-Hochberg).",
        ),
        sa.Column(
            "shrunk_effect",
            sa.Double(),
            nullable=True,
            comment="The effect pulled towards the mean of all issues (empirical Bayes).",
        ),
        sa.Column("shrunk_low", sa.Double(), nullable=True, comment="Lower end of its 95 % interval."),
        sa.Column("shrunk_high", sa.Double(), nullable=True, comment="Upper end of its 95 % interval."),
        sa.Column(
            "customer_value",
            sa.Double(),
            nullable=True,
            comment="Mean revenue over the horizon of one who stays; NULL if unknown.",
        ),
        sa.Column(
            "payout",
            sa.Double(),
            nullable=True,
            comment="affected x shrunk_effect x customer_value. Never to be added up over issues.",
        ),
        sa.Column("payout_low", sa.Double(), nullable=True, comment="Lower end of its 95 % interval."),
        sa.Column("payout_high", sa.Double(), nullable=True, comment="Upper end of its 95 % interval."),
        sa.Column("adjusted_for", sa.Text(), nullable=False, comment="Covariates, comma separated; '' if none."),
        sa.Column("method", sa.Text(), nullable=False, comment="How effect and interval were made."),
        sa.Column(
            "taxonomy_version", sa.Integer(), nullable=False, comment="Governance version under which it was fitted."
        ),
        sa.Column(
            "model_version", sa.Text(), nullable=True, comment="Text model published then; NULL while there was none."
        ),
        sa.Column("vocbeam_version", sa.Text(), nullable=False, comment="Release of vocbeam."),
        sa.Column("fitted_at", sa.BigInteger(), nullable=False, comment="When it was fitted."),
        sa.PrimaryKeyConstraint(
            "landmark", "horizon_days", "basis", "stage", "department", "topic", "metric", name=op.f("pk_value_issue")
        ),
        comment="What trouble costs: customers it made leave, times what they would have brought.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("value_issue")
