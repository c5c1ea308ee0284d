"""Labels from CSV through a mapping, from our own columns, and from a governance file; bad files name their line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.support.warehouse import mini
from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.labels import Label, LabelMapping, Place, collect, load_label_mapping, phrases, read_labels

PROJECT = Path(__file__).parents[2]
FOREIGN = LabelMapping(
    text=("title", "body"),
    label="intent",
    labels={"lost": Place(stage="deliver", topic="lost"), "chat": None},
    confidence="sure",
    time="at",
    time_format="%d.%m.%Y %H:%M",
    timezone="Europe/Berlin",
)


def written(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_read_labels__through_a_mapping(tmp_path: Path) -> None:
    path = written(tmp_path, "title,body,intent,sure,at\nHi,where is it,lost,0.5,01.07.2024 14:00\n,hello,chat,,\n")
    # 14:00 in Berlin in summer is 12:00 UTC.
    expected = Label("Hi\nwhere is it", "deliver", "lost", weight=0.5, time=1_719_835_200_000_000)
    assert list(read_labels(path, FOREIGN)) == [expected]


def test_read_labels__damaged_gzip(tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress(b"text,stage\nwhere is it,deliver\n"))
    damaged[10] ^= 0xFF  # the first byte behind the header
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match="can't read the labels"):
        list(read_labels(path))


def test_read_labels__time_before_the_year_1_in_utc(tmp_path: Path) -> None:
    path = written(tmp_path, "text,stage,time\na,deliver,0001-01-01T00:00:00+01:00\n")
    (label,) = read_labels(path)
    assert label.time == -62_135_600_400_000_000


def test_read_labels__own_columns_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(
            'text,stage,topic,sentiment,group\n"late, again",deliver,,negative,c1\nfine,,,positive,\n,deliver,,,\n'
        )
    assert list(read_labels(path)) == [
        Label("late, again", "deliver", sentiment="negative", group="c1"),
        Label("fine", sentiment="positive"),
    ]


def test_read_labels__no_confidence_is_no_label(tmp_path: Path) -> None:
    text = "text,stage,confidence,sentiment,sentiment_confidence\na,deliver,0,negative,1\nb,deliver,0,negative,0\n"
    assert list(read_labels(written(tmp_path, text))) == [Label("a", None, sentiment="negative", weight=0.0)]


@pytest.mark.parametrize(
    ("text", "mapping", "told"),
    [
        ("text,stage\n", FOREIGN, r"labels\.csv:1: no column title, body, intent, sure, at"),
        ("text,stage,confidence\na,b,2\n", None, r"labels\.csv:2: confidence 2; allowed: 0 to 1"),
        ("text,stage,confidence\na,b,nan\n", None, r"labels\.csv:2: confidence nan; allowed: 0 to 1"),
        ("text,sentiment\na,meh\n", None, r"labels\.csv:2: sentiment 'meh'; allowed: negative, neutral, positive"),
        ("title,body,intent,sure,at\na,b,c,,\n", FOREIGN, r"labels\.csv:2: label 'c' is not in the mapping's labels"),
        ("title,body,intent,sure,at\na,b,lost,,noon\n", FOREIGN, r"labels\.csv:2: time data 'noon' does not match"),
    ],
)
def test_read_labels__bad_files_name_the_line(
    tmp_path: Path, text: str, mapping: LabelMapping | None, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        list(read_labels(written(tmp_path, text), mapping))


def test_read_labels__not_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"text,stage\n\xff\xfe,deliver\n")
    with pytest.raises(ConfigError, match="it must be CSV in UTF-8"):
        list(read_labels(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour: red", "colour: Extra inputs are not permitted"),
        ("timezone: Mars/Base", "names of the IANA time zone database"),
        ("text: [", "it must be YAML"),
    ],
)
def test_load_label_mapping__says_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_label_mapping(written(tmp_path, text, "map.yaml"))


@pytest.mark.parametrize("path", sorted((PROJECT / "examples" / "labels").glob("*.yaml")), ids=lambda path: path.stem)
def test_load_label_mapping__examples(path: Path) -> None:
    assert load_label_mapping(path).columns


def test_phrases__stages_and_rule_words() -> None:
    governance = mini()
    found = list(phrases(governance))
    assert found
    assert {label.stage for label in found} <= set(governance.stage_owner)
    for stage in governance.stages:
        assert stage.name in {label.text for label in found if label.stage == stage.id}


def test_collect__refuses_stages_that_nobody_owns() -> None:
    with pytest.raises(ConfigError, match="labels name stages that the governance file doesn't have: nowhere"):
        collect([Label("a", "nowhere")], mini())


def test_collect__times_of_all_or_none() -> None:
    assert collect([Label("a", "b", time=1), Label("c", "d", time=2)]).times == [1, 2]
    assert collect([Label("a", "b", time=1), Label("c", "d")]).times is None
