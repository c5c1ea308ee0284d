"""Warehouse."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the change."""
    op.create_table(
        "calendar_date",
        sa.Column("date", sa.Date(), nullable=False, comment="Local date in the governance file's time zone."),
        sa.Column("week_start", sa.Date(), nullable=False, comment="Monday of its ISO week."),
        sa.Column("iso_year", sa.Integer(), nullable=False, comment="ISO year of the week."),
        sa.Column("iso_week", sa.Integer(), nullable=False, comment="ISO week."),
        sa.Column("month_start", sa.Date(), nullable=False, comment="First of its month."),
        sa.Column("quarter_start", sa.Date(), nullable=False, comment="First of its quarter."),
        sa.Column("year", sa.Integer(), nullable=False, comment="Year."),
        sa.Column("weekday", sa.Integer(), nullable=False, comment="1 = Monday to 7 = Sunday."),
        sa.Column("starts_at", sa.BigInteger(), nullable=False, comment="When the date begins."),
        sa.Column("ends_at", sa.BigInteger(), nullable=False, comment="When it ends."),
        sa.PrimaryKeyConstraint("date", name=op.f("pk_calendar_date")),
        comment="Calendar of the governance file's time zone.",
    )
    with op.batch_alter_table("calendar_date", schema=None) as batch_op:
        batch_op.create_index("ix_calendar_date_starts_at", ["starts_at"], unique=False)

    op.create_table(
        "customer_day",
        sa.Column("date", sa.Date(), nullable=False, comment="Local date."),
        sa.Column(
            "stage",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Stage of the events.",
        ),
        sa.Column(
            "department",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Department of the events.",
        ),
        sa.Column(
            "customer_key",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Pseudonym of the customer.",
        ),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="Events of this customer on that day."),
        sa.PrimaryKeyConstraint("date", "stage", "department", "customer_key", name=op.f("pk_customer_day")),
        comment="Who was seen when and where: count distinct customers from here, never add them up.",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "data_dictionary",
        sa.Column(
            "object",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Table or view.",
        ),
        sa.Column(
            "column",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Column; '' for the object itself.",
        ),
        sa.Column("comment", sa.Text(), nullable=False, comment="What it is."),
        sa.PrimaryKeyConstraint("object", "column", name=op.f("pk_data_dictionary")),
        comment="Comments of all tables, views and columns, also where the database keeps none.",
    )
    op.create_table(
        "dead_letter",
        sa.Column("ledger_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="Topic-partition."),
        sa.Column("kafka_offset", sa.BigInteger(), autoincrement=False, nullable=False, comment="Offset."),
        sa.Column("event_type", sa.Text(), nullable=False, comment="Event type of the topic."),
        sa.Column(
            "step", sa.Text(), nullable=False, comment="Step that refused it: decode, validate, deduplicate or write."
        ),
        sa.Column("error_class", sa.Text(), nullable=False, comment="Cause, as a short name."),
        sa.Column("message", sa.Text(), nullable=False, comment="Cause, in words; quotes no content."),
        sa.Column("raw", sa.LargeBinary(), nullable=False, comment="Original bytes, encrypted."),
        sa.Column("raw_bytes", sa.BigInteger(), nullable=False, comment="Size of the original."),
        sa.Column("dead_at", sa.BigInteger(), nullable=False, comment="When it was put here."),
        sa.Column("run_epoch", sa.BigInteger(), nullable=False, comment="Run that put it here."),
        sa.PrimaryKeyConstraint("ledger_id", "kafka_offset", name=op.f("pk_dead_letter")),
        comment="Records that could not be loaded, with their cause. None is ever dropped.",
    )
    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.create_index("ix_dead_letter_cause", ["step", "error_class"], unique=False)

    op.create_table(
        "department",
        sa.Column(
            "department",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Id in the governance file, or 'unassigned'.",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Name."),
        sa.Column("representative", sa.Text(), nullable=True, comment="Who answers for it in the programme."),
        sa.Column("alert_route", sa.Text(), nullable=True, comment="Where its alerts go."),
        sa.PrimaryKeyConstraint("department", name=op.f("pk_department")),
        comment="Departments of the governance file.",
    )
    op.create_table(
        "event",
        sa.Column(
            "ledger_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="Provenance: topic-partition."
        ),
        sa.Column("kafka_offset", sa.BigInteger(), autoincrement=False, nullable=False, comment="Provenance: offset."),
        sa.Column(
            "event_key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="Its key in `event_key`, where it is unique.",
        ),
        sa.Column("event_type", sa.Text(), nullable=False, comment="survey, ticket, telemetry, flag or outcome."),
        sa.Column("source", sa.Text(), nullable=False, comment="System the event comes from."),
        sa.Column("event_id", sa.Text(), nullable=False, comment="The source's id of the event."),
        sa.Column("event_time", sa.BigInteger(), nullable=False, comment="When it happened."),
        sa.Column(
            "customer_key", sa.Text(), nullable=True, comment="Pseudonym of the customer: keyed hash, 32 hex digits."
        ),
        sa.Column("stage", sa.Text(), nullable=False, comment="Customer-journey stage, or 'unassigned'."),
        sa.Column("department", sa.Text(), nullable=False, comment="Owning department, or 'unassigned'."),
        sa.Column("topic", sa.Text(), nullable=False, comment="What it is about within the stage; '' where unknown."),
        sa.Column("tag_method", sa.Text(), nullable=False, comment="hint, rule, model, touchpoint or unassigned."),
        sa.Column("tag_confidence", sa.Double(), nullable=True, comment="0 to 1; NULL where unassigned."),
        sa.Column("taxonomy_version", sa.Integer(), nullable=False, comment="Governance version of the tag."),
        sa.Column("model_version", sa.Text(), nullable=True, comment="Text model of the tag."),
        sa.Column(
            "segment_1",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 1: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_2",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 2: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_3",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 3: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column("name", sa.Text(), nullable=True, comment="Telemetry: name of the event."),
        sa.Column("session_id", sa.Text(), nullable=True, comment="Telemetry: session."),
        sa.Column("duration_ms", sa.Double(), nullable=True, comment="Telemetry: duration in milliseconds."),
        sa.Column("error_code", sa.Text(), nullable=True, comment="Telemetry: error code."),
        sa.Column("value", sa.Double(), nullable=True, comment="Telemetry: measured value."),
        sa.Column("survey_id", sa.Text(), nullable=True, comment="Survey: questionnaire."),
        sa.Column("response_id", sa.Text(), nullable=True, comment="Survey: one person's response to it."),
        sa.Column(
            "survey_metric",
            sa.Text(),
            nullable=True,
            comment="Survey: which question type was answered (nps, csat, ces ...).",
        ),
        sa.Column("score", sa.Double(), nullable=True, comment="Survey: raw score on the metric's scale."),
        sa.Column("weight", sa.Double(), nullable=True, comment="Survey: sampling weight."),
        sa.Column("touchpoint", sa.Text(), nullable=True, comment="Survey: what the question was about."),
        sa.Column("sent_at", sa.BigInteger(), nullable=True, comment="Survey: when the invitation was sent."),
        sa.Column("ticket_id", sa.Text(), nullable=True, comment="Ticket: the source's ticket number."),
        sa.Column("sequence", sa.BigInteger(), nullable=True, comment="Ticket: the source's update number."),
        sa.Column("actor", sa.Text(), nullable=True, comment="Ticket: agent, bot or customer."),
        sa.Column("status", sa.Text(), nullable=True, comment="Survey or ticket: status."),
        sa.Column("queue", sa.Text(), nullable=True, comment="Ticket: queue or assignment group."),
        sa.Column("priority", sa.Text(), nullable=True, comment="Ticket: priority."),
        sa.Column("subject", sa.Text(), nullable=True, comment="Ticket: subject, redacted."),
        sa.Column("text", sa.Text(), nullable=True, comment="Comment, body or flag text, redacted."),
        sa.Column("flag_kind", sa.Text(), nullable=True, comment="Flag: red_flag, idea or praise."),
        sa.Column("severity", sa.Text(), nullable=True, comment="Flag: severity."),
        sa.Column("reporter_role", sa.Text(), nullable=True, comment="Flag: role of the reporter, never a name."),
        sa.Column("ref", sa.Text(), nullable=True, comment="Flag: what it refers to."),
        sa.Column("outcome_kind", sa.Text(), nullable=True, comment="Outcome: renewal, churn, purchase, refund ..."),
        sa.Column("amount", sa.BigInteger(), nullable=True, comment="Outcome: amount in minor units of the currency."),
        sa.Column("currency", sa.Text(), nullable=True, comment="Outcome: ISO 4217 code."),
        sa.Column(
            "contributions",
            sa.Text(),
            nullable=True,
            comment="What this row added to `measure`, JSON; NULL if nothing.",
        ),
        sa.Column("loaded_at", sa.BigInteger(), nullable=False, comment="Provenance: when it was written."),
        sa.PrimaryKeyConstraint("ledger_id", "kafka_offset", name=op.f("pk_event")),
        comment="One row an event: tagged, redacted, customer pseudonymised.",
    )
    op.create_table(
        "event_key",
        sa.Column(
            "event_key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="Keyed digest of event type, source and event id.",
        ),
        sa.Column(
            "content_digest",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="Keyed digest of the content first loaded.",
        ),
        sa.Column(
            "loaded_at",
            sa.BigInteger(),
            nullable=False,
            comment="When it was loaded; the deduplication horizon counts from here.",
        ),
        sa.PrimaryKeyConstraint("event_key", name=op.f("pk_event_key")),
        comment="Every event ever loaded, for durable deduplication.",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ingest_ledger",
        sa.Column(
            "ledger_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Surrogate key of the topic-partition.",
        ),
        sa.Column("cluster_id", sa.Text(), nullable=False, comment="Kafka cluster."),
        sa.Column("topic_id", sa.Text(), nullable=False, comment="Kafka's id of this incarnation of the topic."),
        sa.Column("topic", sa.Text(), nullable=False, comment="Kafka topic."),
        sa.Column("partition", sa.Integer(), nullable=False, comment="Partition number."),
        sa.Column("first_offset", sa.BigInteger(), nullable=False, comment="First offset that was ever accounted for."),
        sa.Column(
            "next_offset",
            sa.BigInteger(),
            nullable=False,
            comment="Offset at which reading goes on; all before it are accounted for.",
        ),
        sa.Column(
            "loaded", sa.BigInteger(), nullable=False, comment="Offsets whose event was new and is in the warehouse."
        ),
        sa.Column("duplicates", sa.BigInteger(), nullable=False, comment="Offsets whose event was there already."),
        sa.Column("dead_lettered", sa.BigInteger(), nullable=False, comment="Offsets that are in `dead_letter`."),
        sa.Column("dropped", sa.BigInteger(), nullable=False, comment="Offsets dropped by policy (null values)."),
        sa.Column(
            "lost", sa.BigInteger(), nullable=False, comment="Offsets that Kafka had deleted before they were read."
        ),
        sa.Column(
            "without_record",
            sa.BigInteger(),
            nullable=False,
            comment="Offsets without a record (transaction markers, aborted, compacted).",
        ),
        sa.Column(
            "run_epoch",
            sa.BigInteger(),
            nullable=False,
            comment="Epoch of the run that wrote last; a lower one is refused.",
        ),
        sa.Column("updated_at", sa.BigInteger(), nullable=False, comment="When the row was last advanced."),
        sa.PrimaryKeyConstraint("ledger_id", name=op.f("pk_ingest_ledger")),
        sa.UniqueConstraint("cluster_id", "topic_id", "topic", "partition", name=op.f("uq_ingest_ledger_cluster_id")),
        comment="The books: what happened to every offset of a topic-partition. The counters sum up to next_offset - first_offset and never go down.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "journey_stage",
        sa.Column(
            "stage",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Id in the governance file, or 'unassigned'.",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Name."),
        sa.Column("journey", sa.Text(), nullable=False, comment="Journey it belongs to; '' for 'unassigned'."),
        sa.Column("position", sa.Integer(), nullable=False, comment="Place in the journey, from 1."),
        sa.Column("owner", sa.Text(), nullable=True, comment="Department that owns it."),
        sa.Column("description", sa.Text(), nullable=True, comment="What happens there."),
        sa.PrimaryKeyConstraint("stage", name=op.f("pk_journey_stage")),
        comment="Stages of the customer journeys, each owned by one department.",
    )
    op.create_table(
        "measure",
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
        sa.Column("date", sa.Date(), nullable=False, comment="Local date of the bucket; key into `calendar_date`."),
        sa.Column(
            "hour_start", sa.BigInteger(), nullable=True, comment="Start of the local clock hour; NULL for grain day."
        ),
        *[
            sa.CheckConstraint(f"typeof({name}) = 'integer'", name=op.f(f"ck_measure_whole_{name}")).ddl_if(
                dialect="sqlite"
            )
            for name in ("weight", "weight_sq", "total")
        ],
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
            name=op.f("pk_measure"),
        ),
        comment="One additive histogram fact for every metric: any roll-up over time, stage or department is a sum.",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "measure_bin",
        sa.Column("bin", sa.Integer(), autoincrement=False, nullable=False, comment="Bin number."),
        sa.Column("lower", sa.BigInteger(), nullable=False, comment="Smallest integer in the bin."),
        sa.Column("upper", sa.BigInteger(), nullable=False, comment="Largest integer in the bin."),
        sa.Column("representative", sa.Double(), nullable=False, comment="Within 2 % of every value in the bin."),
        sa.PrimaryKeyConstraint("bin", name=op.f("pk_measure_bin")),
        comment="Logarithmic bins of durations and amounts.",
    )
    op.create_table(
        "metric",
        sa.Column(
            "metric",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Id in the governance file.",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Name."),
        sa.Column("level", sa.Text(), nullable=False, comment="operational, cx or financial."),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="nps, share, mean, rate, duration, amount, count or funnel."
        ),
        sa.Column("definition", sa.Text(), nullable=False, comment="What it means, in words."),
        sa.Column("unit", sa.Text(), nullable=False, comment="Unit of its targets; for money the company's currency."),
        sa.Column("direction", sa.Text(), nullable=False, comment="Which way is better: higher or lower."),
        sa.Column(
            "clock", sa.Text(), nullable=False, comment="Time by which it is booked: event_time, sent_at or opened_at."
        ),
        sa.Column("scale_min", sa.Integer(), nullable=True, comment="Lowest score."),
        sa.Column("scale_max", sa.Integer(), nullable=True, comment="Highest score."),
        sa.Column("satisfied_from", sa.Integer(), nullable=True, comment="Lowest score that counts as satisfied."),
        sa.Column("satisfied_to", sa.Integer(), nullable=True, comment="Highest score that counts as satisfied."),
        sa.Column("percentile", sa.Double(), nullable=True, comment="Percentile that is its value, for durations."),
        sa.Column("min_n", sa.Integer(), nullable=False, comment="Below this n its status is 'not enough data'."),
        sa.Column("parents", sa.Text(), nullable=True, comment="Metrics that it drives, comma separated."),
        sa.PrimaryKeyConstraint("metric", name=op.f("pk_metric")),
        comment="Metrics of the governance file.",
    )
    op.create_table(
        "run_epoch",
        sa.Column(
            "run_epoch",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="Fencing number; a higher one shuts a lower one out.",
        ),
        sa.Column("started_at", sa.BigInteger(), nullable=False, comment="When the run drew its number."),
        sa.Column(
            "ended_at", sa.BigInteger(), nullable=True, comment="When it ended; NULL while it runs or if it was killed."
        ),
        sa.Column("runner", sa.Text(), nullable=False, comment="Beam runner that executes it."),
        sa.Column("host", sa.Text(), nullable=False, comment="Host and process id that submitted it."),
        sa.Column("vocbeam_version", sa.Text(), nullable=False, comment="Release of vocbeam."),
        sa.Column("outcome", sa.Text(), nullable=True, comment="How it ended."),
        sa.PrimaryKeyConstraint("run_epoch", name=op.f("pk_run_epoch")),
        comment="Submissions of the pipeline.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "survey_answer",
        sa.Column(
            "subject_key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="Digest of what identifies it in its source.",
        ),
        sa.Column("versions", sa.Text(), nullable=False, comment="What later events are folded into, JSON."),
        sa.Column("contributions", sa.Text(), nullable=False, comment="What this row added to `measure`, JSON."),
        sa.Column("source", sa.Text(), nullable=False, comment="System of the survey."),
        sa.Column("survey_id", sa.Text(), nullable=False, comment="Questionnaire."),
        sa.Column("response_id", sa.Text(), nullable=False, comment="One person's response to it."),
        sa.Column("metric", sa.Text(), nullable=False, comment="Question type: nps, csat, ces ..."),
        sa.Column("touchpoint", sa.Text(), nullable=True, comment="What the question was about."),
        sa.Column("status", sa.Text(), nullable=False, comment="partial or complete, of the version that counts."),
        sa.Column("score", sa.Double(), nullable=False, comment="Raw score."),
        sa.Column("weight", sa.BigInteger(), nullable=False, comment="Sampling weight in 1/10,000."),
        sa.Column("stage", sa.Text(), nullable=False, comment="Customer-journey stage, or 'unassigned'."),
        sa.Column("department", sa.Text(), nullable=False, comment="Owning department, or 'unassigned'."),
        sa.Column("topic", sa.Text(), nullable=False, comment="What it is about within the stage; '' where unknown."),
        sa.Column(
            "segment_1",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 1: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_2",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 2: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_3",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 3: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column("customer_key", sa.Text(), nullable=True, comment="Pseudonym of the customer."),
        sa.Column("sent_at", sa.BigInteger(), nullable=True, comment="When the invitation was sent."),
        sa.Column("event_time", sa.BigInteger(), nullable=False, comment="When the version that counts was given."),
        sa.Column("event_id", sa.Text(), nullable=False, comment="Event of the version that counts."),
        sa.PrimaryKeyConstraint("subject_key", name=op.f("pk_survey_answer")),
        comment="One row an answer: the latest complete version, else the latest partial one.",
    )
    with op.batch_alter_table("survey_answer", schema=None) as batch_op:
        batch_op.create_index("ix_survey_answer_customer", ["customer_key", "event_time"], unique=False)

    op.create_table(
        "survey_response",
        sa.Column(
            "subject_key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="Digest of what identifies it in its source.",
        ),
        sa.Column("versions", sa.Text(), nullable=False, comment="What later events are folded into, JSON."),
        sa.Column("contributions", sa.Text(), nullable=False, comment="What this row added to `measure`, JSON."),
        sa.Column("source", sa.Text(), nullable=False, comment="System of the survey."),
        sa.Column("survey_id", sa.Text(), nullable=False, comment="Questionnaire."),
        sa.Column("response_id", sa.Text(), nullable=False, comment="One person's response to it."),
        sa.Column(
            "status", sa.Text(), nullable=False, comment="Highest status reached: sent, started, partial or complete."
        ),
        sa.Column("stage", sa.Text(), nullable=False, comment="Customer-journey stage, or 'unassigned'."),
        sa.Column("department", sa.Text(), nullable=False, comment="Owning department, or 'unassigned'."),
        sa.Column("topic", sa.Text(), nullable=False, comment="What it is about within the stage; '' where unknown."),
        sa.Column(
            "segment_1",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 1: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_2",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 2: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_3",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 3: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column("customer_key", sa.Text(), nullable=True, comment="Pseudonym of the customer."),
        sa.Column(
            "sent_at",
            sa.BigInteger(),
            nullable=False,
            comment="When it was sent; the earliest event where no event says so.",
        ),
        sa.Column("event_time", sa.BigInteger(), nullable=False, comment="Time of its greatest version."),
        sa.Column("event_id", sa.Text(), nullable=False, comment="Event of its greatest version."),
        sa.PrimaryKeyConstraint("subject_key", name=op.f("pk_survey_response")),
        comment="One row a response, answered or not: the response funnel.",
    )
    op.create_table(
        "target",
        sa.Column(
            "metric", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False, comment="Metric."
        ),
        sa.Column(
            "stage",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Stage; '*' for all of them together.",
        ),
        sa.Column(
            "department",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Department; '*' for all of them together.",
        ),
        sa.Column("valid_from", sa.Date(), nullable=False, comment="First local date on which it holds."),
        sa.Column(
            "valid_to", sa.Date(), nullable=True, comment="First local date on which it no longer holds; NULL if open."
        ),
        sa.Column("value", sa.Double(), nullable=False, comment="Target, in the unit of the metric's value."),
        sa.PrimaryKeyConstraint("metric", "stage", "department", "valid_from", name=op.f("pk_target")),
        comment="Dated targets, spelled out for each stage and department, for either alone and for the whole company from the most specific line of the governance file.",
    )
    op.create_table(
        "taxonomy_version",
        sa.Column(
            "taxonomy_version", sa.Integer(), autoincrement=False, nullable=False, comment="`version` of the file."
        ),
        sa.Column(
            "taxonomy_digest",
            sa.Text(),
            nullable=False,
            comment="SHA-256 of what tagging depends on: stages, owners, rules, segments.",
        ),
        sa.Column(
            "governance_digest",
            sa.Text(),
            nullable=False,
            comment="SHA-256 of the whole content last applied under this version.",
        ),
        sa.Column("governance_text", sa.Text(), nullable=False, comment="The governance file as it was applied."),
        sa.Column("applied_at", sa.BigInteger(), nullable=False, comment="When it was last applied."),
        sa.PrimaryKeyConstraint("taxonomy_version", name=op.f("pk_taxonomy_version")),
        comment="Each governance file that this warehouse has worked under.",
    )
    op.create_table(
        "ticket",
        sa.Column(
            "subject_key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="Digest of what identifies it in its source.",
        ),
        sa.Column("versions", sa.Text(), nullable=False, comment="What later events are folded into, JSON."),
        sa.Column("contributions", sa.Text(), nullable=False, comment="What this row added to `measure`, JSON."),
        sa.Column("ticket_id", sa.Text(), nullable=False, comment="The source's ticket number."),
        sa.Column("source", sa.Text(), nullable=False, comment="System the ticket lives in."),
        sa.Column("customer_key", sa.Text(), nullable=True, comment="Pseudonym of the customer."),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="opened, responded, reassigned, resolved, reopened or closed, as it now stands.",
        ),
        sa.Column(
            "is_open",
            sa.SmallInteger(),
            nullable=True,
            comment="1 while open, 0 when done; NULL before its opening is known.",
        ),
        sa.Column("stage", sa.Text(), nullable=False, comment="Customer-journey stage, or 'unassigned'."),
        sa.Column("department", sa.Text(), nullable=False, comment="Owning department, or 'unassigned'."),
        sa.Column("topic", sa.Text(), nullable=False, comment="What it is about within the stage; '' where unknown."),
        sa.Column(
            "tag_method",
            sa.Text(),
            nullable=True,
            comment="Method of the tag: hint, rule, model, touchpoint or unassigned.",
        ),
        sa.Column(
            "segment_1",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 1: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_2",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 2: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column(
            "segment_3",
            sa.Text(),
            nullable=False,
            comment="Value of the governance file's segment 3: 'other', 'unknown', or '' if undeclared.",
        ),
        sa.Column("priority", sa.Text(), nullable=True, comment="Last known priority."),
        sa.Column("queue", sa.Text(), nullable=True, comment="Last known queue."),
        sa.Column(
            "opened_at", sa.BigInteger(), nullable=True, comment="When it was opened; NULL before that event is known."
        ),
        sa.Column(
            "first_response_at",
            sa.BigInteger(),
            nullable=True,
            comment="When an agent first answered; bots don't count.",
        ),
        sa.Column(
            "first_response_us", sa.BigInteger(), nullable=True, comment="Opening to first response, microseconds."
        ),
        sa.Column(
            "first_response_business_us",
            sa.BigInteger(),
            nullable=True,
            comment="The same in business time of the department's calendar.",
        ),
        sa.Column("first_response_due_at", sa.BigInteger(), nullable=True, comment="When the first response was due."),
        sa.Column(
            "responded_in_sla",
            sa.SmallInteger(),
            nullable=True,
            comment="1 or 0 once responded; NULL before, or without service level.",
        ),
        sa.Column("first_resolved_at", sa.BigInteger(), nullable=True, comment="When it was first resolved."),
        sa.Column(
            "resolved_at",
            sa.BigInteger(),
            nullable=True,
            comment="When the resolution that stands was reached; NULL while open.",
        ),
        sa.Column(
            "resolution_us",
            sa.BigInteger(),
            nullable=True,
            comment="Opening to the resolution that stands, microseconds.",
        ),
        sa.Column("resolution_business_us", sa.BigInteger(), nullable=True, comment="The same in business time."),
        sa.Column("resolution_due_at", sa.BigInteger(), nullable=True, comment="When the resolution was due."),
        sa.Column(
            "resolved_in_sla", sa.SmallInteger(), nullable=True, comment="1 or 0 while a resolution stands; else NULL."
        ),
        sa.Column("reopen_count", sa.Integer(), nullable=False, comment="How often it was reopened."),
        sa.Column("reassign_count", sa.Integer(), nullable=False, comment="How often it was reassigned."),
        sa.Column("last_event_at", sa.BigInteger(), nullable=False, comment="Time of its latest event."),
        sa.Column("events", sa.Integer(), nullable=False, comment="Events it follows from."),
        sa.PrimaryKeyConstraint("subject_key", name=op.f("pk_ticket")),
        comment="Accumulating snapshot: one row a ticket, a function of the set of its events.",
    )
    with op.batch_alter_table("ticket", schema=None) as batch_op:
        batch_op.create_index("ix_ticket_opened_at", ["opened_at"], unique=False)

    op.create_table(
        "warehouse_setting",
        sa.Column(
            "name",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
            comment="Name of the setting.",
        ),
        sa.Column(
            "value",
            sa.Text(),
            nullable=False,
            comment="Its value: the time zone of all dates, the fingerprint of the pseudonymisation key.",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_warehouse_setting")),
        comment="What must stay the same for the life of this warehouse.",
    )
    op.create_table(
        "active_tagging",
        sa.Column(
            "only", sa.SmallInteger(), autoincrement=False, nullable=False, comment="Always 1: the table has one row."
        ),
        sa.Column(
            "taxonomy_version",
            sa.Integer(),
            nullable=False,
            comment="Taxonomy under which events must be tagged to be written.",
        ),
        sa.Column(
            "model_version",
            sa.Text(),
            nullable=True,
            comment="Text model under which events must be tagged; NULL while there is none.",
        ),
        sa.CheckConstraint('"only" = 1', name=op.f("ck_active_tagging_one_row")),
        sa.ForeignKeyConstraint(
            ["taxonomy_version"], ["taxonomy_version.taxonomy_version"], name=op.f("fk_active_tagging_taxonomy_version")
        ),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_active_tagging")),
        comment="The tagging version that every chunk transaction checks.",
    )


def downgrade() -> None:
    """Takes the change back."""
    op.drop_table("active_tagging")
    op.drop_table("warehouse_setting")
    with op.batch_alter_table("ticket", schema=None) as batch_op:
        batch_op.drop_index("ix_ticket_opened_at")

    op.drop_table("ticket")
    op.drop_table("taxonomy_version")
    op.drop_table("target")
    op.drop_table("survey_response")
    with op.batch_alter_table("survey_answer", schema=None) as batch_op:
        batch_op.drop_index("ix_survey_answer_customer")

    op.drop_table("survey_answer")
    op.drop_table("run_epoch")
    op.drop_table("metric")
    op.drop_table("measure_bin")
    op.drop_table("measure")
    op.drop_table("journey_stage")
    op.drop_table("ingest_ledger")
    op.drop_table("event_key")
    op.drop_table("event")
    op.drop_table("department")
    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.drop_index("ix_dead_letter_cause")

    op.drop_table("dead_letter")
    op.drop_table("data_dictionary")
    op.drop_table("customer_day")
    with op.batch_alter_table("calendar_date", schema=None) as batch_op:
        batch_op.drop_index("ix_calendar_date_starts_at")

    op.drop_table("calendar_date")
