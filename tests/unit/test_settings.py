"""Files that options name: what can't be read ends in a sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from vocbeam.pipelines.cli import vocbeam
from vocbeam.pipelines.settings import read_text
from vocbeam.schemas.errors import ConfigError


def test_read_text__file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read .*none\.yaml: No such file or directory; check the path"):
        read_text(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["run"], "--consumer-config"),
        (["web"], "--producer-config"),
        (["produce", "--events", "e.jsonl"], "--producer-config"),
        (["backfill", "old.jsonl", "--type", "ticket"], "--governance"),
    ],
)
def test_commands__refuse_a_file_that_is_no_text(
    command: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("{}\n", encoding="utf-8")
    file = tmp_path / "settings"
    file.write_bytes("# für alle".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"settings: not UTF-8 text \(byte 3\)"):
        vocbeam.main([*command, "--home", str(tmp_path), option, str(file)], standalone_mode=False)
