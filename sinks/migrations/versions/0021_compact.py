"""Grains of `measure`, and its sums by month over what was folded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_NOTHING_FOLDED = sa.text(
    "INSERT INTO measure_grain (\"only\", hours_before, days_before) VALUES (1, '0001-01-01', '0001-01-01')"
)


def _key(name: str, comment: str) -> sa.Column[str]:
    return sa.Column(
        name, sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False, comment=comment
    )


def _sum(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, comment=comment)


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "measure_grain",
        sa.Column(
            "only",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="Always 1: the table has one row.",
        ),
        sa.Column(
            "hours_before",
            sa.Date(),
            nullable=False,
            comment="Local dates before this one are kept by hour or coarser.",
        ),
        sa.Column("days_before", sa.Date(), nullable=False, comment="Local dates before this one are kept by day."),
        sa.CheckConstraint('"only" = 1', name=op.f("ck_measure_grain_one_row")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_measure_grain")),
        comment="How fine `measure` is kept: every transaction that changes it shares this row, folding locks it.",
    )
    op.execute(_NOTHING_FOLDED)
    op.create_table(
        "measure_month",
        _key("metric", "Metric of the governance file."),
        sa.Column("month_start", sa.Date(), nullable=False, comment="First of the local month."),
        _key("basis", "as_reported (first tag) or restated (difference to it)."),
        _key("stage", "Customer-journey stage."),
        _key("department", "Owning department."),
        _key("unit", "Unit of `total`; the currency for money, which is never added across."),
        sa.Column(
            "bin",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Raw score; 0 or 1 for rates; bin of `measure_bin` for durations and amounts; 1 to 4 for the funnel.",
        ),
        _sum("n", "Contributions."),
        _sum("weight", "Sum of weights, in 1/10,000."),
        _sum("weight_sq", "Sum of squared weights, in 1/10^8."),
        _sum("total", "Unweighted sum in `unit`; minor units for money."),
        sa.PrimaryKeyConstraint(
            "metric",
            "month_start",
            "basis",
            "stage",
            "department",
            "unit",
            "bin",
            name=op.f("pk_measure_month"),
        ),
        comment="Sums of `measure` by month over those of its cells that were folded to hour or day; topics and "
        "segments added up.",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Takes the change back. What was folded stays so: its figures are right, but an older reconcile can't compare it."""
    op.drop_table("measure_month")
    op.drop_table("measure_grain")
