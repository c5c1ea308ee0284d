"""Consumer settings in librdkafka's names: one file of settings serves both client libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vocbeam.schemas.errors import ConfigError

NAMES = {
    "check_crcs": "check.crcs",
    "client_dns_lookup": "client.dns.lookup",
    "client_id": "client.id",
    "client_rack": "client.rack",
    "connections_max_idle_ms": "connections.max.idle.ms",
    "fetch_max_bytes": "fetch.max.bytes",
    "fetch_max_wait_ms": "fetch.wait.max.ms",
    "fetch_min_bytes": "fetch.min.bytes",
    "max_in_flight_requests_per_connection": "max.in.flight.requests.per.connection",
    "max_partition_fetch_bytes": "max.partition.fetch.bytes",
    "metadata_max_age_ms": "metadata.max.age.ms",
    "receive_buffer_bytes": "socket.receive.buffer.bytes",
    "receive_message_max_bytes": "receive.message.max.bytes",
    "reconnect_backoff_max_ms": "reconnect.backoff.max.ms",
    "reconnect_backoff_ms": "reconnect.backoff.ms",
    "request_timeout_ms": "socket.timeout.ms",
    "retry_backoff_ms": "retry.backoff.ms",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_password": "sasl.password",
    "sasl_plain_username": "sasl.username",
    "security_protocol": "security.protocol",
    "send_buffer_bytes": "socket.send.buffer.bytes",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_check_hostname": "ssl.endpoint.identification.algorithm",
    "ssl_ciphers": "ssl.cipher.suites",
    "ssl_crlfile": "ssl.crl.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
}
"""kafka-python's name → librdkafka's, where both mean the same."""

OWN = frozenset({"bootstrap_timeout_ms"})
"""Settings that the consumer itself acts on."""

WITHOUT_EFFECT = frozenset({"max_poll_records", "enable_incremental_fetch_sessions"})
"""Settings that change nothing of what is read: how many records are polled is for the group's bounds to say."""

MECHANISMS = frozenset({"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"})
"""SASL mechanisms that librdkafka's Python package is built with and that need no code of one's own."""


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by kafka-python's names → the same by librdkafka's names, secrets in the clear.

    Raises ConfigError for one that librdkafka has nothing like.
    """
    translated: dict[str, Any] = {}
    for name, value in settings.items():
        if name in OWN or name in WITHOUT_EFFECT or value is None:
            continue
        if name not in NAMES:
            raise ConfigError(
                f"librdkafka has nothing like consumer setting {name}; leave it out, or read with --consumer "
                "kafka-python"
            )
        if name == "sasl_mechanism" and value not in MECHANISMS:
            raise ConfigError(
                f"with librdkafka sasl_mechanism may be {', '.join(sorted(MECHANISMS))}, not {value}; choose one of "
                "these, or read with --consumer kafka-python"
            )
        if name == "ssl_check_hostname":
            value = "https" if value else "none"
        translated[NAMES[name]] = value
    return translated
