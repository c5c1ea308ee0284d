"""Issues by revenue beside issues by leaving."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

KEY = ["landmark", "horizon_days", "basis", "stage", "department", "topic", "metric"]
BY = "payout_by"
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BY_COMMENT = "leaving: customers it makes leave; revenue: what those it met bring less. The same money, seen twice."

COMMENTS = {
    "effect": (
        "Adjusted difference in the risk of leaving within the horizon, of the affected.",
        "Of the affected, adjusted, within the horizon: risk of leaving added, or revenue lost each (minor units).",
    ),
    "customer_value": (
        "Mean revenue over the horizon of one who stays; NULL if unknown.",
        "Mean revenue over the horizon of one who stays; NULL if unknown, and by revenue.",
    ),
    "payout": (
        "affected x shrunk_effect x customer_value. Never to be added up over issues.",
        "affected x shrunk_effect (x customer_value by leaving). Never to be added up, over issues or ways.",
    ),
    "rank": (
        "Place by the lower end of the payout, from 1; NULL without enough data.",
        "Place by the lower end of the payout among those of the same payout_by, from 1; NULL without enough data.",
    ),
}
TABLE_COMMENTS = (
    "What trouble costs: customers it made leave, times what they would have brought.",
    "What trouble costs: customers it made leave, times what they would have brought; or revenue lost.",
)
_TYPES = {"rank": sa.Integer()}


def upgrade() -> None:
    """Applies the change."""
    column = sa.Column(BY, TEXT, nullable=False, server_default="leaving", comment=BY_COMMENT)
    with op.batch_alter_table("value_issue", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.add_column(column)
        batch_op.drop_constraint("pk_value_issue", type_="primary")
        batch_op.create_primary_key("pk_value_issue", [*KEY[:3], BY, *KEY[3:]])
    with op.batch_alter_table("value_issue", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.alter_column(BY, existing_type=TEXT, existing_nullable=False, server_default=None)
    _comment(new=True)


def downgrade() -> None:
    """Takes it back, and what was priced by revenue with it."""
    op.execute(sa.text("DELETE FROM value_issue WHERE payout_by <> 'leaving'"))
    _comment(new=False)
    with op.batch_alter_table("value_issue", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.drop_constraint("pk_value_issue", type_="primary")
        batch_op.drop_column(BY)
        batch_op.create_primary_key("pk_value_issue", KEY)


def _comment(*, new: bool) -> None:
    """SQLite keeps no comments."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for name, texts in COMMENTS.items():
        op.alter_column("value_issue", name, existing_type=_TYPES.get(name, sa.Double()), comment=texts[new])
    op.create_table_comment("value_issue", TABLE_COMMENTS[new], existing_comment=TABLE_COMMENTS[not new])
