"""Cases that alerts on targets open for departments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

KEY_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "alert_case",
        sa.Column(
            "case_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Number of the case.",
        ),
        sa.Column(
            "fingerprint",
            sa.Text(),
            nullable=False,
            comment="Alertmanager's fingerprint of the alert: the same labels, the same fingerprint.",
        ),
        sa.Column(
            "alert",
            sa.Text(),
            nullable=False,
            comment="Alert that opened it: TargetMissed or ControlChartSignal.",
        ),
        sa.Column("metric", sa.Text(), nullable=False, comment="Metric that it is about."),
        sa.Column("stage", sa.Text(), nullable=False, comment="Stage that it is about."),
        sa.Column("department", sa.Text(), nullable=False, comment="Department whose case it is."),
        sa.Column("unit", sa.Text(), nullable=False, comment="Unit of the metric; the currency for money."),
        sa.Column(
            "window_length",
            sa.Text(),
            nullable=False,
            comment="Length of the windows that the alert judges: hour, day or week.",
        ),
        sa.Column("summary", sa.Text(), nullable=False, comment="What the alert said."),
        sa.Column("started_at", sa.BigInteger(), nullable=False, comment="When the alert began to fire."),
        sa.Column("opened_at", sa.BigInteger(), nullable=False, comment="When the case was opened."),
        sa.Column("acknowledged_at", sa.BigInteger(), nullable=True, comment="When somebody took it on; NULL before."),
        sa.Column("acknowledged_by", sa.Text(), nullable=True, comment="Who did."),
        sa.Column("closed_at", sa.BigInteger(), nullable=True, comment="When it was closed; NULL before."),
        sa.Column("closed_by", sa.Text(), nullable=True, comment="Who closed it."),
        sa.Column(
            "root_cause",
            sa.Text(),
            nullable=True,
            comment="Why the target was missed, in their words; NULL while open.",
        ),
        sa.Column(
            "action",
            sa.Text(),
            nullable=True,
            comment="What was done about it, in their words; NULL while open.",
        ),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_alert_case")),
        comment="Cases that alerts on targets opened for departments.",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alert_case_fingerprint", "alert_case", ["fingerprint"])
    op.create_table(
        "case_alert",
        sa.Column("fingerprint", KEY_TEXT, nullable=False, comment="Alertmanager's fingerprint of the alert."),
        sa.Column("starts_at", sa.BigInteger(), autoincrement=False, nullable=False, comment="When it began to fire."),
        sa.Column("case_id", sa.BigInteger(), nullable=False, comment="Case it belongs to."),
        sa.Column("ended_at", sa.BigInteger(), nullable=True, comment="When it recovered; NULL while it fires."),
        sa.ForeignKeyConstraint(["case_id"], ["alert_case.case_id"], name=op.f("fk_case_alert_case_id")),
        sa.PrimaryKeyConstraint("fingerprint", "starts_at", name=op.f("pk_case_alert")),
        comment="Every firing of an alert that a case was opened for, or that fell into one that was open.",
    )
    op.create_index("ix_case_alert_case_id", "case_alert", ["case_id"])


def downgrade() -> None:
    """Takes the change back."""
    op.drop_index("ix_case_alert_case_id", table_name="case_alert")
    op.drop_table("case_alert")
    op.drop_index("ix_alert_case_fingerprint", table_name="alert_case")
    op.drop_table("alert_case")
