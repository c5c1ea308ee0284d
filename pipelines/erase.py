"""`vocbeam erase`: remove customers from the warehouse, keep them from coming back, and prove it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, select

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import Home, home_option, registry_option, warehouse_option, write_text
from vocbeam.schemas.errors import ConfigError, WrongKey
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.records import EventType
from vocbeam.schemas.registry import open_registry
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source, fingerprint, pseudonym_key, pseudonym_source
from vocbeam.schemas.timebase import SECOND_US, LocalCalendar, from_micros
from vocbeam.sinks import read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.erase import MIN_LITERAL_BYTES, Eraser, Erasure, Identity, Letter
from vocbeam.sinks.retire import SUBJECT_TABLES
from vocbeam.sinks.shred import Shredded, shred
from vocbeam.sinks.tables import (
    KEY_FINGERPRINT,
    customer_day,
    dead_letter,
    event,
    settle_event,
    tag_override,
    warehouse_setting,
)
from vocbeam.transforms.decode import Schemas, readable_records
from vocbeam.transforms.pseudonym import Pseudonyms
from vocbeam.transforms.subjects import subject_key

_PSEUDONYM = re.compile("[0-9a-f]{32}")

OUT_OF_REACH = (
    "Kafka: the topics keep the events until their own retention or a deletion there; read again, they are dropped",
    "backups, replicas and write-ahead-log archives of the warehouse: erase again after restoring one",
    "files that were exported, reports and dashboards that were rendered, and caches of BI tools",
    "logs of other systems, and the source systems themselves",
    "texts of other customers that mention this one, and events that name nobody and belong to no ticket or response "
    "of this one (a session before its login)",
)
"""What no command of ours can reach; part of every report."""


@click.command()
@home_option
@warehouse_option
@registry_option
@click.option("--customer", "customers", multiple=True, help="Customer id as the sources know it; repeatable.")
@click.option("--customer-key", "customer_keys", multiple=True, help="Pseudonym (32 hex digits); repeatable.")
@click.option(
    "--customers-file",
    type=click.File(encoding="utf-8"),
    help="Customer ids, one a line; - reads them from stdin, where no process list shows them.",
)
@click.option("--report", "report_path", type=click.Path(path_type=Path, dir_okay=False), default=None,
              help="Where the proof report goes, as JSON.  [default: HOME/erasures/TIME.json]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only count what would be removed; nothing is marked or written.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def erase(
    *,
    home: Home,
    warehouse: str | None,
    registry: str | None,
    customers: Sequence[str],
    customer_keys: Sequence[str],
    customers_file: Any,
    report_path: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Erase customers: their rows leave every table, and no writer brings back what was erased.

    Aggregates keep their contributions where the group has at least k others. Safe beside a running pipeline; if it is
    interrupted, run it again. Ends with exit code 1 if rows or bytes of theirs are still there.
    """
    try:
        ids = [*customers, *(line.strip() for line in customers_file or ())]
    except UnicodeDecodeError:
        # Without its cause, which holds the ids.
        raise ConfigError(f"{customers_file.name}: not UTF-8 text; save the file as UTF-8") from None
    ids = [customer for customer in ids if customer]
    if not ids and not customer_keys:
        raise ConfigError("whom? Give --customer, --customer-key or --customers-file")
    malformed = sum(not _PSEUDONYM.fullmatch(key) for key in customer_keys)
    if malformed:
        raise ConfigError(f"{malformed} of the values of --customer-key are no pseudonyms (32 lower-case hex digits)")
    url = warehouse or home.warehouse_url
    reader, engine = open_engine(url), open_engine(url, write=True)
    governance, version, pseudonyms = open_warehouse(reader, engine, home)
    eraser = Eraser(
        reader,
        engine,
        k=governance.privacy.k,
        calendar=LocalCalendar(governance.timezone),
        subject_key=subject_key,
        read_letter=letter_reader(home, registry, pseudonyms),
        now=now_us,
        dry_run=dry_run,
    )
    started_at = now_us()
    keys = [*customer_keys, *map(pseudonyms.customer_key, ids)]
    erasure = eraser.erase(keys, ids)
    tables = [event, settle_event, *SUBJECT_TABLES, tag_override, customer_day, dead_letter]
    shredded = None if dry_run else shred(engine, tables)
    report = as_report(
        erasure,
        governance=governance,
        version=version,
        started_at=started_at,
        ended_at=now_us(),
        dry_run=dry_run,
        shredded=shredded,
        ids_too_short=sum(len(customer.encode()) < MIN_LITERAL_BYTES for customer in ids) + len(customer_keys),
    )
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if not dry_run:
        path = report_path or home.path / "erasures" / f"{from_micros(started_at):%Y%m%dT%H%M%S.%fZ}.json"
        try:
            write_text("--report", path, text + "\n")
        except ConfigError:
            click.echo(text)  # what was removed can't be counted again
            raise
        click.echo(f"report: {path}", err=True)
    click.echo(text if as_json else in_words(report))
    if shredded is not None and (any(erasure.present_afterwards.values()) or not shredded.done):
        sys.exit(1)


def open_warehouse(reader: Engine, engine: Engine, home: Home) -> tuple[Governance, int, Pseudonyms]:
    """(governance file in force, its version, pseudonyms under the warehouse's key).

    Raises WrongKey when the configured key is not the one that this warehouse's pseudonyms were made with, ConfigError
    when its schema is not this release's or no governance file is in force.
    """
    require_current(engine)
    key = pseudonym_key(pseudonym_source(home.path).load())
    with reader.connect() as connection:
        taxonomy = read.taxonomy(connection)
        known = connection.execute(
            select(warehouse_setting.c.value).where(warehouse_setting.c.name == KEY_FINGERPRINT)
        ).scalar_one()
    if fingerprint(key) != known:
        raise WrongKey(
            f"the pseudonymisation key has the fingerprint {fingerprint(key)}, but this warehouse was written with "
            f"{known}: no customer could be found with it; configure the key that the pipeline uses"
        )
    return parse_governance(taxonomy.governance_text), taxonomy.taxonomy_version, Pseudonyms(key)


def letter_reader(home: Home, registry: str | None, pseudonyms: Pseudonyms) -> Callable[[EventType, bytes], Letter]:
    """Opens and decodes one dead letter. Its raw bytes don't leave this process."""
    return partial(
        _read_letter,
        DeadLetterCipher(dead_letter_source(home.path).load()),
        Schemas(open_registry(registry, home.registry)),
        pseudonyms,
    )


def _read_letter(
    cipher: DeadLetterCipher, schemas: Schemas, pseudonyms: Pseudonyms, event_type: EventType, raw: bytes
) -> Letter:
    try:
        plain = cipher.decrypt(raw)
    except ConfigError:
        return Letter("sealed")
    records = readable_records([plain], event_type, schemas)
    if not records:
        return Letter("undecodable", plain=plain)
    record = records[0]
    customer = record["customer_id"]
    identity: Identity | None = None
    if event_type == "ticket":
        identity = (record["source"], record["ticket_id"])
    elif event_type == "survey":
        identity = (record["source"], record["survey_id"], record["response_id"])
    return Letter("decoded", pseudonyms.customer_key(customer) if customer else None, identity)


def as_report(
    erasure: Erasure,
    *,
    governance: Governance,
    version: int,
    started_at: int,
    ended_at: int,
    dry_run: bool,
    shredded: Shredded | None,
    ids_too_short: int,
) -> dict[str, Any]:
    """The proof as JSON: what, where, how many, when, under which rules, and what is not covered."""
    letters = erasure.letters
    short = governance.retention.undecodable_dead_letter
    last = letters.last_undecodable_at
    return {
        "dry_run": dry_run,
        "customer_keys": list(erasure.customer_keys),
        "erased_at": _iso(erasure.erased_at),
        "started_at": _iso(started_at),
        "ended_at": _iso(ended_at),
        "governance_version": version,
        "k": governance.privacy.k,
        "removed": erasure.removed,
        "contributions": {"kept": erasure.contributions_kept, "taken_back": erasure.contributions_taken_back},
        "dead_letters": {
            "searched": letters.searched,
            "undecodable": letters.undecodable,
            "undecodable_expire_by": None if last is None else _iso(last + short * SECOND_US),
            "sealed_with_unknown_key": letters.sealed,
            "customers_not_looked_for_in_undecodable": ids_too_short,
        },
        "present_afterwards": None if dry_run else erasure.present_afterwards,
        "bytes": None if shredded is None else shredded._asdict(),
        "kept": "event keys: digests under a secret key, which recognise the events if they are sent again; "
        "the marker: pseudonym and time",
        "out_of_reach": list(OUT_OF_REACH),
    }


def in_words(report: dict[str, Any]) -> str:
    """The same for people."""
    removed = {table: n for table, n in report["removed"].items() if n}
    letters = report["dead_letters"]
    verb = "would be removed" if report["dry_run"] else "removed"
    lines = [
        f"{len(report['customer_keys'])} customers, events up to {report['erased_at']}, under governance version "
        f"{report['governance_version']} (k = {report['k']})",
        f"{verb}: " + (", ".join(f"{n:,} of {table}" for table, n in removed.items()) or "nothing"),
        f"contributions to aggregates: {report['contributions']['kept']:,} stay, "
        f"{report['contributions']['taken_back']:,} taken back",
        f"dead letters searched: {letters['searched']:,}; {letters['undecodable']:,} can't be decoded"
        + (f" and expire by {letters['undecodable_expire_by']} (vocbeam retain)" if letters["undecodable"] else ""),
    ]
    if letters["sealed_with_unknown_key"]:
        lines.append(
            f"{letters['sealed_with_unknown_key']:,} dead letters are sealed with a key that is not configured: add it "
            "and erase again"
        )
    if letters["customers_not_looked_for_in_undecodable"]:
        lines.append(
            f"{letters['customers_not_looked_for_in_undecodable']:,} customers could not be looked for in undecodable "
            f"letters (given by pseudonym, or an id below {MIN_LITERAL_BYTES} bytes)"
        )
    if not report["dry_run"]:
        present = {table: n for table, n in report["present_afterwards"].items() if n}
        lines.append(
            "looked again: " + (", ".join(f"{n:,} of {table}" for table, n in present.items()) or "nothing is left")
        )
        lines.append(report["bytes"]["message"])
    lines.append(f"kept: {report['kept']}")
    lines += ["out of reach:", *[f"  - {line}" for line in report["out_of_reach"]]]
    return "\n".join(lines)


def _iso(micros: int) -> str:
    return from_micros(micros).isoformat()
