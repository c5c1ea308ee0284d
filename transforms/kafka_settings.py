"""How to reach Kafka: the settings of the source, secrets by reference, and clients made from them."""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError

from vocbeam.schemas.errors import ConfigError, SourceError
from vocbeam.schemas.records import PartitionKey
from vocbeam.schemas.secrets import Hidden
from vocbeam.transforms.chunking import Bounds

CONNECT_TIMEOUT_MS = 8_000
"""Longest wait for a first broker; below the 10 s within which a requested stop must end."""

REQUEST_TIMEOUT_MS = 5_000
"""Longest wait for an answer about metadata and offsets."""

RECONNECT_MS = 2_000
"""Longest pause between two attempts to reach a broker: kafka-python's own, 30 s, outlasts most restarts of one."""

OWNED = frozenset(
    {
        "auto_offset_reset",
        "bootstrap_servers",
        "enable_auto_commit",
        "group_id",
        "group_instance_id",
        "isolation_level",
        "key_deserializer",
        "value_deserializer",
    }
)
"""Consumer settings that correctness rests on: the source sets them itself."""

SECRETS = frozenset({"sasl_plain_password", "ssl_password"})
"""Settings whose value must be a reference, since configuration travels in the job graph."""

PROXIES = frozenset({"proxy_url", "socks5_proxy"})
"""Settings whose value may hold a user and a password before an @."""

_REFERENCE = re.compile(r"\$\{(\w+)\}|file:(.+)")


ClientName = Literal["kafka-python", "librdkafka"]
"""Libraries that the source can fetch records with."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What to read and how. Picklable, and without secrets: they are read where a reader connects.

    `consumer` holds further settings of kafka-python's consumer (SASL, TLS, timeouts), by its names; a value
    `${NAME}` or `file:PATH` is replaced in the worker by that environment variable or by that file's content.
    `group_id` names the group under which committed offsets are published for lag monitors; None publishes none.
    `read_shards` are those of the `shards` that this pipeline reads; None reads all of them.
    `stop_at` maps (topic, partition) to the offset at which reading ends; None reads on for ever. `client` fetches the
    records; everything else is asked with kafka-python.
    """

    topics: tuple[str, ...]
    bootstrap: str
    consumer: Mapping[str, Any] = field(default_factory=dict)
    group_id: str | None = "vocbeam"
    shards: int = 1
    read_shards: tuple[int, ...] | None = None
    bounds: Bounds = field(default_factory=Bounds)
    bundle_seconds: float = 0.5
    idle_wait_seconds: float = 0.1
    metadata_refresh_seconds: float = 3.0
    publish_seconds: float = 5.0
    outage_seconds: float = 120.0
    stop_at: Mapping[tuple[str, int], int] | None = None
    client: ClientName = "kafka-python"

    def __post_init__(self) -> None:
        if not self.topics:
            raise ConfigError("no topics to read; name at least one")
        if len(set(self.topics)) != len(self.topics):
            raise ConfigError(f"topics {', '.join(self.topics)}: a topic is named twice")
        if self.shards < 1:
            raise ConfigError(f"shards is {self.shards}; it must be at least 1")
        if not 0 < self.bundle_seconds <= 5:
            raise ConfigError(f"bundle_seconds is {self.bundle_seconds}; it must be above 0 and at most 5")
        for name, value in self.consumer.items():
            check_setting(name, value)


def check_setting(name: str, value: object) -> None:
    """Raises ConfigError for a consumer setting that is unknown, owned by the source, or a secret in the clear."""
    if name in OWNED:
        raise ConfigError(f"consumer setting {name} is set by vocbeam itself; leave it out")
    if name not in KafkaConsumer.DEFAULT_CONFIG:
        raise ConfigError(f"kafka-python has no consumer setting {name}; its names are like security_protocol")
    secret = name in SECRETS or (name in PROXIES and "@" in str(value))
    if secret and not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
        raise ConfigError(
            f"consumer setting {name} must be a reference, ${{ENV_NAME}} or file:PATH, not the secret itself"
        )


def parse_settings(text: str) -> dict[str, Any]:
    """Consumer settings from the text of a file: a line each, `name = value`; `#` starts a comment line.

    Names may be written with dots, as Kafka's own tools do. Values that are JSON (numbers, true, null) are read so,
    others are text. Raises ConfigError naming the line.
    """
    settings: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise ConfigError(f"line {number} of the consumer settings is not of the form name = value")
        name = name.replace(".", "_")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
        try:
            check_setting(name, settings[name])
        except ConfigError as error:
            raise ConfigError(f"line {number}: {error}") from error
    return settings


def resolve(settings: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Replaces `${NAME}` and `file:PATH` values by what they refer to; raises ConfigError when that is missing."""
    resolved = {}
    for name, value in settings.items():
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            resolved[name] = value
        elif match[1]:
            if match[1] not in environ:
                raise ConfigError(f"consumer setting {name} refers to {match[1]}, which is not in the environment")
            resolved[name] = Hidden(environ[match[1]])
        else:
            try:
                resolved[name] = Hidden(Path(match[2]).read_text(encoding="utf-8").rstrip("\r\n"))
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise ConfigError(f"consumer setting {name} refers to {match[2]}: {reason}") from error
            except UnicodeDecodeError:
                # Without its cause, which holds the secret.
                raise ConfigError(f"consumer setting {name} refers to {match[2]}: not UTF-8 text") from None
    return resolved


def connect_consumer(config: SourceConfig) -> KafkaConsumer:
    """A consumer without a group, which decides nothing by itself: no reset, no commit, committed records only.

    Raises SourceError when no broker answers within 8 s, ConfigError for a bad setting.
    """
    settings = {
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "fetch_max_bytes": config.bounds.group_bytes,
        **resolve(config.consumer, os.environ),
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "group_id": None,
        "allow_auto_create_topics": False,
    }
    return _connect(KafkaConsumer, config, settings)


def connect_admin(config: SourceConfig) -> KafkaAdminClient:
    """A client for metadata and for publishing group offsets; raises as `connect_consumer` does."""
    settings = {
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        **resolve(config.consumer, os.environ),
    }
    return _connect(
        KafkaAdminClient, config, {k: v for k, v in settings.items() if k in KafkaAdminClient.DEFAULT_CONFIG}
    )


def _connect(client: type, config: SourceConfig, settings: Mapping[str, Any]) -> Any:
    check_tls_files(settings)
    with noting_refusals() as refusals:
        try:
            return client(bootstrap_servers=config.bootstrap.split(","), **settings)
        except KafkaTimeoutError as error:
            raise SourceError(no_answer(config.bootstrap, settings, refusals)) from error
        except KafkaError as error:
            raise SourceError(
                f"Kafka at {config.bootstrap} refused the connection: {type(error).__name__}; check --consumer-config"
            ) from error


def check_tls_files(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for certificates and keys that can't be used: kafka-python would try until its time is up.

    OpenSSL would even ask the terminal for the password of a key, where none is given.
    """
    context = ssl.create_default_context()
    trusted, certificate = settings.get("ssl_cafile"), settings.get("ssl_certfile")
    if trusted:
        _use("ssl_cafile", trusted, lambda: context.load_verify_locations(trusted))
    if certificate:
        key, password = settings.get("ssl_keyfile"), settings.get("ssl_password") or ""
        what = f"{certificate} (with ssl_keyfile and ssl_password)"
        _use("ssl_certfile", what, lambda: context.load_cert_chain(certificate, key, password))


def _use(name: str, what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"the certificate or key of setting {name}, {what}, can't be used: {reason}; check the files, that they "
            "belong together, and the key's password"
        ) from error


def no_answer(bootstrap: str, settings: Mapping[str, Any], refusals: Sequence[Exception]) -> str:
    """What to say when no broker could be used, given what kafka-python met."""
    protocol = str(settings.get("security_protocol", "PLAINTEXT"))
    reasons = [str(refusal) for refusal in refusals if not isinstance(refusal, KafkaTimeoutError)]
    about_tls = [reason for reason in reasons if "SSL" in reason]
    if about_tls:
        return (
            f"no encrypted connection to Kafka at {bootstrap}: {about_tls[-1]}; check ssl_cafile, that the brokers' "
            "certificates are valid for the host names in --bootstrap, and ssl_certfile if they ask for a certificate"
        )
    if any("disconnected" in reason or "SASL" in reason.upper() for reason in reasons):
        hint = "sasl_mechanism, user and password" if "SASL" in protocol else "security_protocol (TLS, SASL)"
        return f"Kafka at {bootstrap} closes each connection while it is being set up ({protocol}); check {hint}"
    return (
        f"no Kafka broker answered at {bootstrap}; start one (vocbeam broker start) or name another (--bootstrap, "
        "VOCBEAM_BOOTSTRAP), and check security_protocol if it expects TLS or SASL"
    )


@contextmanager
def noting_refusals() -> Iterator[list[Exception]]:
    """Collects why kafka-python could not connect: it logs that, and in the end raises only that time is up."""
    refusals: list[Exception] = []
    logger = logging.getLogger("kafka.net.manager")
    shown_from = logger.getEffectiveLevel()

    def note(record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        refusals.extend(argument for argument in arguments if isinstance(argument, Exception))
        return record.levelno >= shown_from

    level = logger.level
    logger.setLevel(min(shown_from, logging.WARNING))
    logger.addFilter(note)
    try:
        yield refusals
    finally:
        logger.removeFilter(note)
        logger.setLevel(level)


def discover(admin: KafkaAdminClient, topics: tuple[str, ...]) -> dict[TopicPartition, PartitionKey]:
    """Topic-partitions that exist now, with the identity of cluster and topic; topics that don't exist are left out.

    Raises SourceError for topics that this account may not see.
    """
    cluster_id = admin.describe_cluster()["cluster_id"]
    described = admin.describe_topics(list(topics))
    forbidden = [t["name"] for t in described if t["error_code"] == TopicAuthorizationFailedError.errno]
    if forbidden:
        raise SourceError(
            f"Kafka lets this account not see {', '.join(forbidden)}; grant it READ and DESCRIBE on the topics, and "
            "READ on the group of --group-id"
        )
    return {
        TopicPartition(topic["name"], partition["partition_index"]): PartitionKey(
            cluster_id, str(topic["topic_id"]), topic["name"], partition["partition_index"]
        )
        for topic in described
        if topic["error_code"] == 0
        for partition in topic["partitions"]
    }


def topic_ids(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, str]:
    """Topic → id of its present incarnation; topics that don't exist are left out."""
    described = admin.describe_topics(sorted(topics))
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic["error_code"] == 0}


def edge_offsets(
    admin: KafkaAdminClient, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """The first offset that Kafka holds of each topic-partition, and the one behind its last committed record."""
    if not partitions:
        return {}
    beginnings, ends = (
        admin.list_partition_offsets(dict.fromkeys(partitions, spec), "read_committed", REQUEST_TIMEOUT_MS)
        for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    )
    return {tp: (beginnings[tp].offset, ends[tp].offset) for tp in partitions}


def cannot_read(bootstrap: str, why: str, partitions: Iterable[TopicPartition]) -> SourceError:
    """What to raise when Kafka refuses a consumer."""
    names = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in partitions)
    return SourceError(f"Kafka at {bootstrap} can't be read: {why} for {names}; check the broker's log and the ACLs")


def find_end_offsets(config: SourceConfig) -> dict[tuple[str, int], int]:
    """End offset (of committed records) of every topic-partition that exists now, to be used as `stop_at`.

    Raises SourceError when no broker answers or none of the topics exists.
    """
    admin = connect_admin(config)
    try:
        consumer = connect_consumer(config)
        try:
            partitions = list(discover(admin, config.topics))
            if not partitions:
                raise SourceError(
                    f"none of the topics {', '.join(config.topics)} exists at {config.bootstrap}; create them "
                    "(vocbeam produce or vocbeam simulate do) or check --topic-prefix"
                )
            ends = consumer.end_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
        finally:
            consumer.close()
    except KafkaError as error:
        raise SourceError(f"Kafka at {config.bootstrap} gave no end offsets: {type(error).__name__}") from error
    finally:
        admin.close()
    return {(partition.topic, partition.partition): end for partition, end in ends.items()}
