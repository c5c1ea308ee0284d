from __future__ import annotations

import pickle
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.secrets import (
    DeadLetterCipher,
    SecretSource,
    dead_letter_source,
    fingerprint,
    pseudonym_key,
    pseudonym_source,
)

SECRET = "0123456789abcdef0123456789abcdef"


def private_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_load__environment_before_named_file_before_path(tmp_path: Path) -> None:
    source = SecretSource("KEY", private_file(tmp_path / "default", "from-path\n"))
    named = private_file(tmp_path / "named", "from-named-file\n")
    assert source.load({}) == "from-path"
    assert source.load({"KEY_FILE": str(named)}) == "from-named-file"
    assert source.load({"KEY": " from-environment ", "KEY_FILE": str(named)}) == "from-environment"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o666])
def test_load__file_open_to_others(tmp_path: Path, mode: int) -> None:
    path = private_file(tmp_path / "key", SECRET, mode)
    with pytest.raises(ConfigError, match="chmod 600") as raised:
        SecretSource("KEY", path).load({})
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_load__private_file(tmp_path: Path, mode: int) -> None:
    assert SecretSource("KEY", private_file(tmp_path / "key", SECRET, mode)).load({}) == SECRET


def test_load__nothing_configured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set KEY or KEY_FILE"):
        SecretSource("KEY", tmp_path / "absent").load({})


def test_load__empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="environment variable KEY is empty"):
        SecretSource("KEY", tmp_path / "absent").load({"KEY": "  "})
    with pytest.raises(ConfigError, match="is empty"):
        SecretSource("KEY", private_file(tmp_path / "key", "\n")).load({})


def test_load__unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="can't be read"):
        SecretSource("KEY", path).load({})


def test_ensure__makes_private_file_once(tmp_path: Path) -> None:
    source = pseudonym_source(tmp_path / "home")
    secret = source.ensure({})
    assert len(secret) == 64
    assert source.ensure({}) == source.load({}) == secret
    assert stat.S_IMODE(source.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(source.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in source.path.parent.iterdir()] == [source.path.name]


def test_ensure__makes_nothing_where_configured(tmp_path: Path) -> None:
    source = pseudonym_source(tmp_path)
    assert source.ensure({"VOCBEAM_PSEUDONYM_KEY": SECRET}) == SECRET
    named = private_file(tmp_path / "named", SECRET)
    assert source.ensure({"VOCBEAM_PSEUDONYM_KEY_FILE": str(named)}) == SECRET
    assert not source.path.exists()


def ensure(source: SecretSource) -> str:
    return source.ensure({})


def test_ensure__processes_at_once_agree(tmp_path: Path) -> None:
    source = dead_letter_source(tmp_path)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        secrets = list(pool.map(ensure, [source] * 16))
    assert set(secrets) == {source.load({})}
    DeadLetterCipher(secrets[0])


def test_source__carries_names_only(tmp_path: Path) -> None:
    source = pseudonym_source(tmp_path)
    secret = source.ensure({})
    assert secret not in repr(source)
    assert secret.encode() not in pickle.dumps(source)
    assert pickle.loads(pickle.dumps(source)) == source


def test_pseudonym_key__length_and_fingerprint() -> None:
    key = pseudonym_key(SECRET)
    assert len(key) == 32
    assert key != pseudonym_key(SECRET + "0")
    assert len(fingerprint(key)) == 32
    assert fingerprint(key) == fingerprint(pseudonym_key(SECRET))
    assert fingerprint(key) != fingerprint(pseudonym_key(SECRET + "0"))
    assert fingerprint(key) not in key.hex()


def test_pseudonym_key__too_short() -> None:
    with pytest.raises(ConfigError, match="31 characters, at least 32") as raised:
        pseudonym_key(SECRET[:-1])
    assert SECRET[:-1] not in str(raised.value)


def test_cipher__round_trip_and_rotation() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    token = DeadLetterCipher(old).encrypt(b"\x00raw\xff")
    assert b"raw" not in token
    rotated = DeadLetterCipher(f"{new}, {old}")
    assert rotated.decrypt(token) == b"\x00raw\xff"
    assert DeadLetterCipher(new).decrypt(rotated.encrypt(b"later")) == b"later"
    with pytest.raises(ConfigError, match="no key in VOCBEAM_DEAD_LETTER_KEY opens"):
        DeadLetterCipher(new).decrypt(token)


@pytest.mark.parametrize("secret", ["", ",", "short", SECRET, "ключ"])
def test_cipher__no_fernet_key(secret: str) -> None:
    with pytest.raises(ConfigError, match="no Fernet key") as raised:
        DeadLetterCipher(secret)
    assert not secret.strip(",") or secret not in str(raised.value)
