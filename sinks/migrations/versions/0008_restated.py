"""Retagging: tags at first ingestion beside present ones, what sources named themselves, and people's corrections."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

EVENT_COLUMNS = {
    "hint_stage": "Stage that the source named itself; NULL if none.",
    "hint_department": "Department that the source named itself; NULL if none.",
    "reported_stage": "Stage at first ingestion; NULL while the present tag is that one.",
    "reported_department": "Department at first ingestion; NULL like `reported_stage`.",
    "reported_topic": "Topic at first ingestion; NULL like `reported_stage`.",
    "restated": "`contributions` under the present tag, JSON; NULL while equal to them.",
}
SUBJECT_COLUMNS = {
    "retagged": "Present tags where they are not those in `versions`, JSON: event id, or '' for all of them, to stage, "
    "department, topic and method; NULL if none.",
    "restated": "`contributions` under the present tags, JSON; NULL while equal to them.",
}
SUBJECTS = ("ticket", "survey_answer", "survey_response")
SUBJECT_COMMENTS = {
    "versions": (
        "What later events are folded into, JSON.",
        "What later events are folded into, with tags at first ingestion, JSON.",
    ),
    "contributions": ("What this row added to `measure`, JSON.", "What this row added to `measure` as reported, JSON."),
}
STEP_OFFSETS = 200_000
"""Offsets whose events one statement goes through: some seconds."""

METHOD_COMMENTS = {
    "event": (
        "hint, rule, model, touchpoint or unassigned.",
        "override, hint, rule, model, touchpoint or unassigned.",
    ),
    "ticket": (
        "Method of the tag: hint, rule, model, touchpoint or unassigned.",
        "Method of the tag: override, hint, rule, model, touchpoint or unassigned.",
    ),
}


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "tag_override",
        sa.Column(
            "override_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Grows: of corrections of one event the latest wins.",
        ),
        sa.Column(
            "event_key",
            sa.LargeBinary(length=16),
            nullable=True,
            comment="Key of the event that is corrected; NULL where it is a ticket.",
        ),
        sa.Column(
            "subject_key",
            sa.LargeBinary(length=16),
            nullable=True,
            comment="Key of the ticket that is corrected; NULL where it is an event.",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="System that the event or ticket comes from."),
        sa.Column("event_type", sa.Text(), nullable=False, comment="survey, ticket, telemetry, flag or outcome."),
        sa.Column(
            "event_id",
            sa.Text(),
            nullable=True,
            comment="The source's id of the event; NULL where a ticket is corrected.",
        ),
        sa.Column("ticket_id", sa.Text(), nullable=True, comment="The source's ticket number, where one is known."),
        sa.Column("stage", sa.Text(), nullable=False, comment="Customer-journey stage, or 'unassigned'."),
        sa.Column("department", sa.Text(), nullable=False, comment="Owning department, or 'unassigned'."),
        sa.Column("topic", sa.Text(), nullable=False, comment="What it is about within the stage; '' where unknown."),
        sa.Column("reviewer", sa.Text(), nullable=False, comment="Who made the correction."),
        sa.Column("note", sa.Text(), nullable=True, comment="Why, in the reviewer's words."),
        sa.Column("made_at", sa.BigInteger(), nullable=False, comment="When it was made."),
        sa.Column(
            "withdrawn_at", sa.BigInteger(), nullable=True, comment="When it was withdrawn; NULL while it stands."
        ),
        sa.CheckConstraint("(event_key IS NULL) <> (subject_key IS NULL)", name=op.f("ck_tag_override_one_thing")),
        sa.PrimaryKeyConstraint("override_id", name=op.f("pk_tag_override")),
        comment="Tags that people corrected: they win over every other method.",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tag_override_event_key", "tag_override", ["event_key"])
    op.create_index("ix_tag_override_subject_key", "tag_override", ["subject_key"])
    for name, comment in EVENT_COLUMNS.items():
        op.add_column("event", sa.Column(name, sa.Text(), nullable=True, comment=comment))
    for table in SUBJECTS:
        for name, comment in SUBJECT_COLUMNS.items():
            op.add_column(table, sa.Column(name, sa.Text(), nullable=True, comment=comment))
    _comment(1)
    _recover_hints()


def downgrade() -> None:
    """Takes the change back."""
    _comment(0)
    for table in SUBJECTS:
        for name in reversed(SUBJECT_COLUMNS):
            op.drop_column(table, name)
    for name in reversed(EVENT_COLUMNS):
        op.drop_column("event", name)
    op.drop_table("tag_override")


def _comment(which: int) -> None:
    """Sets comments that change; SQLite keeps none."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, comments in METHOD_COMMENTS.items():
        op.alter_column(table, "tag_method", comment=comments[which])
    for table in SUBJECTS:
        for name, both in SUBJECT_COMMENTS.items():
            op.alter_column(table, name, comment=both[which])


def _recover_hints() -> None:
    """What sources named where that gave the tag; a department that they named beside a rule or the model is lost.

    In steps: a statement has a limit of time.
    """
    event, ledger, stage = (
        sa.table(name, *map(sa.column, columns))
        for name, columns in (
            ("event", ("ledger_id", "kafka_offset", "stage", "department", "tag_method", *EVENT_COLUMNS)),
            ("ingest_ledger", ("ledger_id", "first_offset", "next_offset")),
            ("journey_stage", ("stage", "owner")),
        )
    )
    owned = sa.exists().where(stage.c.stage == event.c.stage, stage.c.owner == event.c.department)
    connection = op.get_bind()
    for ledger_id, first, end in connection.execute(sa.select(*ledger.c)).all():
        for start in range(first, end, STEP_OFFSETS):
            connection.execute(
                sa.update(event)
                .where(
                    event.c.ledger_id == ledger_id,
                    event.c.kafka_offset >= start,
                    event.c.kafka_offset < start + STEP_OFFSETS,
                    event.c.tag_method == "hint",
                )
                .values(
                    hint_stage=sa.case((event.c.stage != "unassigned", event.c.stage)),
                    hint_department=sa.case((~owned, event.c.department)),
                )
            )
