"""Text models, and what they say of an event beside its tag."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "text_model",
        sa.Column(
            "model_version",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Time of its training (UTC) and first digits of its data's digest.",
        ),
        sa.Column(
            "artefact", sa.LargeBinary(), nullable=False, comment="The model as a skops archive: data only, no code."
        ),
        sa.Column("card", sa.Text(), nullable=False, comment="What it learned from and how good it is, JSON."),
        sa.Column(
            "taxonomy_version", sa.Integer(), nullable=False, comment="Governance version whose stages it learned."
        ),
        sa.Column("stored_at", sa.BigInteger(), nullable=False, comment="When it was stored."),
        sa.PrimaryKeyConstraint("model_version", name=op.f("pk_text_model")),
        comment="Trained text models; the published one is named in `active_tagging`.",
    )
    op.add_column(
        "event",
        sa.Column(
            "tag_words",
            sa.Text(),
            nullable=True,
            comment="Words that carried the tag, the strongest first, separated by spaces; NULL where no model gave it.",
        ),
    )
    op.add_column(
        "event",
        sa.Column(
            "sentiment",
            sa.Text(),
            nullable=True,
            comment="negative, neutral or positive, as the text model reads the text; NULL where it can't tell.",
        ),
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_column("event", "sentiment")
    op.drop_column("event", "tag_words")
    op.drop_table("text_model")
