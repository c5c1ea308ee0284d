"""Topics of one test on the session's broker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kafka.admin import KafkaAdminClient

from vocbeam.deploy.broker import create_topics
from vocbeam.schemas.records import EVENT_TYPES


@dataclass
class Topics:
    """Creates topics under a prefix that no other test has, and removes them."""

    bootstrap: str
    prefix: str
    created: list[str] = field(default_factory=list)

    def name(self, event: str) -> str:
        """`<prefix>.<event>`, as the option --topic-prefix makes it."""
        return f"{self.prefix}.{event}"

    def create(self, event: str, partitions: int = 1, settings: Mapping[str, str] | None = None) -> str:
        """Create the topic of one event type; its name."""
        topic = self.name(event)
        self.created += create_topics(self.bootstrap, {topic: partitions}, settings)
        return topic

    def create_all(self, partitions: int = 1) -> list[str]:
        """Create the topics of all event types; their names."""
        names = [self.name(event) for event in EVENT_TYPES]
        self.created += create_topics(self.bootstrap, dict.fromkeys(names, partitions))
        return names

    def remove(self) -> None:
        """Delete what was created."""
        with KafkaAdminClient(bootstrap_servers=self.bootstrap) as admin:
            admin.delete_topics(self.created)
        self.created = []
