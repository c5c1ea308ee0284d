"""Corrections of tags on both databases: made, imported, withdrawn, learned from, counted, gone with what they name."""

from __future__ import annotations

import csv
import io
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text

from tests.support.command import Vocbeam
from tests.support.erasing import ANA, BIA, GOVERNANCE, HOUR, T0, Shop, delivery, eraser, places_of, step
from tests.support.invoke import Invoked, invoke
from tests.support.labelled import noun, train, write_labels
from tests.support.warehouse import MINI, NOW, books_that_fail, contents, new_warehouse
from vocbeam.pipelines.apply import apply
from vocbeam.pipelines.tag import tag
from vocbeam.pipelines.train import told_labels
from vocbeam.schemas.corrections import Target
from vocbeam.schemas.timebase import DAY_US, LocalCalendar
from vocbeam.sinks import overrides as sinks_overrides
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.overrides import Done, Override, Overrider, draw_sample, find_targets
from vocbeam.sinks.restate import Restater
from vocbeam.sinks.retain import Limits, retain
from vocbeam.sinks.tables import event, tag_override, ticket
from vocbeam.sinks.writer import Failpoint
from vocbeam.transforms.labels import Label
from vocbeam.transforms.statistics import wilson_interval
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.subjects import subject_key

Event = dict[str, Any]


def flag(
    number: int | str, words: str | None = "slow", customer: str | None = None, at: int = T0, **more: Any
) -> Event:
    """A red flag that a model took for one about deliveries."""
    machine = {"tag_method": "model", "tag_confidence": 0.7, "stage": "deliver", "department": "logistics"}
    return {
        "event_id": f"f{number}", "event_time": at, "flag_kind": "red_flag", "text": words, "customer_key": customer,
        **machine, **more,
    }  # fmt: skip


@pytest.fixture
def engine(warehouse_url: str) -> Engine:
    """A new warehouse under the smallest governance file."""
    return new_warehouse(warehouse_url, GOVERNANCE)


@pytest.fixture
def vocbeam(warehouse_url: str, tmp_path: Path) -> Vocbeam:
    """An installation that reaches no Kafka."""
    return Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", warehouse_url, governance=MINI)


def run(vocbeam: Vocbeam, *arguments: str | Path) -> Invoked:
    return invoke(tag, vocbeam, *arguments)


def tags(engine: Engine, event_type: str = "flag") -> dict[str, tuple[str, str, str, str]]:
    """Event id → stage, department, topic, method."""
    c = event.c
    query = select(c.event_id, c.stage, c.department, c.topic, c.tag_method).where(c.event_type == event_type)
    with engine.connect() as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(query.order_by(c.event_id))}


def tickets(engine: Engine) -> dict[str, tuple[str, str, str, str]]:
    c = ticket.c
    with engine.connect() as connection:
        query = select(c.ticket_id, c.stage, c.department, c.topic, c.tag_method)
        return {row[0]: tuple(row[1:]) for row in connection.execute(query)}


def figures(engine: Engine, metric: str, *, restated: bool) -> dict[tuple[str, str], int]:
    """(stage, department) → contributions of a metric: as reported, or by the tags as they stand."""
    bases = "" if restated else "AND basis = 'as_reported'"
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                f"SELECT stage, department, sum(n) FROM measure WHERE metric = :metric {bases} "
                "GROUP BY stage, department HAVING sum(n) <> 0"
            ),
            {"metric": metric},
        )
        return {(stage, department): int(n) for stage, department, n in rows}


def overrides(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.execute(select(tag_override.c.override_id)).all())


DELIVER, HELP = ("deliver", "logistics"), ("help", "care")


def test_override__event_takes_effect_at_once_and_is_withdrawn(engine: Engine, vocbeam: Vocbeam) -> None:
    shop = Shop(vocbeam.warehouse)
    machine = {"tag_method": "unassigned", "tag_confidence": None, "stage": "unassigned", "department": "unassigned"}
    shop.send("flag", flag(1, **machine), flag(2), flag(3, source="other"))
    before = contents(engine)
    fix = (
        "override",
        "--source",
        "test",
        "--event-id",
        "f1",
        "--stage",
        "help",
        "--reviewer",
        "Eva",
        "--topic",
        "tone",
    )

    said = run(vocbeam, *fix, "--note", "Dear Mr. Smith, call +49 30 901820").stdout
    assert "flag 'f1'" not in said  # the type was not given
    assert "is corrected: stage help, department care, topic tone; 1 event that was unassigned is help, care" in said
    assert tags(engine)["f2"] == (*DELIVER, "", "model")
    with engine.connect() as connection:
        stored = connection.execute(select(tag_override)).mappings().one()
    unknown = run(vocbeam, "override", "--source", "test", "--event-id", "f3", "--stage", "help")
    assert "no event 'f3' of source 'test' in this warehouse" in unknown.error
    assert (stored["reviewer"], stored["event_type"], stored["event_id"]) == ("Eva", "flag", "f1")
    assert "Smith" not in stored["note"]
    assert "901820" not in stored["note"]
    assert figures(engine, "red_flags", restated=False) == {DELIVER: 2, ("unassigned", "unassigned"): 1}
    assert figures(engine, "red_flags", restated=True) == {DELIVER: 2, HELP: 1}
    assert books_that_fail(engine) == []

    # Not given again, the note is another one.
    assert run(vocbeam, *fix, "--json").json["corrections"] == 1
    again = run(vocbeam, *fix, "--json").json
    assert again == {"corrections": 0, "unchanged": 1, "gone": 0, "events_changed": 0}
    # The topic stays with the stage; the latest correction wins.
    run(vocbeam, "override", "--source", "test", "--event-id", "f1", "--stage", "help", "--reviewer", "Max")
    assert overrides(engine) == 3
    listed = run(vocbeam, "list", "--json").json
    assert [(row["event_id"], row["topic"], row["reviewer"]) for row in listed] == [("f1", "tone", "Max")]
    assert len(run(vocbeam, "list", "--json", "--all").json) == 3

    withdrawn = run(vocbeam, "withdraw", "--source", "test", "--event-id", "f1", "--type", "flag", "--json").json
    assert withdrawn == {"corrections": 3, "unchanged": 0, "gone": 0, "events_changed": 1}
    assert contents(engine) == before
    assert run(vocbeam, "list", "--json").json == []
    assert "none to withdraw" in run(vocbeam, "withdraw", "--source", "test", "--event-id", "f1").error
    assert books_that_fail(engine) == []


def test_override__ticket_and_its_events(engine: Engine, vocbeam: Vocbeam) -> None:
    shop = Shop(vocbeam.warehouse)
    rule = {"tag_method": "rule"}
    shop.send(
        "ticket", step("t1", 1, "opened", ANA, **rule), step("t1", 2, "responded", None, T0 + HOUR, **rule),
        step("t2", 1, "opened", BIA, **rule),
    )  # fmt: skip
    whole = ("--source", "test", "--ticket", "t1")

    assert run(vocbeam, "override", *whole, "--stage", "deliver", "--reviewer", "Eva", "--json").json == {
        "corrections": 1, "unchanged": 0, "gone": 0, "events_changed": 2,
    }  # fmt: skip
    corrected = (*DELIVER, "", "override")
    assert tags(engine, "ticket") == {"t1-1": corrected, "t1-2": corrected, "t2-1": (*HELP, "", "rule")}
    assert tickets(engine) == {"t1": corrected, "t2": (*HELP, "", "rule")}
    assert figures(engine, "opened", restated=False) == {HELP: 2}
    assert figures(engine, "opened", restated=True) == {HELP: 1, DELIVER: 1}

    # A later event, tagged by a rule, doesn't undo it; one event's own correction wins over its ticket's.
    shop.send("ticket", step("t1", 3, "resolved", None, T0 + 2 * HOUR, **rule))
    assert tickets(engine)["t1"] == corrected
    assert figures(engine, "resolution", restated=True) == {DELIVER: 1}
    assert books_that_fail(engine) == []
    one = ("--source", "test", "--event-id", "t1-2", "--type", "ticket")
    run(vocbeam, "override", *one, "--stage", "unassigned", "--reviewer", "Eva")
    assert tags(engine, "ticket")["t1-2"] == ("unassigned", "unassigned", "", "override")
    assert tickets(engine)["t1"] == corrected

    # The whole ticket's correction still covers an event whose own is withdrawn.
    run(vocbeam, "withdraw", *one)
    assert tags(engine, "ticket")["t1-2"] == corrected
    assert "its ticket may be corrected as a whole: --ticket t1" in run(vocbeam, "withdraw", *one).error
    run(vocbeam, "withdraw", *whole)
    assert set(tags(engine, "ticket").values()) == {(*HELP, "", "rule")}
    assert tickets(engine)["t1"] == (*HELP, "", "rule")
    assert figures(engine, "opened", restated=True) == figures(engine, "opened", restated=False) == {HELP: 2}
    assert books_that_fail(engine) == []


HEADER = "source,event_type,event_id,ticket_id,stage,department,topic,reviewer,note\n"


def test_import__is_checked_whole_and_changes_nothing_twice(engine: Engine, vocbeam: Vocbeam, tmp_path: Path) -> None:
    shop = Shop(vocbeam.warehouse)
    shop.send("flag", *[flag(i) for i in range(6)])
    shop.send("telemetry", {**delivery(1, None), "event_id": "f5"})
    shop.send("ticket", step("t1", 1, "opened", ANA, tag_method="rule"))
    before = contents(engine)
    file = tmp_path / "fixes.csv"

    def imported(rows: str, *options: str) -> Invoked:
        file.write_text(HEADER + rows, encoding="utf-8-sig")
        return run(vocbeam, "import", file, "--json", *options)

    refused = imported(
        "test,flag,f0,,help,,,,\n"
        "test,,f5,,help,,,,\n"
        "test,flag,none,,help,,,,\n"
        "test,,,t9,help,,,,\n"
        "test,flag,f1,,help,,,,\n"
        "test,,f1,,deliver,,,,\n"
    )
    assert refused.code == 2
    lines = refused.error.replace(f"{file}:", "").split("\n")
    assert lines[0].startswith("3: event 'f5' of source 'test' is ambiguous: there is one of each type flag, telemetry")
    assert lines[1].startswith("4: no flag 'none' of source 'test' in this warehouse")
    assert lines[2].startswith("5: no ticket 't9' of source 'test' in this warehouse")
    assert lines[3].startswith("7: says another thing of event 'f1' of source 'test' than line 6")
    assert lines[4:] == ["nothing was changed; correct the file and import it again"]
    assert "2: stage 'nowhere'" in imported("test,flag,f0,,nowhere,,,,\n").error
    assert contents(engine) == before
    assert overrides(engine) == 0

    good = (
        "test,flag,f0,,help,,,Eva,it says so\n"
        "test,,f0,,help,,,,\n"
        "test,flag,f1,,deliver,,,Eva,\n"
        "test,flag,f2,,help,logistics,,Eva,\n"
        "test,flag,f3,,,,,,\n"
        "test,,,t1,deliver,,,Eva,\n"
    )
    assert imported(good, "--dry-run").json == {"rows": 6, "not_reviewed": 1, "repeated": 1}
    assert contents(engine) == before
    done = imported(good).json
    low, high = wilson_interval(3, 2)
    assert done == {
        "rows": 6, "not_reviewed": 1, "repeated": 1, "corrections": 4, "unchanged": 0, "gone": 0, "events_changed": 4,
        # f1's tag was confirmed; the ticket is no single event.
        "tags_reviewed": 3, "tags_wrong": 2, "interval_low": low, "interval_high": high,
    }  # fmt: skip
    assert tags(engine)["f2"] == ("help", "logistics", "", "override")
    after = contents(engine)
    assert imported(good).json == {**done, "corrections": 0, "unchanged": 4, "events_changed": 0}
    assert contents(engine) == after
    assert overrides(engine) == 4

    exported = run(vocbeam, "list", "--csv").stdout
    file.write_text(exported, encoding="utf-8")
    assert run(vocbeam, "import", file, "--json").json["unchanged"] == 4
    assert imported("").json["rows"] == 0
    assert books_that_fail(engine) == []


def test_sample__is_drawn_at_random_reviewed_and_imported(engine: Engine, vocbeam: Vocbeam, tmp_path: Path) -> None:
    shop = Shop(vocbeam.warehouse)
    shop.send("flag", *[flag(i, f"=slow {i}") for i in range(40)])
    shop.send(
        "flag", flag("hint", tag_method="hint"), flag("silent", None), flag("late", at=T0 + 40 * DAY_US),
        flag("rule", tag_method="rule"),
    )  # fmt: skip
    file = tmp_path / "sample.csv"
    dates = ("--from", "2017-07-13", "--to", "2017-07-13")
    seeded = ("sample", "--n", "10", "--seed", "1", "--method", "model", *dates)
    assert run(vocbeam, *seeded, "--out", file).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "is there already" in run(vocbeam, *seeded, "--out", file).error
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    assert len({row["event_id"] for row in rows}) == 10
    assert {row["stage"] for row in rows} == {""}
    assert rows[0]["text"] == f"'=slow {rows[0]['event_id'][1:]}"
    assert (rows[0]["tag_stage"], rows[0]["tag_method"]) == ("deliver", "model")
    # Another order and another database hold the same lots: these are the ones that either database draws.
    assert [row["event_id"] for row in rows[:3]] == ["f26", "f35", "f31"]

    for row in rows:
        row["stage"] = "help" if row is rows[0] else "deliver"
    with file.open("w", encoding="utf-8", newline="") as writing:
        writer = csv.DictWriter(writing, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:-1])
    judged = run(vocbeam, "import", file).stdout
    assert "of 9 single events that a machine had tagged, 1 were tagged wrong: 11.1%" in judged
    # What was corrected is drawn again, with the machine's tag and the stage that a person gave.
    again = list(csv.DictReader(io.StringIO(run(vocbeam, *seeded).stdout)))
    assert [(row["event_id"], row["tag_stage"], row["stage"]) for row in again] == [
        *[(row["event_id"], "deliver", row["stage"]) for row in rows[:-1]], (rows[-1]["event_id"], "deliver", ""),
    ]  # fmt: skip
    with engine.connect() as connection:
        everybody = {row.event_id for row in draw_sample(connection, 1000, 3)}
        drawn = [{row.event_id for row in draw_sample(connection, 10, seed)} for seed in range(30)]
    assert everybody == {*[f"f{i}" for i in range(40)], "flate", "frule"}
    # 30 draws of 10 of 42: each is drawn 7 times in the mean; none never, and none always.
    counts = [sum(name in sample for sample in drawn) for name in everybody]
    assert (min(counts) > 0, max(counts) < 20) == (True, True)


def test_rate__by_department_and_method_with_small_groups_hidden(engine: Engine, vocbeam: Vocbeam) -> None:
    august = T0 + 30 * DAY_US
    care = {"stage": "help", "department": "care"}
    shop = Shop(vocbeam.warehouse)
    shop.send(
        "flag",
        *[flag(f"a{i}") for i in range(12)],
        *[flag(f"b{i}", **care) for i in range(8)],
        *[flag(f"c{i}", tag_method="rule") for i in range(4)],
        *[flag(f"d{i}", tag_method="hint") for i in range(20)],
        *[flag(f"e{i}", at=august) for i in range(9)],
        *[flag(f"g{i}", at=august, **care) for i in range(4)],
    )
    for name, stage in (("fa0", "help"), ("fa1", "help"), ("fa2", "unassigned"), ("fa3", "deliver"), ("fd0", "help")):
        run(vocbeam, "override", "--source", "test", "--event-id", name, "--stage", stage, "--reviewer", "Eva")

    def shown(n: int, reviewed: int, corrected: int) -> dict[str, Any]:
        low, high = wilson_interval(n, corrected)
        return {
            "n": n, "reviewed": reviewed, "corrected": corrected, "override_rate": pytest.approx(corrected / n),
            "interval_low": pytest.approx(low, abs=1e-9), "interval_high": pytest.approx(high), "suppressed": False,
        }  # fmt: skip

    hidden = {
        **dict.fromkeys(("n", "reviewed", "corrected", "override_rate", "interval_low", "interval_high")),
        "suppressed": True,
    }
    rows = run(vocbeam, "rate", "--json").json
    places = {(row.pop("period_start"), row.pop("department"), row.pop("tag_method")): row for row in rows}
    assert places == {
        ("2017-07-01", "*", "model"): shown(20, 4, 3),
        ("2017-07-01", "logistics", "model"): shown(12, 4, 3),
        ("2017-07-01", "care", "model"): shown(8, 0, 0),
        ("2017-07-01", "*", "rule"): hidden,
        ("2017-07-01", "logistics", "rule"): hidden,
        # Four are too few to show, and nine would tell them: 13 less 9.
        ("2017-08-01", "*", "model"): shown(13, 0, 0),
        ("2017-08-01", "logistics", "model"): hidden,
        ("2017-08-01", "care", "model"): hidden,
    }
    week = run(vocbeam, "rate", "--by", "week", "--json").json
    assert {row["period_start"] for row in week} == {"2017-07-10", "2017-08-07"}
    table = run(vocbeam, "rate").stdout
    assert "25.0%" in table
    assert "hidden" in table
    assert "lower bound" in table


def test_train__learns_from_corrections_before_all_else(engine: Engine, vocbeam: Vocbeam, tmp_path: Path) -> None:
    shop = Shop(vocbeam.warehouse)
    shop.send(
        "flag",
        *[flag(i, noun("help", i), ANA) for i in range(3)],
        # One of the file's own phrases, and what a source said of the same words.
        flag("phrase", "Late PARCEL", at=T0 + 5),
        flag("hinted", "late parcel", tag_method="hint"),
        flag("unclear", "hm"),
    )
    file = tmp_path / "fixes.csv"
    lines = "".join(f"test,flag,{name},,help,,tone,Eva,\n" for name in ("f0", "f1", "fphrase"))
    file.write_text(HEADER + lines + "test,flag,funclear,,unassigned,,,Eva,\n", encoding="utf-8")
    assert run(vocbeam, "import", file).code == 0
    with engine.connect() as connection:
        alone = told_labels(connection, GOVERNANCE, overrides=False, hints=True, own=True)
        learned = told_labels(connection, GOVERNANCE, overrides=True, hints=True, own=True)
    assert learned["corrections"] == [
        Label(noun("help", 0), "help", "tone", group=ANA, time=T0),
        Label(noun("help", 1), "help", "tone", group=ANA, time=T0),
        Label("Late PARCEL", "help", "tone", time=T0 + 5),
    ]
    assert list(alone) == ["hints in past events", "phrases of the governance file"]
    assert [label.text for label in alone["hints in past events"]] == ["late parcel"]
    assert learned["hints in past events"] == []
    left_out = set(alone["phrases of the governance file"]) - set(learned["phrases of the governance file"])
    assert [(label.text, label.stage) for label in left_out] == [("late parcel", "deliver")]


def test_train__card_names_the_corrections(sqlite_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path / "home", "127.0.0.1:1", "voc", sqlite_url, governance=MINI)
    assert invoke(apply, vocbeam).code == 0
    Shop(sqlite_url).send("flag", *[flag(i, noun("help", i)) for i in range(3)])
    for i in range(3):
        fix = ("override", "--source", "test", "--event-id", f"f{i}", "--stage", "help", "--reviewer", "Eva")
        assert run(vocbeam, *fix).code == 0
    labels = write_labels(tmp_path / "labels.csv", 2)
    trained = train(vocbeam, labels, "--no-publish").json
    assert trained["data"]["sources"] == {str(labels): 160, "corrections": 3}


def corrected_shop(vocbeam: Vocbeam, at: int = T0) -> Shop:
    """A flag of Ana's, a ticket of Ana's and one of Bia's, all corrected, with notes that name them."""
    shop = Shop(vocbeam.warehouse)
    shop.send("flag", flag("ana", "I am ana", ANA, at))
    shop.send("ticket", step("t-ana", 1, "opened", ANA, at), step("t-ana", 2, "closed", None, at))
    shop.send("ticket", step("t-bia", 1, "opened", BIA, at), step("t-bia", 2, "closed", None, at))
    for target in (("--event-id", "fana"), ("--event-id", "t-ana-2"), ("--ticket", "t-ana"), ("--ticket", "t-bia")):
        note = f"about {target[1]}"
        fix = ("override", "--source", "test", *target, "--stage", "deliver", "--reviewer", "Eva", "--note", note)
        assert run(vocbeam, *fix).code == 0
    return shop


def test_erase__corrections_of_the_customer_go(engine: Engine, vocbeam: Vocbeam) -> None:
    shop = corrected_shop(vocbeam)
    assert overrides(engine) == 4
    eraser(vocbeam.warehouse).erase([ANA])
    with engine.connect() as connection:
        assert connection.execute(select(tag_override.c.note)).scalars().all() == ["about t-bia"]
    assert places_of(engine, ANA, "fana", "t-ana") == {"erasure_marker"}
    assert books_that_fail(engine) == []
    assert (
        "no ticket 't-ana'"
        in run(
            vocbeam, "override", "--source", "test", "--ticket", "t-ana", "--stage", "help", "--reviewer", "Eva"
        ).error
    )
    assert shop.send("ticket", step("t-ana", 3, "reopened", None))["dropped"] == 1


def test_retain__corrections_go_with_what_they_name(engine: Engine, vocbeam: Vocbeam) -> None:
    corrected_shop(vocbeam)

    def expire(limits: Limits) -> list[str | None]:
        retain(open_engine(vocbeam.warehouse), engine, limits, now=lambda: NOW)
        with engine.connect() as connection:
            return list(connection.execute(select(tag_override.c.note).order_by("override_id")).scalars())

    assert expire(Limits(flag=T0 + 1)) == ["about t-ana-2", "about t-ana", "about t-bia"]
    # The tickets stand longer than their events, and so do their corrections.
    assert expire(Limits(event=T0 + 1)) == ["about t-ana", "about t-bia"]
    assert tickets(engine)["t-ana"] == (*DELIVER, "", "override")
    whole = ("--source", "test", "--ticket", "t-ana")
    assert run(vocbeam, "override", *whole, "--stage", "help", "--reviewer", "Eva", "--json").json["corrections"] == 1
    assert tickets(engine)["t-ana"] == (*HELP, "", "override")
    assert books_that_fail(engine) == []
    assert expire(Limits(ticket=NOW)) == []
    assert books_that_fail(engine) == []


def overrider(url: str, reach: Failpoint) -> Overrider:
    restater = Restater(
        open_engine(url, write=True),
        rules=subject_rules(GOVERNANCE),
        calendar=LocalCalendar(GOVERNANCE.timezone),
        failpoint=reach,
    )
    return Overrider(restater, now=lambda: NOW)


class Stopped(Exception):
    """What a failpoint of these tests raises."""


def test_make__is_all_or_nothing(engine: Engine, vocbeam: Vocbeam, monkeypatch: pytest.MonkeyPatch) -> None:
    Shop(vocbeam.warehouse).send("flag", flag(1))
    before = contents(engine)
    target = Target("test", "flag", "f1")
    with engine.connect() as connection:
        (known,) = find_targets(connection, [target], lambda *identity: subject_key("ticket", *identity))[target]
    wanted = Override(known, *HELP, "", "Eva", None)

    def stop(moment: str) -> None:
        if moment == "before_commit":
            raise Stopped

    with pytest.raises(Stopped):
        overrider(vocbeam.warehouse, Failpoint(stop)).make([wanted])
    assert (overrides(engine), contents(engine)) == (0, before)
    assert overrider(vocbeam.warehouse, Failpoint()).make([wanted]).made == 1

    # One scan for each: what another one is about is not taken for this one's.
    monkeypatch.setattr(sinks_overrides, "PASS_TARGETS", 1)
    others = [Target("test", None, "f1"), Target("other", "flag", "f1"), target]
    with engine.connect() as connection:
        found = find_targets(connection, others, lambda *identity: subject_key("ticket", *identity))
    assert {one: len(same) for one, same in found.items()} == dict(zip(others, (1, 0, 1), strict=True))

    # Erased between the look and the correction.
    with engine.begin() as connection:
        connection.execute(event.delete())
    assert overrider(vocbeam.warehouse, Failpoint()).make([wanted]) == Done(gone=[known])


def test_commands__say_what_is_wrong(engine: Engine, vocbeam: Vocbeam) -> None:
    def error(*arguments: str) -> str:
        result = run(vocbeam, *arguments)
        assert result.code == 2
        return result.error

    one = ("--source", "test", "--event-id", "f1")
    assert "no event 'f1' of source 'test'" in error("override", *one, "--stage", "help")
    assert "stage 'hepl'; allowed: deliver, help, unassigned; did you mean 'help'?" in error(
        "override", *one, "--stage", "hepl"
    )
    assert "department 'x'; allowed: logistics, care" in error("override", *one, "--stage", "help", "--department", "x")
    assert "give the event's" in error("override", *one, "--ticket", "t", "--stage", "help")
    assert "neither an event id" in error("override", "--source", "test", "--stage", "help")
    assert "give --event-id or --ticket" in error("withdraw", "--source", "test")
    assert "--csv exports" in error("list", "--csv", "--json")
    assert json.loads(run(vocbeam, "rate", "--json").stdout) == []
