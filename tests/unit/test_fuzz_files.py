"""Damaged governance and mapping files: each is accepted, or refused with file and line; there is no other error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.fuzzing import FUZZED
from tests.support.warehouse import MINI
from vocbeam.schemas.errors import ConfigError, GovernanceError
from vocbeam.schemas.governance import check, measured_by, parse_governance
from vocbeam.transforms.mapping import load_mapping

GOVERNANCE = MINI.read_text(encoding="utf-8")
MAPPING = """\
source: shop
timezone: America/Sao_Paulo
notes: Orders of a shop.
files:
  orders: {path: orders.csv.gz, delimiter: ";", encoding: latin-1}
  log: {path: log.jsonl, format: jsonl, columns: [page, ts]}
events:
  - event: outcome
    rows: orders
    select: SELECT _row, id AS event_id FROM orders
  - {event: telemetry, rows: log, select: SELECT _row FROM log}
"""
UNFOLDING = "l0: &l0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 8)}]\n" for n in range(1, 9)
)
"""Nine lines that are 8^9 values once every alias is written out."""

VALUES = (
    "", "~", "null", "true", "yes", "0", "-1", "1", "1.5", ".nan", "-.inf", "1e400", "0x1F", "0o17", "1_000",
    "9" * 400, "9" * 5_000, "2017-11-11", "2017-02-30", "0001-01-01", "9999-12-31", "2017-11-11T10:00:00Z", "12:30:45",
    "[]", "{}", "[[]]", "[1, 2]", "{a: 1}", "{? [a]: b}", "&x [*x]", "&y {a: *y}", "*nowhere", "<<: *nowhere",
    "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!python/object:os.system x", "!!timestamp 2017-13-45", "!!float x",
    "!!int x", "!own thing", "'unclosed", '"\\x"', '"\\ud800"', '"\\0"', "|", ">-", "%", "@", "`", "- -", "? x", ":",
    "nps", "csat", "currency", "survey", "logistics", "other", "unassigned", "*", "'*'", "ü" * 300, "x" * 3_000,
    "\u2028", "\x85", "\ufeff", "../../etc/passwd", "America/Nowhere", "Etc", "/etc/localtime", "09:00-25:00", "5d",
)  # fmt: skip
"""What stands in place of a value, a key, a line or a part of one."""


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """`text` after one to four changes of values, keys, lines, indentation or single characters."""
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        number = draw(st.integers(0, len(lines) - 1))
        line = lines[number]
        words = list(re.finditer(r"[^\s,:{}\[\]]+", line))
        change = draw(st.integers(0, 7))
        if change <= 3 and words:
            start, end = draw(st.sampled_from(words)).span()
            lines[number] = line[:start] + draw(st.sampled_from(VALUES)) + line[end:]
        elif change == 4:
            del lines[number]
        elif change == 5:
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif change == 6:
            lines[number] = " " * draw(st.integers(0, 5)) + line.strip()
        else:
            at = draw(st.integers(0, len(line)))
            lines[number] = line[:at] + draw(st.characters() | st.sampled_from("{}[]:,-'\"&*#!\t\0")) + line[at:]
        text = "\n".join(lines)
    return text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOVERNANCE.replace("2017-01-01", "2017-02-30"),
            r"g\.yaml:46: not valid YAML: .* \(day is out of range for month",
        ),
        ("!!float x: 1\n" + GOVERNANCE, r"g\.yaml:1: not valid YAML: this value or key can't be read"),
        (GOVERNANCE.replace("Corner Shop", '"\\ud800"'), r"g\.yaml:3: not valid YAML: .* surrogates not allowed"),
        ("version: " + "9" * 5_000, r"g\.yaml:1: not valid YAML: .* \(Exceeds the limit"),
        ("[" * 1_000, r"g\.yaml: not valid YAML: it can't be read \(maximum recursion depth exceeded"),
        ("&all\nversion: *all\n", r"g\.yaml:1: more than 100,000 values or 50 levels"),
        (UNFOLDING + GOVERNANCE, r"g\.yaml:1: more than 100,000 values or 50 levels"),
    ],
    ids=("no such day", "no such number", "half a character", "huge number", "deep", "within itself", "unfolding"),
)
def test_parse_governance__names_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(GovernanceError, match=message):
        parse_governance(text, "g.yaml")


@FUZZED
@given(damaged(GOVERNANCE))
def test_parse_governance__damaged_file_is_refused_by_line_or_valid(text: str) -> None:
    try:
        governance = parse_governance.__wrapped__(text, "g.yaml")
    except GovernanceError as error:
        refused = str(error)
    else:
        check(governance)
        measured_by(governance)
        return
    for line in refused.splitlines():
        assert re.match(r"g\.yaml(:\d+)?: .", line), line


@FUZZED
@given(text=damaged(MAPPING))
@example(text=MAPPING.replace("America/Sao_Paulo", "ü" * 300))
@example(text=MAPPING.replace("America/Sao_Paulo", "2017-02-30"))
@example(text="source: " + "9" * 5_000)
def test_load_mapping__damaged_file_is_refused_by_line_or_valid(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_mapping(path)
    except ConfigError as error:
        refused = str(error)
    else:
        return
    for line in refused.splitlines():
        assert re.match(rf"{re.escape(str(path))}(:\d+)?: .", line), line
