"""An index of PostgreSQL from which the views by month read `measure_month` in order, without its rows."""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "ix_measure_month_sums",
            "measure_month",
            ["metric", "month_start", "basis", "stage", "department", "unit", "bin"],
            postgresql_include=["n", "weight", "weight_sq", "total"],
        )


def downgrade() -> None:
    """Takes the change back."""
    if op.get_context().dialect.name == "postgresql":
        op.drop_index("ix_measure_month_sums", "measure_month")
