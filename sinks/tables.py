"""The warehouse's tables. Every table and column carries its comment; times are BIGINT UTC microseconds.

Facts: `measure` (one additive histogram for every metric), `event`, `ticket`, `survey_answer`, `survey_response`,
`customer_day`. What people did: `tag_override`, `flag_action`, `alert_case`, `case_alert`. Dimensions: `department`,
`journey_stage`, `metric`, `target`, `calendar_date`, `measure_bin`. Results of `vocbeam value`: `value_segment`,
`value_issue`. Evidence: `metric_edge`, `intervention`, `intervention_effect`. What was folded: `measure_grain`,
`measure_month`.
Books: `ingest_ledger`, `event_key`, `key_span`, `dead_letter`, `replay_attempt`, `retired_row`, `measure_retired`,
`run_epoch`.
State: `warehouse_setting`, `taxonomy_version`, `active_tagging`, `privacy`, `text_model`, `model_stage`,
`erasure_marker`, `retired_subject`, `settle_position`, `settle_again`, `settle_event`, `worker_metric`,
`audit_trail`.
Views for reading are in `sinks/views.py`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

Serial = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""


KeyText = Text().with_variant(Text(collation="C"), "postgresql")
"""Text of primary keys: compared byte by byte, which PostgreSQL does without asking the rules of a language."""


def _text(name: str, comment: str, **options: Any) -> Column[str]:
    kind = KeyText if options.get("primary_key") else Text()
    return Column(name, kind, comment=comment, nullable=options.pop("nullable", False), **options)


def _big(name: str, comment: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, comment=comment, nullable=options.pop("nullable", False), **options)


def _tag_columns() -> list[Column[Any]]:
    return [
        _text("stage", "Customer-journey stage, or 'unassigned'."),
        _text("department", "Owning department, or 'unassigned'."),
        _text("topic", "What it is about within the stage; '' where unknown."),
    ]


def _segment_columns() -> list[Column[Any]]:
    return [
        _text(f"segment_{i}", f"Value of the governance file's segment {i}: 'other', 'unknown', or '' if undeclared.")
        for i in (1, 2, 3)
    ]


warehouse_setting = Table(
    "warehouse_setting",
    metadata,
    _text("name", "Name of the setting.", primary_key=True),
    _text("value", "Its value."),
    comment="What stays the same for the life of this warehouse (time zone of all dates, fingerprint of the "
    "pseudonymisation key), the prefix of its PostgreSQL roles, and the digest of what was last applied.",
)

TIMEZONE, KEY_FINGERPRINT = "timezone", "pseudonym_key_fingerprint"
"""Names of the settings."""

taxonomy_version = Table(
    "taxonomy_version",
    metadata,
    Column("taxonomy_version", Integer, primary_key=True, autoincrement=False, comment="`version` of the file."),
    _text("taxonomy_digest", "SHA-256 of what tagging depends on: stages, owners, rules, segments."),
    _text("governance_digest", "SHA-256 of the whole content last applied under this version."),
    _text("governance_text", "The governance file as it was applied."),
    _big("applied_at", "When it was last applied."),
    comment="Each governance file that this warehouse has worked under.",
)

active_tagging = Table(
    "active_tagging",
    metadata,
    Column("only", SmallInteger, primary_key=True, autoincrement=False, comment="Always 1: the table has one row."),
    Column(
        "taxonomy_version",
        Integer,
        ForeignKey("taxonomy_version.taxonomy_version"),
        nullable=False,
        comment="Taxonomy under which events must be tagged to be written.",
    ),
    _text("model_version", "Text model under which events must be tagged; NULL while there is none.", nullable=True),
    CheckConstraint('"only" = 1', name="one_row"),
    comment="The tagging version that every chunk transaction checks.",
)

text_model = Table(
    "text_model",
    metadata,
    _text("model_version", "Time of its training (UTC) and first digits of its data's digest.", primary_key=True),
    Column("artefact", LargeBinary, nullable=False, comment="The model as a skops archive: data only, no code."),
    _text("card", "What it learned from and how good it is, JSON."),
    Column("taxonomy_version", Integer, nullable=False, comment="Governance version whose stages it learned."),
    _big("stored_at", "When it was stored."),
    comment="Trained text models; the published one is named in `active_tagging`.",
)

model_stage = Table(
    "model_stage",
    metadata,
    _text("model_version", "Text model.", primary_key=True),
    _text("stage", "Stage that it can give.", primary_key=True),
    _big("given", "Texts of the cross-validation that it was sure enough to give this stage."),
    _big("right_given", "Of these, right."),
    Column("precision_low", Double, nullable=False, comment="Lower end of the 95 % interval (Wilson) of their share."),
    comment="How often a stage that a text model gives is right, measured on texts it had not seen.",
)

run_epoch = Table(
    "run_epoch",
    metadata,
    Column("run_epoch", Serial, primary_key=True, comment="Fencing number; a higher one shuts a lower one out."),
    _big("started_at", "When the run drew its number."),
    _big("ended_at", "When it ended; NULL while it runs or if it was killed.", nullable=True),
    _text("runner", "Beam runner that executes it."),
    _text("host", "Host and process id that submitted it."),
    _text("vocbeam_version", "Release of vocbeam."),
    _text("outcome", "How it ended.", nullable=True),
    sqlite_autoincrement=True,
    comment="Submissions of the pipeline.",
)

worker_metric = Table(
    "worker_metric",
    metadata,
    _text(
        "process",
        "Random id of the process; 'ended:' and a command for the sum of those that are gone.",
        primary_key=True,
    ),
    _text("command", "Command it belongs to: run or backfill."),
    _big("run_epoch", "Run that it belongs to."),
    _big("started_at", "When it began to count."),
    _big("flushed_at", "When it last wrote this row: its heartbeat."),
    _big("ended_at", "When it ended; NULL while it runs or if killed.", nullable=True),
    _text("counts", "Name → sum since its start, JSON."),
    sqlite_with_rowid=False,
    comment="One row a process that writes: heartbeat and counts, written every few seconds; read by the exporter.",
)

ingest_ledger = Table(
    "ingest_ledger",
    metadata,
    Column("ledger_id", Serial, primary_key=True, comment="Surrogate key of the topic-partition."),
    _text("cluster_id", "Kafka cluster."),
    _text("topic_id", "Kafka's id of this incarnation of the topic."),
    _text("topic", "Kafka topic."),
    Column("partition", Integer, nullable=False, comment="Partition number."),
    _big("first_offset", "First offset that was ever accounted for."),
    _big("next_offset", "Offset at which reading goes on; all before it are accounted for."),
    _big("loaded", "Offsets whose event was new and is in the warehouse."),
    _big("duplicates", "Offsets whose event was there already."),
    _big("dead_lettered", "Offsets that are in `dead_letter`."),
    _big("dropped", "Offsets dropped by policy (null values)."),
    _big("lost", "Offsets that Kafka had deleted before they were read."),
    _big("without_record", "Offsets without a record (transaction markers, aborted, compacted)."),
    _big("run_epoch", "Epoch of the run that wrote last; a lower one is refused."),
    _big("updated_at", "When the row was last advanced."),
    UniqueConstraint("cluster_id", "topic_id", "topic", "partition"),
    sqlite_autoincrement=True,
    comment="The books: what happened to every offset of a topic-partition. The counters sum up to "
    "next_offset - first_offset and never go down.",
)

event_key = Table(
    "event_key",
    metadata,
    Column(
        "event_key",
        LargeBinary(16),
        primary_key=True,
        comment="Keyed digest of event type, source and event id; on SQLite after the 4 bytes of its `key_span`.",
    ),
    Column("content_digest", LargeBinary(16), nullable=False, comment="Keyed digest of the content first loaded."),
    _big("loaded_at", "When it was loaded; the deduplication horizon counts from here."),
    # A release that knows no spans is refused by an error that ends it; as a mere violation it would be taken for bad
    # data, and its events for dead letters.
    CheckConstraint("length(event_key) = 20 OR json('no span')", name="has_span").ddl_if(dialect="sqlite"),
    sqlite_with_rowid=False,
    comment="Every event ever loaded, for durable deduplication.",
)

key_span = Table(
    "key_span",
    metadata,
    Column("span", Integer, primary_key=True, autoincrement=False, comment="Its number, counted up; the last is open."),
    _big("keys", "Keys that came into it, those that expired since too."),
    Column("bits", LargeBinary, comment="Bloom filter of its keys (`sinks/key_spans.py`); NULL while it is open."),
    comment="On SQLite, parts of `event_key` by time of loading, so that a key is looked for in few; else empty.",
)

event = Table(
    "event",
    metadata,
    _big("ledger_id", "Provenance: topic-partition.", primary_key=True, autoincrement=False),
    _big("kafka_offset", "Provenance: offset.", primary_key=True, autoincrement=False),
    Column("event_key", LargeBinary(16), nullable=False, comment="Its key in `event_key`, where it is unique."),
    _text("event_type", "survey, ticket, telemetry, flag or outcome."),
    _text("source", "System the event comes from."),
    _text("event_id", "The source's id of the event."),
    _big("event_time", "When it happened."),
    _text("customer_key", "Pseudonym of the customer: keyed hash, 32 hex digits.", nullable=True),
    *_tag_columns(),
    _text("tag_method", "override, hint, rule, model, touchpoint or unassigned."),
    Column("tag_confidence", Double, comment="0 to 1; NULL where unassigned or placed by a touchpoint."),
    Column("taxonomy_version", Integer, nullable=False, comment="Governance version of the tag."),
    _text("model_version", "Text model of the tag.", nullable=True),
    _text(
        "tag_words",
        "Words that carried the tag, the strongest first, separated by spaces; NULL where no model gave it.",
        nullable=True,
    ),
    _text(
        "sentiment",
        "negative, neutral or positive, as the text model reads the text; NULL where it can't tell.",
        nullable=True,
    ),
    *_segment_columns(),
    _text("name", "Telemetry: name of the event.", nullable=True),
    _text("session_id", "Telemetry: session.", nullable=True),
    Column("duration_ms", Double, comment="Telemetry: duration in milliseconds."),
    _text("error_code", "Telemetry: error code.", nullable=True),
    Column("value", Double, comment="Telemetry: measured value."),
    _text("survey_id", "Survey: questionnaire.", nullable=True),
    _text("response_id", "Survey: one person's response to it.", nullable=True),
    _text("survey_metric", "Survey: which question type was answered (nps, csat, ces ...).", nullable=True),
    Column("score", Double, comment="Survey: raw score on the metric's scale."),
    Column("weight", Double, comment="Survey: sampling weight."),
    _text("touchpoint", "Survey: what the question was about.", nullable=True),
    _big("sent_at", "Survey: when the invitation was sent.", nullable=True),
    _text("ticket_id", "Ticket: the source's ticket number.", nullable=True),
    _big("sequence", "Ticket: the source's update number.", nullable=True),
    _text("actor", "Ticket: agent, bot or customer.", nullable=True),
    _text("status", "Survey or ticket: status.", nullable=True),
    _text("queue", "Ticket: queue or assignment group.", nullable=True),
    _text("priority", "Ticket: priority.", nullable=True),
    _text("subject", "Ticket: subject, redacted.", nullable=True),
    _text("text", "Comment, body or flag text, redacted.", nullable=True),
    _text("flag_kind", "Flag: red_flag, idea or praise.", nullable=True),
    _text("severity", "Flag: severity.", nullable=True),
    _text("reporter_role", "Flag: role of the reporter, never a name.", nullable=True),
    _text("ref", "Flag: what it refers to.", nullable=True),
    _text("outcome_kind", "Outcome: renewal, churn, purchase, refund ...", nullable=True),
    _big("amount", "Outcome: amount in minor units of the currency.", nullable=True),
    _text("currency", "Outcome: ISO 4217 code.", nullable=True),
    _text("contributions", "What this row added to `measure`, JSON; NULL if nothing.", nullable=True),
    _text("hint_stage", "Stage that the source named itself; NULL if none.", nullable=True),
    _text("hint_department", "Department that the source named itself; NULL if none.", nullable=True),
    _text("reported_stage", "Stage at first ingestion; NULL while the present tag is that one.", nullable=True),
    _text("reported_department", "Department at first ingestion; NULL like `reported_stage`.", nullable=True),
    _text("reported_topic", "Topic at first ingestion; NULL like `reported_stage`.", nullable=True),
    _text("restated", "`contributions` under the present tag, JSON; NULL while equal to them.", nullable=True),
    _text(
        "overridden_method",
        "Method of the tag that a person corrected; NULL while no correction stands.",
        nullable=True,
    ),
    _text("overridden_stage", "Stage of that tag; NULL like `overridden_method`.", nullable=True),
    _text("overridden_department", "Department of that tag; NULL like `overridden_method`.", nullable=True),
    _big("loaded_at", "Provenance: when it was written."),
    comment="One row an event: tagged, redacted, customer pseudonymised.",
)

EVENT_WORDS = ("tag_words", "session_id", "subject", "text")
"""Columns of `event` that attribution by touchpoint has no use for: who only settles neither reads nor writes them."""

EVENT_TAG = (
    "stage", "department", "topic", "tag_method", "tag_confidence", "tag_words", "sentiment", "taxonomy_version",
    "model_version", "reported_stage", "reported_department", "reported_topic", "overridden_method", "overridden_stage",
    "overridden_department", "restated",
)  # fmt: skip
"""Columns of `event` that change when it is tagged again."""

_SUBJECT_KEY = "Digest of what identifies it in its source."


def _subject_columns() -> list[Column[Any]]:
    return [
        Column("subject_key", LargeBinary(16), primary_key=True, comment=_SUBJECT_KEY),
        _text("versions", "What later events are folded into, with tags at first ingestion, JSON."),
        _text("contributions", "What this row added to `measure` as reported, JSON."),
        _text(
            "retagged",
            "Present tags where they are not those in `versions`, JSON: event id, or '' for all of them, to stage, "
            "department, topic and method; NULL if none.",
            nullable=True,
        ),
        _text("restated", "`contributions` under the present tags, JSON; NULL while equal to them.", nullable=True),
    ]


ticket = Table(
    "ticket",
    metadata,
    *_subject_columns(),
    _text("ticket_id", "The source's ticket number."),
    _text("source", "System the ticket lives in."),
    _text("customer_key", "Pseudonym of the customer.", nullable=True),
    _text("status", "opened, responded, reassigned, resolved, reopened or closed, as it now stands."),
    Column("is_open", SmallInteger, comment="1 while open, 0 when done; NULL before its opening is known."),
    *_tag_columns(),
    _text("tag_method", "Method of the tag: override, hint, rule, model, touchpoint or unassigned.", nullable=True),
    *_segment_columns(),
    _text("priority", "Last known priority.", nullable=True),
    _text("queue", "Last known queue.", nullable=True),
    _big("opened_at", "When it was opened; NULL before that event is known.", nullable=True),
    _big("first_response_at", "When an agent first answered; bots don't count.", nullable=True),
    _big("first_response_us", "Opening to first response, microseconds.", nullable=True),
    _big("first_response_business_us", "The same in business time of the department's calendar.", nullable=True),
    _big("first_response_due_at", "When the first response was due.", nullable=True),
    Column("responded_in_sla", SmallInteger, comment="1 or 0 once responded; NULL before, or without service level."),
    _big("first_resolved_at", "When it was first resolved.", nullable=True),
    _big("resolved_at", "When the resolution that stands was reached; NULL while open.", nullable=True),
    _big("resolution_us", "Opening to the resolution that stands, microseconds.", nullable=True),
    _big("resolution_business_us", "The same in business time.", nullable=True),
    _big("resolution_due_at", "When the resolution was due.", nullable=True),
    Column("resolved_in_sla", SmallInteger, comment="1 or 0 while a resolution stands; else NULL."),
    Column("reopen_count", Integer, nullable=False, comment="How often it was reopened."),
    Column("reassign_count", Integer, nullable=False, comment="How often it was reassigned."),
    _big("last_event_at", "Time of its latest event."),
    Column("events", Integer, nullable=False, comment="Events it follows from."),
    Index("ix_ticket_opened_at", "opened_at"),
    comment="Accumulating snapshot: one row a ticket, a function of the set of its events.",
)

survey_answer = Table(
    "survey_answer",
    metadata,
    *_subject_columns(),
    _text("source", "System of the survey."),
    _text("survey_id", "Questionnaire."),
    _text("response_id", "One person's response to it."),
    _text("metric", "Question type: nps, csat, ces ..."),
    _text("touchpoint", "What the question was about.", nullable=True),
    _text("status", "partial or complete, of the version that counts."),
    Column("score", Double, nullable=False, comment="Raw score."),
    _big("weight", "Sampling weight in 1/10,000."),
    *_tag_columns(),
    *_segment_columns(),
    _text("customer_key", "Pseudonym of the customer.", nullable=True),
    _big("sent_at", "When the invitation was sent.", nullable=True),
    _big("event_time", "When the version that counts was given."),
    _text("event_id", "Event of the version that counts."),
    Index("ix_survey_answer_customer", "customer_key", "event_time"),
    comment="One row an answer: the latest complete version, else the latest partial one.",
)

survey_response = Table(
    "survey_response",
    metadata,
    *_subject_columns(),
    _text("source", "System of the survey."),
    _text("survey_id", "Questionnaire."),
    _text("response_id", "One person's response to it."),
    _text("status", "Highest status reached: sent, started, partial or complete."),
    *_tag_columns(),
    *_segment_columns(),
    _text("customer_key", "Pseudonym of the customer.", nullable=True),
    _big("sent_at", "When it was sent; the earliest event where no event says so."),
    _big("event_time", "Time of its greatest version."),
    _text("event_id", "Event of its greatest version."),
    comment="One row a response, answered or not: the response funnel.",
)

tag_override = Table(
    "tag_override",
    metadata,
    Column("override_id", Serial, primary_key=True, comment="Grows: of corrections of one event the latest wins."),
    Column("event_key", LargeBinary(16), comment="Key of the event that is corrected; NULL where it is a ticket."),
    Column("subject_key", LargeBinary(16), comment="Key of the ticket that is corrected; NULL where it is an event."),
    _text("source", "System that the event or ticket comes from."),
    _text("event_type", "survey, ticket, telemetry, flag or outcome."),
    _text("event_id", "The source's id of the event; NULL where a ticket is corrected.", nullable=True),
    _text("ticket_id", "The source's ticket number, where one is known.", nullable=True),
    *_tag_columns(),
    _text("reviewer", "Who made the correction."),
    _text("note", "Why, in the reviewer's words.", nullable=True),
    _big("made_at", "When it was made."),
    _big("withdrawn_at", "When it was withdrawn; NULL while it stands.", nullable=True),
    CheckConstraint("(event_key IS NULL) <> (subject_key IS NULL)", name="one_thing"),
    Index("ix_tag_override_event_key", "event_key"),
    Index("ix_tag_override_subject_key", "subject_key"),
    sqlite_autoincrement=True,
    comment="Tags that people corrected: they win over every other method.",
)

flag_action = Table(
    "flag_action",
    metadata,
    Column("event_key", LargeBinary(16), primary_key=True, comment="Key of the flag's event."),
    _text("action", "acknowledged or resolved; each happens once, and resolving acknowledges.", primary_key=True),
    _text("made_by", "Who did it."),
    _big("made_at", "When."),
    _text("outcome", "What came of the flag, in their words; NULL where it was acknowledged.", nullable=True),
    sqlite_with_rowid=False,
    comment="What departments did about flags. Rows are added, never changed.",
)

alert_case = Table(
    "alert_case",
    metadata,
    Column("case_id", Serial, primary_key=True, comment="Number of the case."),
    _text("fingerprint", "Alertmanager's fingerprint of the alert: the same labels, the same fingerprint."),
    _text("alert", "Alert that opened it: TargetMissed or ControlChartSignal."),
    _text("metric", "Metric that it is about."),
    _text("stage", "Stage that it is about."),
    _text("department", "Department whose case it is."),
    _text("unit", "Unit of the metric; the currency for money."),
    _text("window_length", "Length of the windows that the alert judges: hour, day or week."),
    _text("summary", "What the alert said."),
    _big("started_at", "When the alert began to fire."),
    _big("opened_at", "When the case was opened."),
    _big("acknowledged_at", "When somebody took it on; NULL before.", nullable=True),
    _text("acknowledged_by", "Who did.", nullable=True),
    _big("closed_at", "When it was closed; NULL before.", nullable=True),
    _text("closed_by", "Who closed it.", nullable=True),
    _text("root_cause", "Why the target was missed, in their words; NULL while open.", nullable=True),
    _text("action", "What was done about it, in their words; NULL while open.", nullable=True),
    Index("ix_alert_case_fingerprint", "fingerprint"),
    sqlite_autoincrement=True,
    comment="Cases that alerts on targets opened for departments.",
)

case_alert = Table(
    "case_alert",
    metadata,
    _text("fingerprint", "Alertmanager's fingerprint of the alert.", primary_key=True),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False, comment="When it began to fire."),
    Column("case_id", BigInteger, ForeignKey("alert_case.case_id"), nullable=False, comment="Case it belongs to."),
    _big("ended_at", "When it recovered; NULL while it fires.", nullable=True),
    Index("ix_case_alert_case_id", "case_id"),
    comment="Every firing of an alert that a case was opened for, or that fell into one that was open.",
)

settle_position = Table(
    "settle_position",
    metadata,
    Column("ledger_id", BigInteger, primary_key=True, autoincrement=False, comment="Topic-partition."),
    _big("settled_offset", "Attribution by touchpoint has looked at all events before this offset."),
    Column("taxonomy_version", Integer, nullable=False, comment="Governance version under which it did."),
    Column("set_back", Integer, nullable=False, comment="How often the position was set back to the beginning."),
    comment="How far each topic-partition has been looked at for attribution by touchpoint.",
)

settle_again = Table(
    "settle_again",
    metadata,
    Column("settle_again_id", Serial, primary_key=True, comment="Number of the request."),
    _big("ledger_id", "Topic-partition of the event."),
    _big("kafka_offset", "Offset of the event."),
    sqlite_autoincrement=True,
    comment="Events behind `settle_position` that came or changed their tag since, and are to be looked at again.",
)

settle_event = Table(
    "settle_event",
    metadata,
    _text("customer_key", "Pseudonym of the customer.", primary_key=True),
    _big("event_time", "When it happened.", primary_key=True, autoincrement=False),
    _big("ledger_id", "Topic-partition of the event.", primary_key=True, autoincrement=False),
    _big("kafka_offset", "Offset of the event.", primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
    comment="Events without a stage of their own and touchpoints by customer, as far as settled: an index of `event` "
    "that the main path does not pay for.",
)

customer_day = Table(
    "customer_day",
    metadata,
    Column("date", Date, primary_key=True, comment="Local date."),
    _text("stage", "Stage of the events.", primary_key=True),
    _text("department", "Department of the events.", primary_key=True),
    _text("customer_key", "Pseudonym of the customer.", primary_key=True),
    _big("n", "Events of this customer on that day."),
    sqlite_with_rowid=False,
    comment="Who was seen when and where: count distinct customers from here, never add them up.",
)

measure = Table(
    "measure",
    metadata,
    _text("metric", "Metric of the governance file.", primary_key=True),
    _text("grain", "Length of the bucket: bucket (5 minutes), hour or day.", primary_key=True),
    _big("bucket_start", "Start of the bucket on the metric's clock.", primary_key=True, autoincrement=False),
    _text("basis", "as_reported (first tag) or restated (difference to it).", primary_key=True),
    _text("stage", "Customer-journey stage.", primary_key=True),
    _text("department", "Owning department.", primary_key=True),
    _text("topic", "What it is about.", primary_key=True),
    _text("segment_1", "Value of segment 1.", primary_key=True),
    _text("segment_2", "Value of segment 2.", primary_key=True),
    _text("segment_3", "Value of segment 3.", primary_key=True),
    _text("unit", "Unit of `total`; the currency for money, which is never added across.", primary_key=True),
    Column(
        "bin",
        Integer,
        primary_key=True,
        autoincrement=False,
        comment="Raw score; 0 or 1 for rates; bin of `measure_bin` for durations and amounts; 1 to 4 for the funnel.",
    ),
    _big("n", "Contributions."),
    _big("weight", "Sum of weights, in 1/10,000."),
    _big("weight_sq", "Sum of squared weights, in 1/10^8."),
    _big("total", "Unweighted sum in `unit`; minor units for money."),
    Column("date", Date, nullable=False, comment="Local date of the bucket; key into `calendar_date`."),
    _big("hour_start", "Start of the local clock hour; NULL for grain day.", nullable=True),
    # PostgreSQL refuses a sum beyond 64 bits; SQLite would go on with a rounded one.
    *[
        CheckConstraint(f"typeof({name}) = 'integer'", name=f"whole_{name}").ddl_if(dialect="sqlite")
        for name in ("weight", "weight_sq", "total")
    ],
    sqlite_with_rowid=False,
    comment="One additive histogram fact for every metric: any roll-up over time, stage or department is a sum.",
)

measure_grain = Table(
    "measure_grain",
    metadata,
    Column("only", SmallInteger, primary_key=True, autoincrement=False, comment="Always 1: the table has one row."),
    Column("hours_before", Date, nullable=False, comment="Local dates before this one are kept by hour or coarser."),
    Column("days_before", Date, nullable=False, comment="Local dates before this one are kept by day."),
    CheckConstraint('"only" = 1', name="one_row"),
    comment="How fine `measure` is kept: every transaction that changes it shares this row, folding locks it.",
)

measure_month = Table(
    "measure_month",
    metadata,
    measure.c.metric._copy(),
    Column("month_start", Date, primary_key=True, comment="First of the local month."),
    *[measure.c[name]._copy() for name in ("basis", "stage", "department", "unit", "bin")],
    *[measure.c[name]._copy() for name in ("n", "weight", "weight_sq", "total")],
    # The primary key with the sums in it: PostgreSQL reads a metric's months in order from here alone.
    Index(
        "ix_measure_month_sums",
        *("metric", "month_start", "basis", "stage", "department", "unit", "bin"),
        postgresql_include=["n", "weight", "weight_sq", "total"],
    ).ddl_if(dialect="postgresql"),
    sqlite_with_rowid=False,
    comment="Sums of `measure` by month over those of its cells that were folded to hour or day; topics and segments "
    "added up.",
)

measure_retired = Table(
    "measure_retired",
    metadata,
    *[column._copy() for column in measure.primary_key],
    _big("n", "Contributions."),
    _big("weight", "Sum of weights, in 1/10,000."),
    _big("weight_sq", "Sum of squared weights, in 1/10^8."),
    _big("total", "Unweighted sum in `unit`; minor units for money."),
    sqlite_with_rowid=False,
    comment="The part of `measure` whose rows were retired (erased, expired) and which stays in the aggregates.",
)

retired_row = Table(
    "retired_row",
    metadata,
    Column(
        "ledger_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Topic-partition of the rows; 0 for event keys, which belong to none.",
    ),
    _text("kind", "event, dead_letter or event_key.", primary_key=True),
    _text("reason", "erased, expired, healed or healed_duplicate (a letter whose event was there).", primary_key=True),
    _big("n", "Rows retired."),
    sqlite_with_rowid=False,
    comment="Rows that were written and are gone on purpose, counted in the transaction that retired them.",
)

erasure_marker = Table(
    "erasure_marker",
    metadata,
    Column("marker_id", Serial, primary_key=True, comment="Grows; markers are only ever added."),
    _text("customer_key", "Pseudonym of the erased customer."),
    _big("erased_at", "Events of this customer up to this time are dropped by every writer."),
    sqlite_autoincrement=True,
    comment="Who was erased, and when: keeps what was erased from coming back.",
)

retired_subject = Table(
    "retired_subject",
    metadata,
    Column("subject_key", LargeBinary(16), primary_key=True, comment="Key that its row had."),
    _text("subject_table", "ticket, survey_answer or survey_response."),
    _text("reason", "erased or expired."),
    _big("retired_at", "When its row was removed; if it expired, forgotten after the deduplication horizon."),
    sqlite_with_rowid=False,
    comment="Tickets, answers and responses whose rows are gone: later events of theirs don't change the aggregates.",
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("ledger_id", BigInteger, primary_key=True, autoincrement=False, comment="Topic-partition."),
    _big("kafka_offset", "Offset.", primary_key=True, autoincrement=False),
    _text("event_type", "Event type of the topic."),
    _text("step", "Step that refused it: decode, validate, deduplicate or write."),
    _text("error_class", "Cause, as a short name."),
    _text("message", "Cause, in words; quotes no content."),
    Column("raw", LargeBinary, nullable=False, comment="Original bytes, encrypted."),
    _big("raw_bytes", "Size of the original."),
    _big("dead_at", "When it was put here."),
    _big("run_epoch", "Run that put it here."),
    Index("ix_dead_letter_cause", "step", "error_class"),
    comment="Records that could not be loaded, with their cause. None is ever dropped.",
)

replay_attempt = Table(
    "replay_attempt",
    metadata,
    Column("ledger_id", BigInteger, primary_key=True, autoincrement=False, comment="Topic-partition of the letter."),
    _big("kafka_offset", "Offset of the letter.", primary_key=True, autoincrement=False),
    _big(
        "run_epoch",
        "Run that tried: a replay, or the run that refused it first.",
        primary_key=True,
        autoincrement=False,
    ),
    _big("attempted_at", "When."),
    _text("outcome", "refused (by the run), then healed, healed_duplicate, erased or failed (by a replay)."),
    _text("step", "Step that refused it; NULL where none did.", nullable=True),
    _text("error_class", "Cause, as a short name; NULL where none.", nullable=True),
    _text("message", "Cause, in words; quotes no content. NULL where none.", nullable=True),
    sqlite_with_rowid=False,
    comment="What became of each dead letter that was replayed, from its first refusal on; it outlives the letter.",
)

audit_trail = Table(
    "audit_trail",
    metadata,
    Column("entry_id", Serial, primary_key=True, comment="Number."),
    _big("at", "When."),
    _text("who", "Account by the name it signed in with; 'nobody' where nobody was signed in."),
    _text("action", "What was asked for: sign_in, flag_acknowledge, case_close and so on."),
    _text("object", "What it was done to, such as a flag or a case; '' where there is none."),
    _text("origin", "Address that the request came from."),
    _text("outcome", "done, or refused where the account may not."),
    comment="Who did what on the web pages. Only ever added to: the database refuses changes and deletions.",
    sqlite_autoincrement=True,
)

department = Table(
    "department",
    metadata,
    _text("department", "Id in the governance file, or 'unassigned'.", primary_key=True),
    _text("name", "Name."),
    _text("representative", "Who answers for it in the programme.", nullable=True),
    _text("alert_route", "Where its alerts go.", nullable=True),
    _big(
        "acknowledge_flags_within_s",
        "Seconds within which it is to acknowledge a red flag; NULL without a limit.",
        nullable=True,
    ),
    comment="Departments of the governance file.",
)

journey_stage = Table(
    "journey_stage",
    metadata,
    _text("stage", "Id in the governance file, or 'unassigned'.", primary_key=True),
    _text("name", "Name."),
    _text("journey", "Journey it belongs to; '' for 'unassigned'."),
    Column("position", Integer, nullable=False, comment="Place in the journey, from 1."),
    _text("owner", "Department that owns it.", nullable=True),
    _text("description", "What happens there.", nullable=True),
    comment="Stages of the customer journeys, each owned by one department.",
)

metric = Table(
    "metric",
    metadata,
    _text("metric", "Id in the governance file.", primary_key=True),
    _text("name", "Name."),
    _text("level", "operational, cx or financial."),
    _text("kind", "nps, share, mean, rate, duration, amount, count or funnel."),
    _text("definition", "What it means, in words."),
    _text("unit", "Unit of its targets; for money the company's currency."),
    _text("direction", "Which way is better: higher or lower."),
    _text("clock", "Time by which it is booked: event_time, sent_at or opened_at."),
    Column("scale_min", Integer, comment="Lowest score."),
    Column("scale_max", Integer, comment="Highest score."),
    Column("satisfied_from", Integer, comment="Lowest score that counts as satisfied."),
    Column("satisfied_to", Integer, comment="Highest score that counts as satisfied."),
    Column("percentile", Double, comment="Percentile that is its value, for durations."),
    Column("min_n", Integer, nullable=False, comment="Below this n its status is 'not enough data'."),
    _text("parents", "Metrics that it drives, comma separated.", nullable=True),
    _text(
        "small_groups", "hidden: figures below k answers stay hidden; shown: nobody's answers.", server_default="hidden"
    ),
    comment="Metrics of the governance file.",
)

target = Table(
    "target",
    metadata,
    _text("metric", "Metric.", primary_key=True),
    _text("stage", "Stage; '*' for all of them together.", primary_key=True),
    _text("department", "Department; '*' for all of them together.", primary_key=True),
    Column("valid_from", Date, primary_key=True, comment="First local date on which it holds."),
    Column("valid_to", Date, comment="First local date on which it no longer holds; NULL if open."),
    Column("value", Double, nullable=False, comment="Target, in the unit of the metric's value."),
    comment="Dated targets, spelled out for each stage and department, for either alone and for the whole company from "
    "the most specific line of the governance file.",
)

calendar_date = Table(
    "calendar_date",
    metadata,
    Column("date", Date, primary_key=True, comment="Local date in the governance file's time zone."),
    Column("week_start", Date, nullable=False, comment="Monday of its ISO week."),
    Column("iso_year", Integer, nullable=False, comment="ISO year of the week."),
    Column("iso_week", Integer, nullable=False, comment="ISO week."),
    Column("month_start", Date, nullable=False, comment="First of its month."),
    Column("quarter_start", Date, nullable=False, comment="First of its quarter."),
    Column("year", Integer, nullable=False, comment="Year."),
    Column("weekday", Integer, nullable=False, comment="1 = Monday to 7 = Sunday."),
    _big("starts_at", "When the date begins."),
    _big("ends_at", "When it ends."),
    Index("ix_calendar_date_starts_at", "starts_at"),
    comment="Calendar of the governance file's time zone.",
)

privacy = Table(
    "privacy",
    metadata,
    Column("only", SmallInteger, primary_key=True, autoincrement=False, comment="Always 1: the table has one row."),
    Column("k", Integer, nullable=False, comment="Fewest answers behind a figure that views show; 1 hides nothing."),
    CheckConstraint('"only" = 1', name="one_row"),
    comment="What the governance file says of privacy and views must know. Without its row, views show nothing.",
)

measure_bin = Table(
    "measure_bin",
    metadata,
    Column("bin", Integer, primary_key=True, autoincrement=False, comment="Bin number."),
    _big("lower", "Smallest integer in the bin."),
    _big("upper", "Largest integer in the bin."),
    Column("representative", Double, nullable=False, comment="Within 2 % of every value in the bin."),
    comment="Logarithmic bins of durations and amounts.",
)

metric_edge = Table(
    "metric_edge",
    metadata,
    _text("driver", "Metric that is thought to act.", primary_key=True),
    _text("outcome", "Metric that it acts on: a parent of it in the governance file.", primary_key=True),
    _text("grade", "Grade of evidence: association, before_after or experiment.", primary_key=True),
    _text("verdict", "proven, not proven or not enough data; proven holds for all edges of the grade together."),
    _text("method", "How it was estimated: customers, groups, series or intervention; NULL if not.", nullable=True),
    _text("reason", "Why there is no estimate, or what it is held back for; NULL if nothing.", nullable=True),
    _text("driver_step", "What one step of the driver is: percentage point, point or %."),
    _text("outcome_step", "Unit of the effect: percentage point, point or %."),
    Column("lag_days", Integer, comment="Customers: longest time from driver to outcome; groups, series: the lag."),
    Column("effect", Double, comment="Change of the outcome for one step more of the driver; NULL if not estimated."),
    Column("interval_low", Double, comment="Lower end of its 95 % interval."),
    Column("interval_high", Double, comment="Upper end of its 95 % interval."),
    Column("smallest_effect", Double, comment="Effect that the data would have shown in four of five cases."),
    Column("p_value", Double, comment="Probability of such an effect by chance alone."),
    Column("p_adjusted", Double, comment="The same for all edges of the grade together (Benjamini and Hochberg)."),
    Column("n", BigInteger, comment="Outcomes, or cells of group and period, that it rests on."),
    Column("clusters", Integer, comment="Customers or groups: what counts as independent."),
    Column("weight", Double, comment="Relative weight: share of the outcome's variance that goes with the driver."),
    Column("weight_low", Double, comment="Lower end of its 95 % interval; NULL for a weight below the floor."),
    Column("weight_high", Double, comment="Upper end of its 95 % interval; NULL for a weight below the floor."),
    Column("weight_floor", Double, comment="What the heaviest of the drivers weighs if scores are dealt at random."),
    Column("is_driver", SmallInteger, comment="1: even weight_low is above the floor; 0: not; NULL: not weighed."),
    Column("first_date", Date, comment="First local date of the data."),
    Column("last_date", Date, comment="Last local date of the data."),
    _big("fitted_at", "When it was estimated."),
    sqlite_with_rowid=False,
    comment="The metric tree with evidence: one row for each edge of the governance file and grade of evidence.",
)

intervention = Table(
    "intervention",
    metadata,
    Column("intervention_id", Serial, primary_key=True, comment="Number of the intervention."),
    _text("name", "What was done, in a few words."),
    _text("stage", "Stage where it was done."),
    _text("metric", "Metric that it is meant to move; NULL if none was named.", nullable=True),
    _text("compared_by", "What groups are compared: stage, department, or the name of a segment."),
    _text("treated", "The groups where it was done, JSON array."),
    Column("start_date", Date, nullable=False, comment="First local date on which it was in force."),
    _big("marked_at", "When it was entered."),
    sqlite_autoincrement=True,
    comment="What was done for customers, where and from when.",
)

intervention_effect = Table(
    "intervention_effect",
    metadata,
    Column(
        "intervention_id",
        BigInteger().with_variant(Integer, "sqlite"),
        ForeignKey("intervention.intervention_id"),
        primary_key=True,
        autoincrement=False,
        comment="Intervention.",
    ),
    _text("metric", "Metric that was looked at.", primary_key=True),
    _text("grade", "experiment (with groups to compare) or before_after (without).", nullable=True),
    _text("outcome", "helped, hurt, no change proven, doubtful or not enough data."),
    _text("reason", "Why there is no estimate, or why it is doubtful; NULL if neither.", nullable=True),
    _text("step", "Unit of the effect: percentage point, point or %."),
    Column("effect", Double, comment="Change that the intervention made; NULL if not estimated."),
    Column("interval_low", Double, comment="Lower end of its 95 % interval."),
    Column("interval_high", Double, comment="Upper end of its 95 % interval."),
    Column("smallest_effect", Double, comment="Effect that the data would have shown in four of five cases."),
    Column("p_value", Double, comment="Probability of such an effect by chance alone."),
    Column("p_adjusted", Double, comment="The same for all metrics of the intervention (Benjamini and Hochberg)."),
    Column("deals_p", Double, comment="Probability of such an effect if the treated groups had been chosen at random."),
    Column("treated_groups", Integer, comment="Treated groups."),
    Column("untreated_groups", Integer, comment="Groups they are compared with."),
    Column("periods_before", Integer, comment="Weeks before the date."),
    Column("periods_after", Integer, comment="Weeks from the date on."),
    Column("trend", Double, comment="How much faster treated groups rose a week before the date; should be 0."),
    Column("trend_low", Double, comment="Lower end of its 95 % interval."),
    Column("trend_high", Double, comment="Upper end of its 95 % interval."),
    Column("placebo", Double, comment="Effect of a date halfway before the real one; should be 0."),
    Column("placebo_low", Double, comment="Lower end of its 95 % interval."),
    Column("placebo_high", Double, comment="Upper end of its 95 % interval."),
    _big("estimated_at", "When it was estimated."),
    sqlite_with_rowid=False,
    comment="What interventions changed, with the checks that the comparison stands on; the last estimate of each.",
)


def _fit_columns() -> list[Column[Any]]:
    """Which fit a row is of: the key that a rerun replaces."""
    return [
        Column(
            "landmark", Date, primary_key=True, comment="Local date: known is what came before, counted what after."
        ),
        Column(
            "horizon_days", Integer, primary_key=True, autoincrement=False, comment="Length of the follow-up, in days."
        ),
        _text("basis", "Which tags: restated (present) or as_reported.", primary_key=True),
    ]


def _provenance_columns() -> list[Column[Any]]:
    return [
        Column("taxonomy_version", Integer, nullable=False, comment="Governance version under which it was fitted."),
        _text("model_version", "Text model published then; NULL while there was none.", nullable=True),
        _text("vocbeam_version", "Release of vocbeam."),
        _big("fitted_at", "When it was fitted."),
    ]


value_segment = Table(
    "value_segment",
    metadata,
    *_fit_columns(),
    _text("metric", "Survey metric whose answers before the landmark make the classes.", primary_key=True),
    _text(
        "customer_class",
        "promoter, passive or detractor (NPS), satisfied or dissatisfied (others), or no answer.",
        primary_key=True,
    ),
    _text("quantity", "retention, churn, revenue, repeat_contacts or cost_to_serve.", primary_key=True),
    _text("unit", "share, contacts, or the currency (minor units), which is never added across.", primary_key=True),
    Column(
        "day",
        Integer,
        primary_key=True,
        autoincrement=False,
        comment="Days since the landmark: retention has a row a day, the others one for the whole follow-up.",
    ),
    _big("n", "Customers of the class; NULL where suppressed.", nullable=True),
    Column("value", Double, comment="Share who stay or left, or mean per customer; NULL where suppressed."),
    Column("interval_low", Double, comment="Lower end of the 95 % interval; NULL if the data give none."),
    Column("interval_high", Double, comment="Upper end of the 95 % interval; NULL if the data give none."),
    Column("p_value", Double, comment="Rows of churn: log-rank test that the classes that answered stay equally long."),
    Column("suppressed", SmallInteger, nullable=False, comment="1: too few customers, all figures are NULL; 0: shown."),
    *_provenance_columns(),
    sqlite_with_rowid=False,
    comment="Satisfied against dissatisfied customers, classed by answers before a landmark and followed after it.",
)

value_issue = Table(
    "value_issue",
    metadata,
    *_fit_columns(),
    _text(
        "payout_by",
        "leaving: customers it makes leave; revenue: what those it met bring less. The same money, seen twice.",
        primary_key=True,
    ),
    _text("stage", "Customer-journey stage.", primary_key=True),
    _text("department", "Owning department.", primary_key=True),
    _text("topic", "What it is about.", primary_key=True),
    _text("metric", "Operational metric that shows whom the trouble met.", primary_key=True),
    _text("currency", "Currency of the payout, in minor units."),
    Column(
        "rank",
        Integer,
        comment="Place by the lower end of the payout among those of the same payout_by, from 1; NULL without enough "
        "data.",
    ),
    _text("status", "proven, not proven or not enough data."),
    _text("grade", "Grade of evidence: association (adjusted, not randomised)."),
    _big("customers", "Customers who were served there; NULL without enough data.", nullable=True),
    _big("affected", "Of these, met trouble; NULL without enough data.", nullable=True),
    Column(
        "effect",
        Double,
        comment="Of the affected, adjusted, within the horizon: risk of leaving added, or revenue lost each (minor "
        "units).",
    ),
    Column("interval_low", Double, comment="Lower end of its 95 % interval."),
    Column("interval_high", Double, comment="Upper end of its 95 % interval."),
    Column("p_value", Double, comment="Two-sided p-value of no effect."),
    Column("q_value", Double, comment="The same adjusted for the number of issues (Benjamini-Hochberg)."),
    Column("shrunk_effect", Double, comment="The effect pulled towards the mean of all issues (empirical Bayes)."),
    Column("shrunk_low", Double, comment="Lower end of its 95 % interval."),
    Column("shrunk_high", Double, comment="Upper end of its 95 % interval."),
    Column(
        "customer_value",
        Double,
        comment="Mean revenue over the horizon of one who stays; NULL if unknown, and by revenue.",
    ),
    Column(
        "payout",
        Double,
        comment="affected x shrunk_effect (x customer_value by leaving). Never to be added up, over issues or ways.",
    ),
    Column("payout_low", Double, comment="Lower end of its 95 % interval."),
    Column("payout_high", Double, comment="Upper end of its 95 % interval."),
    _text("adjusted_for", "Covariates, comma separated; '' if none."),
    _text("method", "How effect and interval were made."),
    *_provenance_columns(),
    sqlite_with_rowid=False,
    comment="What trouble costs: customers it made leave, times what they would have brought; or revenue lost.",
)

data_dictionary = Table(
    "data_dictionary",
    metadata,
    _text("object", "Table or view.", primary_key=True),
    _text("column", "Column; '' for the object itself.", primary_key=True),
    _text("comment", "What it is."),
    comment="Comments of all tables, views and columns, also where the database keeps none.",
)
