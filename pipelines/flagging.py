"""Raising flags: what an employee says becomes an event on Kafka like any other."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.produce import Router, key_of, sender
from vocbeam.schemas import wire
from vocbeam.schemas.contracts import DEFAULT_PREFIX
from vocbeam.schemas.governance import Governance
from vocbeam.schemas.registry import Registry
from vocbeam.transforms.flags import NewFlag, flag_record
from vocbeam.transforms.mapping import MappedEvent

PARTITIONS = 1
"""Of the topic of flags where it must be created: people write no more than one partition takes."""

PATIENCE: Mapping[str, Any] = {
    "max_block_ms": 10_000,
    "request_timeout_ms": 10_000,
    "delivery_timeout_ms": 15_000,
    "linger_ms": 0,
}
"""Settings of the producer: somebody waits for the answer."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Where flags go; `producer` are settings of kafka-python's producer."""

    bootstrap: str
    registry: Registry
    topic_prefix: str = DEFAULT_PREFIX
    producer: Mapping[str, Any] = field(default_factory=dict)


def raise_flag(
    flag: NewFlag,
    governance: Governance,
    channel: Channel,
    *,
    now: Callable[[], int] = now_us,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> str:
    """Sends one flag and waits until the broker has it; its event id, by which it is found once it is loaded.

    `now` gives UTC microseconds. Raises Refused for a flag that breaks a rule, before anything is sent; SourceError
    where Kafka does not take it in time (it may have arrived all the same), ConfigError or SchemaError where settings
    or schema are wrong.
    """
    record = flag_record(flag, governance, event_id=new_id(), event_time=now())
    settings = {**PATIENCE, **channel.producer}
    with sender(channel.bootstrap, settings) as send:
        router = Router(channel.registry, channel.topic_prefix, channel.bootstrap, PARTITIONS, settings)
        topic, schema_id = router.route("flag")
        send(topic, key_of(MappedEvent("flag", record, "")), wire.encode("flag", record, schema_id))
    return str(record["event_id"])
