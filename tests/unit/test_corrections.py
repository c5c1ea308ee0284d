"""Corrections from CSV: what a file may say, and that a file which is wrong anywhere is refused with the line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.support.warehouse import mini
from vocbeam.schemas.corrections import Correction, Target
from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.corrections import (
    CORRECTION_COLUMNS,
    INFORMING_COLUMNS,
    LONGEST_NOTE,
    SHOWN_ERRORS,
    Read,
    correction,
    raise_wrong,
    read_corrections,
    write_rows,
)

GOVERNANCE = mini()


def read(folder: Path, text: str, encoding: str = "utf-8") -> Read:
    path = folder / "fixes.csv"
    path.write_text(text, encoding=encoding, newline="")
    return read_corrections(path, GOVERNANCE)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder / 'fixes.csv'}:", "")


def test_read__events_tickets_and_what_nobody_reviewed(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "source,event_type,event_id,ticket_id,stage,department,topic,reviewer,note\n"
        "desk,flag,f1,,help,,,,\n"
        '\n"desk",,, t-9 ,deliver,care, lost ,Eva,"two\nlines"\n'
        "desk,survey,s1,,,,,Eva,\n"
        "desk,,s2,,unassigned,,,,\n",
    )
    assert found == Read(
        [
            # The department is that of the stage's owner, unless the person says otherwise.
            (2, Correction(Target("desk", "flag", "f1"), "help", "care")),
            (4, Correction(Target("desk", ticket_id="t-9"), "deliver", "care", "lost", "Eva", "two\nlines")),
            (7, Correction(Target("desk", None, "s2"), "unassigned", "unassigned")),
        ],
        not_reviewed=1,
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_read__as_spreadsheets_save_it(tmp_path: Path, encoding: str, separator: str) -> None:
    text = "source,event_id,stage\r\ndépôt,f1,help\r\n,,\r\n".replace(",", separator)
    assert read(tmp_path, text, encoding).corrections == [(2, Correction(Target("dépôt", None, "f1"), "help", "care"))]


def test_read__nothing_but_a_header(tmp_path: Path) -> None:
    assert read(tmp_path, "source,ticket_id,stage\n") == Read([], 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: empty; the first line must name columns: source, event_type"),
        ("\n\n", "1: empty"),
        ("source,event_id,stage,departement\n", "1: column 'departement'; allowed:"),
        ("source,event_id,stage,stage\n", "1: column 'stage' is there twice"),
        ("source,stage\na,help\n", "1: no column event_id or ticket_id; the file has source, stage"),
        ("event_id,topic\n", "1: no column source, stage"),
        ("source,event_id,stage\na,1,helpp\n", "2: stage 'helpp'; allowed: deliver, help, unassigned; did you"),
        ("source,event_id,stage,department\na,1,help,carre\n", "2: department 'carre'; allowed: logistics, care; d"),
        ("source,event_id,stage,department\na,1,help,unassigned\n", "2: department 'unassigned'"),
        ("source,event_id,stage,department\na,1,,care\n", "2: no stage; allowed: deliver, help, unassigned"),
        ("source,event_id,stage\n,1,help\n", "2: no source"),
        ("source,event_id,stage\na,,help\n", "2: neither an event id nor a ticket id"),
        ("source,event_id,ticket_id,stage\na,1,2,help\n", "2: an event id and a ticket id"),
        ("source,event_type,event_id,stage\na,mail,1,help\n", "2: event type 'mail'; allowed: survey, ticket"),
        ("source,event_type,ticket_id,stage\na,flag,1,help\n", "2: a ticket id with event type flag"),
        ("source,event_id,stage\na,1,help,care\n", "2: 4 fields, but 3 columns"),
        ("source,event_id,stage\na,1\n", "2: 2 fields, but 3 columns"),
        ("source,event_id,stage,topic\na,1,help,a\x00b\n", "2: topic of 3 characters; allowed: up to 200"),
        (f"source,event_id,stage,note\na,1,help,{'x' * (LONGEST_NOTE + 1)}\n", "2: note of 2,001 characters"),
        ('source,event_id,stage\na,1,"help\n', "Error; it must be CSV in UTF-8"),
    ],
)  # fmt: skip
def test_read__wrong_files_name_line_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_read__other_encodings_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "fixes.csv"
    path.write_bytes("source,event_id,stage\ndépôt,1,help\n".encode("latin-1"))
    for wrong in (path, tmp_path / "absent.csv"):
        with pytest.raises(ConfigError, match="must be CSV in UTF-8"):
            read_corrections(wrong, GOVERNANCE)


def test_read__all_wrong_lines_at_once_up_to_a_limit(tmp_path: Path) -> None:
    rows = "".join(f"a,{i},nowhere\n" for i in range(SHOWN_ERRORS + 5))
    lines = refused(tmp_path, "source,event_id,stage\na,x,help\n" + rows).split("\n")
    assert [line.split(":")[0] for line in lines[:SHOWN_ERRORS]] == [str(3 + i) for i in range(SHOWN_ERRORS)]
    assert lines[SHOWN_ERRORS:] == [
        "and 5 rows more", "nothing was changed; correct the file and import it again",
    ]  # fmt: skip


def test_raise_wrong__nothing_wrong(tmp_path: Path) -> None:
    raise_wrong(tmp_path, [])


def test_write__reads_back_and_runs_no_formula(tmp_path: Path) -> None:
    file = io.StringIO()
    row = {
        "source": "desk", "event_id": "=1+1", "stage": "help", "note": "'quoted', and\nmore", "topic": None,
        "text": "@SUM(A1)", "tag_confidence": 0.5,
    }  # fmt: skip
    write_rows(file, (*CORRECTION_COLUMNS, *INFORMING_COLUMNS), [row])
    assert "\"'=1" not in file.getvalue()
    assert ",'=1+1," in file.getvalue()
    assert ",'@SUM(A1)," in file.getvalue()
    [(line, read_back)] = read(tmp_path, file.getvalue()).corrections
    assert line == 2
    assert read_back == Correction(Target("desk", None, "=1+1"), "help", "care", None, None, "'quoted', and\nmore")


def test_correction__no_stage_of_the_file_is_taken_for_granted() -> None:
    with pytest.raises(ValueError, match="no source"):
        correction({"event_id": "1", "stage": "help"}, GOVERNANCE)
