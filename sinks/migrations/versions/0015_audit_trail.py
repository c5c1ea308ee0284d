"""Who did what on the web pages, in a table that can only be added to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

REFUSAL = "audit_trail is only ever added to"


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "audit_trail",
        sa.Column(
            "entry_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
            comment="Number.",
        ),
        sa.Column("at", sa.BigInteger(), nullable=False, comment="When."),
        sa.Column(
            "who",
            sa.Text(),
            nullable=False,
            comment="Account by the name it signed in with; 'nobody' where nobody was signed in.",
        ),
        sa.Column(
            "action",
            sa.Text(),
            nullable=False,
            comment="What was asked for: sign_in, flag_acknowledge, case_close and so on.",
        ),
        sa.Column(
            "object",
            sa.Text(),
            nullable=False,
            comment="What it was done to, such as a flag or a case; '' where there is none.",
        ),
        sa.Column("origin", sa.Text(), nullable=False, comment="Address that the request came from."),
        sa.Column("outcome", sa.Text(), nullable=False, comment="done, or refused where the account may not."),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_audit_trail")),
        comment="Who did what on the web pages. Only ever added to: the database refuses changes and deletions.",
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_trail_refuses_{change.lower()} BEFORE {change} ON audit_trail "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_trail_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_trail_refuses BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_trail "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_trail_refuse()"
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("audit_trail")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_trail_refuse()")
