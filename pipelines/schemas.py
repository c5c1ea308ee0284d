"""`vocbeam schemas`: check, register and list the event contracts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from vocbeam.pipelines.settings import Home, home_option, registry_option, topic_prefix_option
from vocbeam.schemas import contracts
from vocbeam.schemas.compatibility import incompatibilities_with_all
from vocbeam.schemas.errors import SchemaError
from vocbeam.schemas.records import EVENT_TYPES, EventType
from vocbeam.schemas.registry import Registry, open_registry


@click.group()
def schemas() -> None:
    """Check, register and list the event contracts."""


@schemas.command()
@click.option(
    "--released",
    default=contracts.AVRO_FOLDER / "released",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with the released versions.  [default: the package's own]",
)
def check(released: Path) -> None:
    """Fail unless every contract can read all of its released versions."""
    broken = []
    for event_type in EVENT_TYPES:
        versions = contracts.released_versions(event_type, released)
        reasons = incompatibilities_with_all(contracts.schema_text(event_type), _labelled(event_type, versions))
        broken += reasons
        click.echo(f"{event_type:<10} {'INCOMPATIBLE' if reasons else _state(event_type, versions)}")
    refuse_unreadable(broken)


@schemas.command()
@home_option
@registry_option
@topic_prefix_option
def register(home: Home, registry: str | None, topic_prefix: str) -> None:
    """Register every contract under its topic's subject; what is already there keeps its id."""
    target = open_registry(registry, home.registry)
    for event_type in EVENT_TYPES:
        subject = contracts.subject(contracts.topic(event_type, topic_prefix))
        click.echo(f"{subject:<24} id {target.register(subject, contracts.schema_text(event_type))}")


@schemas.command(name="list")
@home_option
@registry_option
@topic_prefix_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(home: Home, registry: str | None, topic_prefix: str, as_json: bool) -> None:
    """List the registered versions of every contract."""
    source = open_registry(registry, home.registry)
    rows = []
    for event_type in EVENT_TYPES:
        subject = contracts.subject(contracts.topic(event_type, topic_prefix))
        current = json.loads(contracts.schema_text(event_type))
        for version in source.versions(subject):
            is_current = json.loads(version.schema) == current
            rows.append(
                {"subject": subject, "version": version.version, "id": version.schema_id, "current": is_current}
            )
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        mark = "  current" if row["current"] else ""
        click.echo(f"{row['subject']:<24} version {row['version']}  id {row['id']}{mark}")
    if not rows:
        click.echo(f"no schema is registered for topics {topic_prefix}.*; `vocbeam schemas register` does it")


@dataclass(frozen=True)
class Readable:
    """How many versions the contracts were held against, and why they can't read some of them."""

    released: int
    registered: int
    unreadable: list[str]


def check_contracts(registry: Registry, topic_prefix: str) -> Readable:
    """Holds every contract against its released versions and against all versions of its topic's subject."""
    released = registered = 0
    reasons: list[str] = []
    for event_type in EVENT_TYPES:
        own = _labelled(event_type, contracts.released_versions(event_type))
        subject = contracts.subject(contracts.topic(event_type, topic_prefix))
        known = [(f"{subject} version {v.version} (id {v.schema_id})", v.schema) for v in registry.versions(subject)]
        released += len(own)
        registered += len(known)
        for label, text in (*own, *known):
            try:
                reasons += incompatibilities_with_all(contracts.schema_text(event_type), [(label, text)])
            except SchemaError as error:
                reasons.append(f"{label}: {error}")
    return Readable(released, registered, reasons)


def refuse_unreadable(reasons: Sequence[str]) -> None:
    """Raises SchemaError, with the reasons, if there are any."""
    if reasons:
        raise SchemaError(
            "the event contracts can't read what other versions wrote: "
            + "; ".join(reasons)
            + "; give new fields a default and keep old ones readable"
        )


def _labelled(event_type: EventType, versions: list[tuple[int, str]]) -> list[tuple[str, str]]:
    return [(f"{event_type} v{number}", text) for number, text in versions]


def _state(event_type: EventType, versions: list[tuple[int, str]]) -> str:
    number, newest = versions[-1]
    if json.loads(newest) == json.loads(contracts.schema_text(event_type)):
        return f"is v{number}"
    return f"can read v1 to v{number}; changed since, release it as v{number + 1}.avsc"
