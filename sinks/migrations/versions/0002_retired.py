"""Books of retired rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "measure_retired",
        sa.Column(
            "metric",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Metric of the governance file.",
        ),
        sa.Column(
            "grain",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Length of the bucket: bucket (5 minutes), hour or day.",
        ),
        sa.Column(
            "bucket_start",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Start of the bucket on the metric's clock.",
        ),
        sa.Column(
            "basis",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="as_reported (first tag) or restated (difference to it).",
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
            "segment_1",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Value of segment 1.",
        ),
        sa.Column(
            "segment_2",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Value of segment 2.",
        ),
        sa.Column(
            "segment_3",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Value of segment 3.",
        ),
        sa.Column(
            "unit",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Unit of `total`; the currency for money, which is never added across.",
        ),
        sa.Column(
            "bin",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Raw score; 0 or 1 for rates; bin of `measure_bin` for durations and amounts; 1 to 4 for the funnel.",
        ),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="Contributions."),
        sa.Column("weight", sa.BigInteger(), nullable=False, comment="Sum of weights, in 1/10,000."),
        sa.Column("weight_sq", sa.BigInteger(), nullable=False, comment="Sum of squared weights, in 1/10^8."),
        sa.Column("total", sa.BigInteger(), nullable=False, comment="Unweighted sum in `unit`; minor units for money."),
        sa.PrimaryKeyConstraint(
            "metric",
            "grain",
            "bucket_start",
            "basis",
            "stage",
            "department",
            "topic",
            "segment_1",
            "segment_2",
            "segment_3",
            "unit",
            "bin",
            name=op.f("pk_measure_retired"),
        ),
        comment="The part of `measure` whose rows were retired (erased, expired) and which stays in the aggregates.",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "retired_row",
        sa.Column(
            "ledger_id",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Topic-partition of the rows; 0 for event keys, which belong to none.",
        ),
        sa.Column(
            "kind",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="event, dead_letter or event_key.",
        ),
        sa.Column(
            "reason",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="erased, expired, healed or healed_duplicate (a letter whose event was there).",
        ),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="Rows retired."),
        sa.PrimaryKeyConstraint("ledger_id", "kind", "reason", name=op.f("pk_retired_row")),
        comment="Rows that were written and are gone on purpose, counted in the transaction that retired them.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("retired_row")
    op.drop_table("measure_retired")
