"""Settings of the Kafka source: files, references to secrets, refusals."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vocbeam.schemas.errors import ConfigError, SourceError
from vocbeam.transforms.consumers import check_client, open_consumer
from vocbeam.transforms.kafka_settings import ClientName, SourceConfig, parse_settings, resolve
from vocbeam.transforms.librdkafka_settings import translate


def test_parse_settings__names_values_and_comments() -> None:
    text = "# how we log in\nsecurity.protocol = SASL_SSL\nssl_check_hostname=false\n\nfetch_max_wait_ms=250\n"
    assert parse_settings(text + "sasl_plain_password = ${KAFKA_PASSWORD}") == {
        "security_protocol": "SASL_SSL",
        "ssl_check_hostname": False,
        "fetch_max_wait_ms": 250,
        "sasl_plain_password": "${KAFKA_PASSWORD}",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no equals sign", "line 2 .* name = value"),
        ("group.id = mine", "line 2: .* group_id is set by vocbeam itself"),
        ("isolation_level = read_uncommitted", "isolation_level is set by vocbeam itself"),
        ("sasl.jaas.config = x", "no consumer setting sasl_jaas_config"),
        ("sasl_plain_password = hunter2", "sasl_plain_password must be a reference"),
        ("proxy_url = socks5://me:hunter2@proxy:1080", "proxy_url must be a reference"),
    ],
)
def test_parse_settings__refuses(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        parse_settings(f"fetch_max_wait_ms=250\n{line}")
    assert "hunter2" not in str(refusal.value)


def test_source_config__pickle_holds_the_reference_and_not_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    config = SourceConfig(topics=("t",), bootstrap="h:1", consumer={"sasl_plain_password": "${KAFKA_PASSWORD}"})
    pickled = pickle.dumps(config)
    assert b"hunter2" not in pickled
    assert pickle.loads(pickled) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topics": ()}, "no topics"),
        ({"topics": ("a", "a")}, "named twice"),
        ({"shards": 0}, "shards is 0"),
        ({"bundle_seconds": 60}, "bundle_seconds is 60"),
        ({"consumer": {"enable_auto_commit": True}}, "enable_auto_commit is set by vocbeam"),
    ],
)
def test_source_config__refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceConfig(**{"topics": ("t",), "bootstrap": "h:1", **settings})  # type: ignore[arg-type]


def test_resolve__environment_and_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("p w\n", encoding="utf-8")
    settings = {"sasl_plain_username": "${WHO}", "sasl_plain_password": f"file:{secret}", "fetch_max_wait_ms": 250}
    assert resolve(settings, {"WHO": "reader"}) == {
        "sasl_plain_username": "reader",
        "sasl_plain_password": "p w",
        "fetch_max_wait_ms": 250,
    }


def test_resolve__what_a_library_logs_of_its_settings_hides_the_secret() -> None:
    resolved = resolve({"sasl_plain_password": "${P}", "retries": 3}, {"P": "hunter2"})
    assert str(resolved) == "{'sasl_plain_password': '***', 'retries': 3}"
    assert resolved["sasl_plain_password"].encode() == b"hunter2"


@pytest.mark.parametrize("reference", ["${NOT_THERE}", "file:/not/there"])
def test_resolve__missing_reference(reference: str) -> None:
    with pytest.raises(ConfigError, match="sasl_plain_password refers to"):
        resolve({"sasl_plain_password": reference}, {})


def test_resolve__file_that_is_no_text_is_refused_without_its_bytes(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_bytes(b"hunter2\xff")
    with pytest.raises(ConfigError, match=r"sasl_plain_password refers to .*password: not UTF-8 text") as caught:
        resolve({"sasl_plain_password": f"file:{secret}"}, {})
    assert caught.value.__suppress_context__


def test_translate__one_file_serves_both_libraries() -> None:
    text = """security.protocol = SASL_SSL
sasl_mechanism = SCRAM-SHA-512
sasl_plain_username = reader
ssl_check_hostname = false
max.partition.fetch.bytes = 16384
bootstrap_timeout_ms = 300
"""
    assert translate(parse_settings(text)) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "reader",
        "ssl.endpoint.identification.algorithm": "none",
        "max.partition.fetch.bytes": 16384,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("socks5_proxy = ${PROXY}", "librdkafka has nothing like consumer setting socks5_proxy; leave it out, or read"),
        ("sasl_mechanism = GSSAPI", "with librdkafka sasl_mechanism may be PLAIN, SCRAM-SHA-256, .* not GSSAPI"),
    ],
)
def test_check_client__setting_that_only_one_library_has(line: str, message: str) -> None:
    config = SourceConfig(topics=("t",), bootstrap="h:1", consumer=parse_settings(line))
    check_client(config)
    with pytest.raises(ConfigError, match=message):
        check_client(replace(config, client="librdkafka"))


def test_check_client__library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "vocbeam.transforms.librdkafka_consumer", raising=False)
    config = SourceConfig(topics=("t",), bootstrap="h:1", client="librdkafka")
    with pytest.raises(ConfigError, match=r"librdkafka is not installed; install vocbeam\[librdkafka\]"):
        check_client(config)


def test_open_consumer__librdkafka_refuses_a_value() -> None:
    config = SourceConfig(
        topics=("t",), bootstrap="h:1", client="librdkafka", consumer={"client_dns_lookup": "somehow"}
    )
    with pytest.raises(ConfigError, match=r"librdkafka refuses a consumer setting: .*client\.dns\.lookup"):
        open_consumer(config)


@pytest.mark.parametrize("client", ["kafka-python", "librdkafka"])
def test_open_consumer__no_broker(client: ClientName) -> None:
    config = SourceConfig(topics=("t",), bootstrap="127.0.0.1:1", client=client, consumer={"bootstrap_timeout_ms": 300})
    with pytest.raises(SourceError, match=r"no Kafka broker answered at 127\.0\.0\.1:1"):
        open_consumer(config)
