"""Rotating the key of dead letters, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.fernet import Fernet
from sqlalchemy import Engine, insert, select

from tests.support.warehouse import mini, new_warehouse
from vocbeam.pipelines.cli import vocbeam
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.secrets import DEAD_LETTER_ENV, DeadLetterCipher
from vocbeam.sinks.rewrap import rewrap
from vocbeam.sinks.tables import dead_letter

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
ROTATED = f"{NEW},{OLD}"
LETTER = {
    "event_type": "flag", "step": "decode", "error_class": "not_avro", "message": "", "raw_bytes": 1, "dead_at": 0,
    "run_epoch": 1,
}  # fmt: skip


@pytest.fixture
def engine(warehouse_url: str) -> Engine:
    """A warehouse with five dead letters of two topic-partitions under the old key."""
    engine = new_warehouse(warehouse_url, mini())
    cipher = DeadLetterCipher(OLD)
    places = [(1, 4), (1, 5), (2, 0), (2, 1), (2, 7)]
    rows = [
        {**LETTER, "ledger_id": ledger, "kafka_offset": at, "raw": cipher.encrypt(b"record %d" % at)}
        for ledger, at in places
    ]
    with engine.begin() as connection:
        connection.execute(insert(dead_letter), rows)
    return engine


def opened(engine: Engine, secret: str) -> list[bytes]:
    """What all dead letters hold; raises ConfigError where a key is missing."""
    c = dead_letter.c
    cipher = DeadLetterCipher(secret)
    with engine.connect() as connection:
        tokens = connection.execute(select(c.raw).order_by(c.ledger_id, c.kafka_offset)).scalars().all()
    return [cipher.decrypt(bytes(token)) for token in tokens]


def call(engine: Engine, tmp_path: Path, secret: str, *options: str) -> Result:
    url = engine.url.render_as_string(hide_password=False)
    command = ["keys", "rewrap", "--home", str(tmp_path), "--warehouse", url, *options]
    return CliRunner().invoke(vocbeam, command, env={DEAD_LETTER_ENV: secret})


def test_rewrap__afterwards_the_old_key_is_not_needed(engine: Engine, tmp_path: Path) -> None:
    held = [b"record 4", b"record 5", b"record 0", b"record 1", b"record 7"]
    assert opened(engine, ROTATED) == held
    with pytest.raises(ConfigError, match="no key in VOCBEAM_DEAD_LETTER_KEY"):
        opened(engine, NEW)
    assert call(engine, tmp_path, ROTATED, "--batch", "2", "--json").stdout == '{"dead_letters": 5, "changed": 5}\n'
    assert opened(engine, NEW) == held
    assert call(engine, tmp_path, NEW, "--json").stdout == '{"dead_letters": 5, "changed": 0}\n'


def test_rewrap__without_the_old_key_says_so_and_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    ended = call(engine, tmp_path, NEW)
    assert isinstance(ended.exception, ConfigError)
    assert "add the key it was written with" in str(ended.exception)
    assert len(opened(engine, OLD)) == 5


def test_rewrap__goes_on_where_it_was_stopped(engine: Engine) -> None:
    cipher = DeadLetterCipher(ROTATED)
    assert next(rewrap(engine, cipher.reseal, batch=2)) == (2, 2)
    assert list(rewrap(engine, cipher.reseal, batch=2)) == [(2, 0), (2, 2), (1, 1)]


def test_keys__new_makes_a_key() -> None:
    printed = CliRunner().invoke(vocbeam, ["keys", "new"], catch_exceptions=False).stdout
    cipher = DeadLetterCipher(printed.strip())
    assert cipher.decrypt(cipher.encrypt(b"x")) == b"x"
