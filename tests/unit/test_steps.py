from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import ConfigError, WrongKey
from vocbeam.schemas.records import EVENT_TYPES, Columns, EventType, PartitionKey, RawChunk, TaggedChunk, TaggedGroup
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import fingerprint, pseudonym_key, pseudonym_source
from vocbeam.transforms import steps
from vocbeam.transforms.group_coder import GroupCoder
from vocbeam.transforms.pseudonym import Pseudonyms
from vocbeam.transforms.steps import LOOK_SECONDS, DecodeChunks, DecodeConfig, RedactAndTag, TagConfig
from vocbeam.transforms.tag import Predicted, Prediction, TextModel

MINI = (Path(__file__).parents[1] / "support" / "mini.yaml").read_text(encoding="utf-8")
MOMENT = 1_500_000_000_000_000
COMMON = {"event_id": "e1", "event_time": MOMENT, "source": "shop", "customer_id": "customer-77"}


def now() -> int:
    return MOMENT + 1


@pytest.fixture
def registry(tmp_path: Path) -> Callable[[], FileRegistry]:
    folder = tmp_path / "registry"
    for event_type in EVENT_TYPES:
        FileRegistry(folder).register(f"voc.{event_type}-value", contracts.schema_text(event_type))
    return lambda: FileRegistry(folder)


def chunk(event_type: EventType, *records: dict[str, Any]) -> RawChunk:
    schema_id = EVENT_TYPES.index(event_type) + 1
    values: list[bytes | None] = [wire.encode(event_type, {**COMMON, **record}, schema_id) for record in records]
    partition = PartitionKey("cluster", "id", f"voc.{event_type}", 0)
    return RawChunk(partition, 0, len(values) + 1, list(range(len(values) + 1)), [*values, b"?"])


def tag_config(home: Path) -> TagConfig:
    source = pseudonym_source(home)
    return TagConfig(MINI, source, fingerprint(pseudonym_key(source.load())))


def run(groups: list[tuple[RawChunk, ...]], registry: Callable[[], FileRegistry], home: Path) -> list[TaggedChunk]:
    decode = DecodeChunks(DecodeConfig(MINI, {f"voc.{name}": name for name in EVENT_TYPES}, registry, now))
    tag = RedactAndTag(tag_config(home))
    decode.setup()
    tag.setup()
    return [
        chunk
        for group in groups
        for decoded in decode.process(group)
        for tagged in tag.process(decoded)
        for chunk in tagged
    ]


def test_steps__ticket_is_redacted_pseudonymised_tagged(registry: Callable[[], FileRegistry], tmp_path: Path) -> None:
    secret = pseudonym_source(tmp_path).ensure({})
    record = {
        "ticket_id": "t1",
        "status": "opened",
        "subject": "refund for ana@example.com",
        "body": "card 4111 1111 1111 1111",
        "segments": {"region": "SP"},
    }
    [tagged] = run([(chunk("ticket", record),)], registry, tmp_path)
    pseudonyms = Pseudonyms(pseudonym_key(secret))
    columns = {name: column[0] for name, column in tagged.columns.items()}
    assert columns["subject"] == "refund for [email]"
    assert columns["body"] == "card [card]"
    assert columns["customer_key"] == pseudonyms.customer_key("customer-77")
    assert "customer_id" not in columns
    assert [columns[name] for name in ("stage", "department", "topic", "tag_method", "tag_confidence")] == [
        "help", "care", "refund", "rule", 1.0,
    ]  # fmt: skip
    assert [columns[f"segment_{n}"] for n in (1, 2, 3)] == ["SP", "", ""]
    assert tagged.event_keys == pseudonyms.event_keys("ticket", {"source": ["shop"], "event_id": ["e1"]})
    assert (tagged.taxonomy_version, tagged.model_version) == (1, None)
    assert [version.table for version in tagged.subjects[0]] == ["ticket"]
    assert tagged.contributions.stored == [None]
    assert [(letter.offset, letter.error_class) for letter in tagged.dead] == [(1, "wrong_magic_byte")]
    stored = repr((tagged.columns, tagged.subjects, tagged.contributions))
    assert not any(personal in stored for personal in ("customer-77", "ana@example.com", "4111"))


@pytest.mark.parametrize("together", [1, 150, 1 << 20])
def test_steps__chunks_of_a_group_keep_what_is_theirs(
    registry: Callable[[], FileRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(steps, "TOGETHER_BYTES", together)
    pseudonym_source(tmp_path).ensure({})
    bodies = [["refund for ana@example.com", "where is it?"], [], ["refund, please"], ["", "?", "refund for bo@b.io"]]
    tickets = [
        chunk("ticket", *({"ticket_id": "t", "status": "opened", "body": body} for body in some)) for some in bodies
    ]
    flags = [chunk("flag", {"flag_kind": "praise", "text": f"thank a{n}@b.io"}) for n in range(2)]
    group = (tickets[0], flags[0], *tickets[1:3], flags[1], tickets[3])
    tagged, alone = run([group], registry, tmp_path), run([(part,) for part in group], registry, tmp_path)
    assert [["refund" in (topic or "") for topic in part.columns["topic"]] for part in tagged] == [
        [True, False], [False], [], [True], [False], [False, False, True],
    ]  # fmt: skip
    assert list(map(repr, tagged)) == list(map(repr, alone))


@pytest.mark.parametrize(("together", "looks"), [(0, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (5, [5])])
def test_steps__looks_at_so_many_texts_at_once(
    registry: Callable[[], FileRegistry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    together: int,
    looks: list[int],
) -> None:
    pseudonym_source(tmp_path).ensure({})
    part = chunk("flag", {"flag_kind": "praise", "text": "well done"})
    monkeypatch.setattr(steps, "TOGETHER_BYTES", together * len(part.values[0] or b""))
    seen: list[int] = []
    tag = steps.Tagger.tag

    def watched(self: Any, event_type: EventType, columns: Columns) -> Any:
        seen.append(len(columns["text"]))
        return tag(self, event_type, columns)

    monkeypatch.setattr(steps.Tagger, "tag", watched)
    run([(part,) * 5], registry, tmp_path)
    assert seen == looks


def test_steps__every_event_type_in_one_group(registry: Callable[[], FileRegistry], tmp_path: Path) -> None:
    pseudonym_source(tmp_path).ensure({})
    group = (
        chunk("survey", {"survey_id": "s", "response_id": "r", "metric": "nps", "score": 9.0, "comment": "a@b.io"}),
        chunk("ticket", {"ticket_id": "t", "status": "opened"}),
        chunk("telemetry", {"name": "delivered", "value": 2.0}),
        chunk("flag", {"flag_kind": "red_flag", "text": "tell a@b.io"}),
        chunk("outcome", {"outcome_kind": "purchase", "amount": 100}),
    )
    tagged = {part.event_type: part for part in run([group], registry, tmp_path)}
    assert tagged["survey"].columns["comment"] == ["[email]"]
    assert tagged["flag"].columns["text"] == ["tell [email]"]
    assert {name: len(part.subjects[0]) for name, part in tagged.items()} == {
        "survey": 2, "ticket": 1, "telemetry": 0, "flag": 0, "outcome": 0,
    }  # fmt: skip
    assert {name: [names[6] for names in part.contributions.names] for name, part in tagged.items()} == {
        "survey": [], "ticket": [], "telemetry": ["late"], "flag": ["red_flags"], "outcome": ["revenue"],
    }  # fmt: skip
    assert len({part.event_keys[0] for part in tagged.values()}) == 5


def test_steps__digest_tells_redacted_contents_apart(registry: Callable[[], FileRegistry], tmp_path: Path) -> None:
    pseudonym_source(tmp_path).ensure({})
    records = [{"flag_kind": "idea", "text": text} for text in ("ask a@b.io", "ask c@d.io", "ask a@b.io")]
    [tagged] = run([(chunk("flag", *records),)], registry, tmp_path)
    assert tagged.columns["text"] == ["ask [email]"] * 3
    first, second, third = tagged.content_digests
    assert first == third != second


def test_setup__without_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOCBEAM_PSEUDONYM_KEY", raising=False)
    with pytest.raises(ConfigError, match="no secret"):
        RedactAndTag(TagConfig(MINI, pseudonym_source(tmp_path), "any")).setup()


def test_setup__key_is_not_the_one_the_run_began_with(tmp_path: Path) -> None:
    pseudonym_source(tmp_path).ensure({})
    step = RedactAndTag(tag_config(tmp_path))
    pseudonym_source(tmp_path).path.unlink()
    pseudonym_source(tmp_path).ensure({})
    with pytest.raises(WrongKey, match=r"give every worker the same key \(VOCBEAM_PSEUDONYM_KEY"):
        step.setup()


def test_steps__pickle_holds_no_secret(tmp_path: Path) -> None:
    secret = pseudonym_source(tmp_path).ensure({})
    step = RedactAndTag(tag_config(tmp_path))
    assert secret.encode() not in pickle.dumps(tag_config(tmp_path))
    assert secret not in repr(vars(step))


def test_steps__on_the_runner(registry: Callable[[], FileRegistry], tmp_path: Path) -> None:
    pseudonym_source(tmp_path).ensure({})
    group = (chunk("telemetry", {"name": "delivered", "journey_stage": "nowhere"}, {"name": "x", "event_id": "e2"}),)
    config = DecodeConfig(MINI, {"voc.telemetry": "telemetry"}, registry, now)
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    stages = (
        pipeline
        | "Groups" >> beam.Create([group])
        | "Decode" >> beam.ParDo(DecodeChunks(config))
        | "Tag" >> beam.ParDo(RedactAndTag(tag_config(tmp_path)))
        | "Stages" >> beam.FlatMap(lambda tagged: [stage for part in tagged for stage in part.columns["stage"]])
    )
    assert_that(stages, equal_to(["deliver", "unassigned"]))
    result = pipeline.run()
    result.wait_until_finish()
    [counter] = result.metrics().query(MetricsFilter().with_name("ignored_hints"))["counters"]
    assert counter.committed == 1


def test_group_coder__beam_asks_it_for_the_size_and_nothing_is_encoded(
    registry: Callable[[], FileRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pseudonym_source(tmp_path).ensure({})
    group = (chunk("telemetry", {"name": "delivered"}, {"name": "x", "event_id": "e2"}),)
    config = DecodeConfig(MINI, {"voc.telemetry": "telemetry"}, registry, now)
    asked: list[int] = []

    def size(_coder: GroupCoder, value: TaggedGroup) -> int:
        asked.append(sum(len(part.offsets) for part in value))
        return asked[-1]

    assert GroupCoder().estimate_size(group) == 3
    assert GroupCoder().decode(GroupCoder().encode(group)) == group
    monkeypatch.setattr(GroupCoder, "estimate_size", size)
    monkeypatch.setattr(GroupCoder, "encode", lambda *_: pytest.fail("a group was encoded"))
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        (
            pipeline
            | "Groups" >> beam.Create([group], reshuffle=False)
            | "Decode" >> beam.ParDo(DecodeChunks(config))
            | "Tag" >> beam.ParDo(RedactAndTag(tag_config(tmp_path)))
            | "End" >> beam.Map(len)
        )
    assert asked == [2, 2]


@dataclass
class Helpful:
    """A model that sees a call for help in everything."""

    version: str
    stages: Sequence[str] = ("help",)

    def predict(self, texts: Sequence[str], wanted: Sequence[bool]) -> Predicted:
        return Predicted([Prediction("help", "", 0.9) if want else None for want in wanted], [None] * len(texts))


@dataclass
class Publisher:
    """Models under their versions, the published one, what was loaded, and a clock; satisfies `steps.Models`."""

    published: str | None = None
    loaded: list[str] = field(default_factory=list)
    looks: int = 0
    told: int = 0
    seconds: float = 1_000.0

    def active_model(self) -> str | None:
        self.looks += 1
        return self.published

    def load_model(self, version: str) -> TextModel:
        self.loaded.append(version)
        return Helpful(version)


def test_tag__takes_a_new_model_when_told_or_after_a_while_but_never_within_a_group(
    registry: Callable[[], FileRegistry], tmp_path: Path
) -> None:
    pseudonym_source(tmp_path).ensure({})
    decode = DecodeChunks(DecodeConfig(MINI, {"voc.flag": "flag"}, registry, now))
    decode.setup()
    flag = {"flag_kind": "idea", "text": "hm"}
    [group] = decode.process((chunk("flag", flag), chunk("flag", {**flag, "event_id": "e2"})))
    publisher = Publisher()
    config = replace(
        tag_config(tmp_path),
        open_models=lambda: publisher,
        model_changes=lambda: publisher.told,
        monotonic=lambda: publisher.seconds,
    )
    step = RedactAndTag(config)
    step.setup()

    def versions() -> list[tuple[str | None, str]]:
        [tagged] = step.process(group)
        return [(part.model_version, part.columns["stage"][0]) for part in tagged]

    assert versions() == [(None, "unassigned")] * 2
    publisher.published = "v1"
    publisher.seconds += LOOK_SECONDS - 1
    assert versions() == [(None, "unassigned")] * 2
    publisher.seconds += 1
    assert versions() == [("v1", "help")] * 2
    publisher.published = "v2"
    publisher.told += 1
    assert versions() == [("v2", "help")] * 2
    publisher.seconds += LOOK_SECONDS
    assert versions() == [("v2", "help")] * 2
    publisher.published = None
    publisher.told += 1
    assert versions() == [(None, "unassigned")] * 2
    assert publisher.loaded == ["v1", "v2"]
    assert publisher.looks == 5
