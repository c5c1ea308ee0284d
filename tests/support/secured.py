"""A Kafka broker that demands encryption and a name, with the rights that docs/security.md gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.support.reaper import Reaper
from tests.support.tls import Authority
from vocbeam.deploy.broker import HOST, Broker, BrokerOptions, free_port, start_broker, stop_broker

READER, PRODUCER, CERTIFICATE = "vocbeam", "producer", "vocbeam-worker"
"""Names at Kafka: two with a password, one by certificate."""


@dataclass(frozen=True)
class SecuredKafka:
    """Addresses of the broker's listeners; `plain` is the administrator's."""

    broker: Broker
    sasl: str
    mutual: str
    expired: str

    @property
    def plain(self) -> str:
        """Listener without encryption, whose clients may do everything."""
        return self.broker.bootstrap

    def let_see(self, topic: str) -> None:
        """Lets READER see that a topic exists, and not read it."""
        self.let(READER, [ACLOperation.DESCRIBE], topic)

    def let(
        self,
        name: str,
        operations: Sequence[ACLOperation],
        topic: str,
        pattern: ACLResourcePatternType = ACLResourcePatternType.LITERAL,
    ) -> None:
        """Gives a name rights on a topic, or on all whose names begin so."""
        resource = ResourcePattern(ResourceType.TOPIC, topic, pattern)
        with KafkaAdminClient(bootstrap_servers=self.plain) as admin:
            admin.create_acls(
                [ACL(f"User:{name}", "*", what, ACLPermissionType.ALLOW, resource) for what in operations]
            )


@contextmanager
def secured_kafka(
    home: Path, authority: Authority, passwords: dict[str, str], reaper: Reaper, prefix: str
) -> Iterator[SecuredKafka]:
    """The broker while the context lasts. `passwords` maps names to SCRAM passwords; topics begin with `prefix`."""
    ports = {name: free_port() for name in ("ADMIN", "SASL", "MUTUAL", "EXPIRED")}
    server, expired = authority.issue("kafka"), authority.issue("kafka-expired", expired=True)
    settings = {
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items()),
        "listener.security.protocol.map": "ADMIN:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,EXPIRED:SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "ADMIN",
        "ssl.keystore.type": "PEM",
        "ssl.truststore.type": "PEM",
        "ssl.keystore.location": str(server.both),
        "ssl.truststore.location": str(authority.certificate),
        "listener.name.expired.ssl.keystore.location": str(expired.both),
        "listener.name.expired.ssl.keystore.type": "PEM",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.sasl.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }
    controller = free_port()
    settings["listeners"] += f",CONTROLLER://{HOST}:{controller}"
    settings["advertised.listeners"] = ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())
    options = BrokerOptions(
        home=home, port=ports["ADMIN"], controller_port=controller, timeout_s=180, settings=settings
    )
    broker = start_broker(options)
    reaper.watch(broker.pid)
    try:
        with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
            admin.alter_user_scram_credentials(
                [
                    UserScramCredentialUpsertion(name, ScramMechanism.SCRAM_SHA_512, password)
                    for name, password in passwords.items()
                ]
            )
            admin.create_acls(list(_rights(prefix)))
        addresses = (f"{HOST}:{ports[name]}" for name in ("SASL", "MUTUAL", "EXPIRED"))
        yield SecuredKafka(broker, *addresses)
    finally:
        stop_broker(home)


def _rights(prefix: str) -> Iterator[ACL]:
    topics = ResourcePattern(ResourceType.TOPIC, f"{prefix}.", ACLResourcePatternType.PREFIXED)
    group = ResourcePattern(ResourceType.GROUP, "vocbeam", ACLResourcePatternType.LITERAL)
    for name in (READER, f"CN={CERTIFICATE}"):
        for resource in (topics, group):
            for operation in (ACLOperation.READ, ACLOperation.DESCRIBE):
                yield ACL(f"User:{name}", "*", operation, ACLPermissionType.ALLOW, resource)
    for operation in (ACLOperation.CREATE, ACLOperation.WRITE, ACLOperation.DESCRIBE):
        yield ACL(f"User:{PRODUCER}", "*", operation, ACLPermissionType.ALLOW, topics)
