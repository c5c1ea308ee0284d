"""Dead letters tried again, on both databases: what is healed once, what fails again, and that the books balance."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from tests.support.company import company_events
from tests.support.warehouse import (
    NOW,
    books_that_fail,
    chunk,
    contents,
    letter_writer,
    mini,
    new_warehouse,
    writer,
)
from vocbeam.schemas.errors import TaxonomyChanged
from vocbeam.schemas.records import DeadLetter, EventType, TaggedChunk
from vocbeam.sinks.contributions import Delta
from vocbeam.sinks.letter_writer import Attempt
from vocbeam.sinks.letters import Choice, count_letters, read_letters
from vocbeam.sinks.reconcile import reconcile
from vocbeam.sinks.rehearsal import Rehearsal
from vocbeam.sinks.tables import (
    dead_letter,
    erasure_marker,
    event,
    measure,
    replay_attempt,
    retired_row,
    retired_subject,
    ticket,
)
from vocbeam.transforms.subject_rules import subject_rules

GOVERNANCE = mini()
T0 = 1_500_000_000_000_000
UNKNOWN = ("decode", "unknown_schema", "schema id 7 is not in the registry")


def deliveries(*numbers: int, **changed: Any) -> list[dict[str, Any]]:
    """Deliveries one minute apart, every second one late."""
    return [
        {
            "event_id": f"d{i}",
            "event_time": T0 + i * 60_000_000,
            "name": "delivered",
            "duration_ms": 86_400_000.0,
            "value": float(i % 2),
            "customer_key": f"customer-{i % 4}",
            **changed,
        }
        for i in numbers
    ]


def refuse(
    engine_url: str, event_type: EventType, offsets: Sequence[int], first: int, end: int, number: int = 0
) -> None:
    """Writes a range of offsets that were all refused, as a run does."""
    part = chunk(GOVERNANCE, event_type, [], number=number, first_offset=first, next_offset=end)
    part.dead += [DeadLetter(offset, *UNKNOWN, b"raw") for offset in offsets]
    writer(engine_url, GOVERNANCE).write((part,))


def again(events: Sequence[dict[str, Any]], offsets: Sequence[int], event_type: EventType = "telemetry") -> TaggedChunk:
    """What dead letters at some offsets decode to when they are tried again."""
    return chunk(
        GOVERNANCE, event_type, events, first_offset=min(offsets), offsets=offsets, next_offset=max(offsets) + 1
    )


def history(engine: Engine) -> list[tuple[Any, ...]]:
    """Attempts as (offset, run, outcome, error class)."""
    c = replay_attempt.c
    with engine.connect() as connection:
        query = select(c.kafka_offset, c.run_epoch, c.outcome, c.error_class).order_by(c.kafka_offset, c.run_epoch)
        return [tuple(row) for row in connection.execute(query)]


def retired(engine: Engine) -> dict[tuple[str, str], int]:
    """(kind, reason) → rows, over all topic-partitions."""
    with engine.connect() as connection:
        c = retired_row.c
        return {(row.kind, row.reason): row.n for row in connection.execute(select(c.kind, c.reason, c.n))}


def letters(engine: Engine) -> list[tuple[int, str]]:
    """(offset, error class) of those that are left."""
    with engine.connect() as connection:
        return [(letter.offset, letter.error_class) for letter in read_letters(connection, Choice(), (0, -1), 100)]


def test_replay__heals_retires_and_keeps_what_fails(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    out = writer(warehouse_url, GOVERNANCE)
    out.write((chunk(GOVERNANCE, "telemetry", deliveries(0, 1)),))
    refuse(warehouse_url, "telemetry", [2, 3, 4, 5], 2, 8)
    group = again([*deliveries(2), *deliveries(1), *deliveries(0, value=9.0)], [2, 3, 4])
    group.next_offset = 6
    group.dead.append(DeadLetter(5, "validate", "key_too_long", "name is longer than 200 characters", b"raw"))

    attempts = letter_writer(warehouse_url, GOVERNANCE, run_epoch=9).replay((group,))

    assert [(a.offset, a.outcome, a.error_class) for a in sorted(attempts)] == [
        (2, "healed", None),
        (3, "healed_duplicate", None),
        (4, "failed", "conflicting_duplicate"),
        (5, "failed", "key_too_long"),
    ]
    assert letters(engine) == [(4, "conflicting_duplicate"), (5, "key_too_long")]
    assert retired(engine) == {("dead_letter", "healed"): 1, ("dead_letter", "healed_duplicate"): 1}
    assert history(engine) == [
        (2, 1, "refused", "unknown_schema"), (2, 9, "healed", None),
        (3, 1, "refused", "unknown_schema"), (3, 9, "healed_duplicate", None),
        (4, 1, "refused", "unknown_schema"), (4, 9, "failed", "conflicting_duplicate"),
        (5, 1, "refused", "unknown_schema"), (5, 9, "failed", "key_too_long"),
    ]  # fmt: skip
    assert books_that_fail(engine) == []
    with engine.connect() as connection:
        healed = connection.execute(select(event.c.kafka_offset).where(event.c.event_id == "d2")).scalar_one()
        late = connection.execute(select(measure.c.n).where(measure.c.metric == "late")).scalars().all()
    assert healed == 2
    assert sum(late) == 3


def test_replay__same_letters_again_change_nothing(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0, 1], 0, 2)
    group = (again(deliveries(0, 1), [0, 1]),)
    assert len(letter_writer(warehouse_url, GOVERNANCE, run_epoch=2).replay(group)) == 2
    before = contents(engine)

    assert letter_writer(warehouse_url, GOVERNANCE, run_epoch=3).replay(group) == []
    assert contents(engine) == before
    assert retired(engine) == {("dead_letter", "healed"): 2}
    assert books_that_fail(engine) == []


@pytest.mark.parametrize("moment", ["in_transaction", "before_commit"])
def test_replay__death_before_the_commit_leaves_everything(warehouse_url: str, moment: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0, 1], 0, 2)
    untouched = contents(engine)

    def die(reached: str) -> None:
        if reached == moment:
            raise KeyboardInterrupt

    group = (again(deliveries(0, 1), [0, 1]),)
    with pytest.raises(KeyboardInterrupt):
        letter_writer(warehouse_url, GOVERNANCE, run_epoch=2, reach=die).replay(group)
    assert contents(engine) == untouched
    assert (len(letters(engine)), history(engine), retired(engine)) == (2, [], {})

    assert [a.outcome for a in letter_writer(warehouse_url, GOVERNANCE, run_epoch=3).replay(group)] == ["healed"] * 2
    assert books_that_fail(engine) == []


def test_replay__unknown_outcome_of_the_commit_gives_what_was_committed(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0, 1, 2], 0, 3)
    group = again(deliveries(0), [0])
    group.next_offset = 3
    group.dead += [DeadLetter(offset, "decode", "truncated", "the event ends early", b"") for offset in (1, 2)]
    lost: list[Exception] = [OSError("connection lost after the commit")]

    def lose(reached: str) -> None:
        if reached == "after_commit" and lost:
            raise lost.pop()

    out = letter_writer(warehouse_url, GOVERNANCE, run_epoch=2, reach=lose)
    with pytest.raises(OSError, match="connection lost"):
        out.replay((group,))
    assert [(a.offset, a.outcome) for a in sorted(out.replay((group,)))] == [
        (0, "healed"), (1, "failed"), (2, "failed")
    ]  # fmt: skip
    assert Counter(outcome for _, _, outcome, _ in history(engine)) == {"refused": 3, "healed": 1, "failed": 2}
    assert books_that_fail(engine) == []


def test_replay__value_the_database_refuses_fails_alone(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "ticket", [0, 1, 2], 0, 3)
    tickets = [
        {"event_id": f"t{i}", "event_time": T0, "ticket_id": f"t{i}", "status": "opened", "sequence": 2**63 * (i == 1)}
        for i in range(3)
    ]
    attempts = letter_writer(warehouse_url, GOVERNANCE, run_epoch=2).replay((again(tickets, [0, 1, 2], "ticket"),))

    assert [(a.offset, a.outcome) for a in sorted(attempts)] == [(0, "healed"), (1, "failed"), (2, "healed")]
    assert letters(engine) == [(1, "refused_by_warehouse")]
    assert books_that_fail(engine) == []


def test_replay__erased_customer_does_not_come_back(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0, 1], 0, 2)
    with engine.begin() as connection:
        connection.execute(insert(erasure_marker).values(customer_key="customer-0", erased_at=T0 + 10**12))
    group = again(deliveries(0, 1), [0, 1])
    with engine.connect() as connection:
        assert Rehearsal(connection, subject_rules(GOVERNANCE)).write(group) == ["erased", "new"]

    attempts = letter_writer(warehouse_url, GOVERNANCE, run_epoch=2).replay((group,))

    assert {a.offset: a.outcome for a in attempts} == {0: "erased", 1: "healed"}
    assert retired(engine) == {("dead_letter", "erased"): 1, ("dead_letter", "healed"): 1}
    assert letters(engine) == []
    assert books_that_fail(engine) == []


def test_replay__event_tagged_under_another_taxonomy_is_refused(warehouse_url: str) -> None:
    new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0], 0, 1)
    group = again(deliveries(0), [0])
    group.taxonomy_version += 1
    with pytest.raises(TaxonomyChanged, match=r"voc\.telemetry\[0\] was tagged under taxonomy"):
        letter_writer(warehouse_url, GOVERNANCE, run_epoch=2).replay((group,))


def test_replay__does_not_fence_a_run(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0], 0, 1)
    letter_writer(warehouse_url, GOVERNANCE, run_epoch=99).replay((again(deliveries(0), [0]),))

    (committed,) = writer(warehouse_url, GOVERNANCE).write(
        (chunk(GOVERNANCE, "telemetry", deliveries(1), first_offset=1),)
    )
    assert (committed.next_offset, committed.loaded) == (2, 1)
    assert books_that_fail(engine) == []


def in_threads(*works: Callable[[], object]) -> None:
    """Runs all at once; fails with the first error of any."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def as_letters(size: int, seed: int) -> tuple[dict[EventType, list[dict[str, Any]]], random.Random]:
    """Events of a small company by type, as a tagged chunk takes them."""
    by_type: dict[EventType, list[dict[str, Any]]] = {}
    for event_type, sent in company_events(seed, size):
        entry = {name: value for name, value in sent.items() if name not in ("customer_id", "department")}
        by_type.setdefault(event_type, []).append({**entry, "customer_key": sent.get("customer_id")})
    return by_type, random.Random(seed)


def test_replay__two_at_once_beside_a_run_heal_each_letter_once(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    by_type, chance = as_letters(12, seed=3)
    groups, arriving, expected = [], [], 0
    for event_type, events in by_type.items():
        refuse(warehouse_url, event_type, range(len(events)), 0, len(events))
        groups += [
            again(events[i : i + 8], range(i, min(i + 8, len(events))), event_type) for i in range(0, len(events), 8)
        ]
        # A third of the same events comes again, in another partition.
        arriving.append(chunk(GOVERNANCE, event_type, chance.sample(events, len(events) // 3), number=1))
        expected += len(events)
    found: list[Attempt] = []

    def replay(run_epoch: int, order: Sequence[TaggedChunk]) -> None:
        out = letter_writer(warehouse_url, GOVERNANCE, run_epoch=run_epoch)
        for group in order:
            found.extend(out.replay((group,)))

    def run() -> None:
        out = writer(warehouse_url, GOVERNANCE)
        for part in arriving:
            out.write((part,))

    in_threads(lambda: replay(2, groups), lambda: replay(3, groups[::-1]), run)

    assert len(found) == expected
    assert len({(a.partition, a.offset) for a in found}) == expected
    assert {a.outcome for a in found} <= {"healed", "healed_duplicate"}
    assert letters(engine) == []
    assert books_that_fail(engine) == []
    other = new_warehouse(f"{warehouse_url}.undisturbed", GOVERNANCE) if "sqlite" in warehouse_url else None
    if other is not None:
        straight = writer(f"{warehouse_url}.undisturbed", GOVERNANCE)
        for event_type, events in by_type.items():
            straight.write((chunk(GOVERNANCE, event_type, events),))
        assert contents(engine) == contents(other)


def test_rehearsal__tells_outcomes_and_the_change_of_every_cell(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    by_type, chance = as_letters(15, seed=4)
    groups = []
    for event_type, events in by_type.items():
        chance.shuffle(events)
        there, dead = events[: len(events) // 3], events[len(events) // 4 :]
        forged = [{**entry, "stage": "help", "event_time": entry["event_time"] + 1} for entry in there[:3]]
        writer(warehouse_url, GOVERNANCE).write((chunk(GOVERNANCE, event_type, there),))
        again_and_again = [*dead, *dead[:5], *forged]
        end = len(there) + len(again_and_again)
        refuse(warehouse_url, event_type, range(len(there), end), len(there), end)
        for i in range(0, len(again_and_again), 20):
            part = again_and_again[i : i + 20]
            groups.append(again(part, range(len(there) + i, len(there) + i + len(part)), event_type))
    with engine.begin() as connection:
        tickets = {s.subject_key for g in groups for subjects in g.subjects for s in subjects if s.table == "ticket"}
        stored = {bytes(key) for key in connection.execute(select(ticket.c.subject_key)).scalars()}
        # A ticket whose row has expired stays as it was counted.
        gone = {"subject_key": min(tickets - stored), "subject_table": "ticket", "reason": "expired", "retired_at": NOW}
        connection.execute(insert(retired_subject).values(gone))
        connection.execute(insert(erasure_marker).values(customer_key="ana", erased_at=1_510_363_800_000_000 + 10**10))

    before, untouched = cells(engine), contents(engine)
    with engine.connect() as connection:
        rehearsal = Rehearsal(connection, subject_rules(GOVERNANCE))
        expected = [outcome for group in groups for outcome in rehearsal.write(group)]
    assert contents(engine) == untouched
    out = letter_writer(warehouse_url, GOVERNANCE, run_epoch=2)
    found = {(a.partition, a.offset): a.outcome for group in groups for a in out.replay((group,))}

    names = {"new": "healed", "known": "healed_duplicate", "conflict": "failed", "erased": "erased"}
    places = [(group.partition, offset) for group in groups for offset in group.offsets]
    assert [found[place] for place in places] == [names[outcome] for outcome in expected]
    assert {"new", "known", "conflict", "erased"} == set(expected)
    assert {cell: sums for cell, sums in rehearsal.delta.items() if any(sums)} == difference(before, cells(engine))
    assert books_that_fail(engine) == []


def cells(engine: Engine) -> Delta:
    """`measure` as cell → sums."""
    c = measure.c
    names = (
        "bucket_start",
        "stage",
        "department",
        "topic",
        "segment_1",
        "segment_2",
        "segment_3",
        "metric",
        "unit",
        "bin",
    )
    with engine.connect() as connection:
        rows = connection.execute(select(*(c[name] for name in names), c.n, c.weight, c.weight_sq, c.total))
        return {tuple(row[:10]): list(row[10:]) for row in rows}  # type: ignore[misc]


def difference(before: Delta, after: Delta) -> Delta:
    """What changed, cell by cell."""
    nothing = [0, 0, 0, 0]
    changes = {
        cell: [new - old for new, old in zip(after.get(cell, nothing), before.get(cell, nothing), strict=True)]
        for cell in before.keys() | after.keys()
    }
    return {cell: change for cell, change in changes.items() if any(change)}


def test_read_letters__chooses_by_topic_step_cause_and_time(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0, 1, 2], 0, 3)
    part = chunk(GOVERNANCE, "flag", [], next_offset=1)
    part.dead.append(DeadLetter(0, "validate", "text_too_long", "text is too long", b"raw"))
    writer(warehouse_url, GOVERNANCE).write((part,))

    def found(choice: Choice, after: tuple[int, int] = (0, -1), at_most: int = 10) -> list[str]:
        with engine.connect() as connection:
            chosen = read_letters(connection, choice, after, at_most)
            assert len(chosen) == min(at_most, count_letters(connection, choice)) or after != (0, -1)
            return [str(letter) for letter in chosen]

    everything = [f"voc.telemetry[0]@{i}" for i in range(3)] + ["voc.flag[0]@0"]
    assert found(Choice()) == everything
    assert found(Choice(), at_most=2) == everything[:2]
    with engine.connect() as connection:
        second = read_letters(connection, Choice(), (0, -1), 2)[1]
    assert second.sealed == b"sealed:raw"
    assert found(Choice(), (second.ledger_id, second.offset)) == everything[2:]
    assert found(Choice(topics=("voc.flag", "voc.survey"))) == everything[3:]
    assert found(Choice(steps=("decode",), error_classes=("unknown_schema",))) == everything[:3]
    assert found(Choice(error_classes=("text_too_long",), steps=("decode",))) == []
    assert found(Choice(since=NOW, until=NOW + 1)) == everything
    assert found(Choice(since=NOW + 1)) == found(Choice(until=NOW)) == []


def test_reconcile__counts_healed_letters_as_loaded(warehouse_url: str) -> None:
    engine = new_warehouse(warehouse_url, GOVERNANCE)
    refuse(warehouse_url, "telemetry", [0, 1], 0, 2)
    letter_writer(warehouse_url, GOVERNANCE, run_epoch=2).replay((again(deliveries(0, 1), [0, 1]),))
    with engine.begin() as connection:
        connection.execute(dead_letter.delete())
        connection.execute(retired_row.update().values(n=1))
    failing = {check.what for check in reconcile(engine) if not check.balances}
    assert failing == {
        "events loaded + healed - retired = events present",
        "dead-lettered - retired = dead letters present",
        "events loaded + healed - retired = event keys present",
    }
