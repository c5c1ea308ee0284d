"""What the tag of an event was before a person corrected it: of which tags which share is corrected."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COLUMNS = {
    "overridden_method": "Method of the tag that a person corrected; NULL while no correction stands.",
    "overridden_stage": "Stage of that tag; NULL like `overridden_method`.",
    "overridden_department": "Department of that tag; NULL like `overridden_method`.",
}


def upgrade() -> None:
    """Applies the change."""
    for name, comment in COLUMNS.items():
        op.add_column("event", sa.Column(name, sa.Text(), nullable=True, comment=comment))


def downgrade() -> None:
    """Takes the change back."""
    for name in reversed(COLUMNS):
        op.drop_column("event", name)
