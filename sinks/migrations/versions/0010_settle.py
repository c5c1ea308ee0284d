"""Attribution by touchpoint: how far it has come, and what is to be looked at again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

CONFIDENCE = ("0 to 1; NULL where unassigned.", "0 to 1; NULL where unassigned or placed by a touchpoint.")


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "settle_position",
        sa.Column("ledger_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="Topic-partition."),
        sa.Column(
            "settled_offset",
            sa.BigInteger(),
            nullable=False,
            comment="Attribution by touchpoint has looked at all events before this offset.",
        ),
        sa.Column("taxonomy_version", sa.Integer(), nullable=False, comment="Governance version under which it did."),
        sa.Column(
            "set_back", sa.Integer(), nullable=False, comment="How often the position was set back to the beginning."
        ),
        sa.PrimaryKeyConstraint("ledger_id", name=op.f("pk_settle_position")),
        comment="How far each topic-partition has been looked at for attribution by touchpoint.",
    )
    op.create_table(
        "settle_again",
        sa.Column(
            "settle_again_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Number of the request.",
        ),
        sa.Column("ledger_id", sa.BigInteger(), nullable=False, comment="Topic-partition of the event."),
        sa.Column("kafka_offset", sa.BigInteger(), nullable=False, comment="Offset of the event."),
        sa.PrimaryKeyConstraint("settle_again_id", name=op.f("pk_settle_again")),
        comment="Events behind `settle_position` that came or changed their tag since, and are to be looked at again.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "settle_event",
        sa.Column(
            "customer_key",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Pseudonym of the customer.",
        ),
        sa.Column("event_time", sa.BigInteger(), autoincrement=False, nullable=False, comment="When it happened."),
        sa.Column(
            "ledger_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="Topic-partition of the event."
        ),
        sa.Column("kafka_offset", sa.BigInteger(), autoincrement=False, nullable=False, comment="Offset of the event."),
        sa.PrimaryKeyConstraint(
            "customer_key", "event_time", "ledger_id", "kafka_offset", name=op.f("pk_settle_event")
        ),
        comment="Events without a stage of their own and touchpoints by customer, as far as settled: an index of "
        "`event` that the main path does not pay for.",
        sqlite_with_rowid=False,
    )
    _comment(1)


def downgrade() -> None:
    """Takes the change back."""
    _comment(0)
    op.drop_table("settle_event")
    op.drop_table("settle_again")
    op.drop_table("settle_position")


def _comment(which: int) -> None:
    """Sets comments that change; SQLite keeps none."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("event", "tag_confidence", comment=CONFIDENCE[which])
