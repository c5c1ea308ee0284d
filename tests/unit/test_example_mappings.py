"""The shipped mappings on small invented files in the shape of the public ones, with events worked out by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vocbeam.schemas.records import EventType
from vocbeam.transforms.mapping import MappedEvent, load_mapping, open_mapping

MAPPINGS = Path(__file__).parents[2] / "examples" / "mappings"


def micros(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def events_of(name: str, folder: Path, event_type: EventType, tables: dict[str, str]) -> list[dict[str, Any]]:
    """Events of one type, from the given tables (file text) alone."""
    mapping = load_mapping(MAPPINGS / f"{name}.yaml")
    files = {table: mapping.files[table].model_copy(update={"path": f"{table}.txt"}) for table in tables}
    queries = tuple(query for query in mapping.events if query.rows in tables)
    for table, text in tables.items():
        (folder / f"{table}.txt").write_text(text)
    with open_mapping(mapping.model_copy(update={"files": files, "events": queries}), folder) as opened:
        events = [*opened.rejected, *opened.events(event_type)]
    assert all(isinstance(event, MappedEvent) for event in events), events
    return [event.record for event in events if isinstance(event, MappedEvent)]


HEADER = (
    "number,incident_state,sys_mod_count,opened_at,sys_updated_by,sys_updated_at,resolved_at,assignment_group,"
    "caller_id,contact_type,priority"
)


def incident(number: str, resolved_at: str, *rows: tuple[str, int, str, str]) -> list[str]:
    """CSV rows of one incident opened at 08:55, from (state, sys_mod_count, time on 1 March 2016, group)."""
    return [
        f"{number},{state},{count},1/3/2016 08:55,Updated by 1,1/3/2016 {time},{resolved_at},{group},Caller 1,Phone,3"
        for state, count, time, group in rows
    ]


INCIDENTS = {
    "reopened": incident(
        "I1",
        "1/3/2016 12:30",
        ("New", 0, "09:00", "A"),
        ("New", 1, "09:05", "A"),
        ("New", 2, "09:10", "B"),
        ("Active", 3, "09:15", "C"),
        ("Active", 4, "09:20", "D"),
        ("Awaiting User Info", 5, "09:25", "D"),
        ("Resolved", 6, "10:00", "D"),
        ("Active", 7, "11:00", "D"),
        ("Resolved", 8, "12:00", "D"),
        ("Resolved", 9, "12:30", "D"),
        ("Closed", 10, "20:00", "D"),
    ),
    "unresolved": incident("I2", "?", ("Resolved", 0, "09:00", "A"), ("Closed", 1, "20:00", "A")),
    "resolved at once": incident("I3", "1/3/2016 09:00", ("Resolved", 0, "09:00", "A"), ("Closed", 1, "20:00", "A")),
    "same count": incident("I4", "?", ("New", 0, "09:00", "A"), ("Active", 3, "11:00", "A"), ("New", 3, "10:00", "A")),
}

TOLD = {
    "reopened": [
        ("opened", "08:55"),
        ("opened", "09:05"),
        ("reassigned", "09:10"),
        ("responded", "09:15"),
        ("reassigned", "09:20"),
        ("responded", "09:25"),
        ("resolved", "10:00"),
        ("reopened", "11:00"),
        ("resolved", "12:30"),  # the first row of the last spell carries resolved_at
        ("resolved", "12:30"),
        ("closed", "20:00"),
    ],
    "unresolved": [("opened", "08:55"), ("opened", "20:00")],
    "resolved at once": [("opened", "08:55"), ("resolved", "09:00")],
    "same count": [("opened", "08:55"), ("opened", "10:00"), ("responded", "11:00")],
}


@pytest.mark.parametrize("case", INCIDENTS)
def test_servicenow__statuses_and_times(case: str, tmp_path: Path) -> None:
    rows = [HEADER, *reversed(INCIDENTS[case])]  # the order of the file plays no part
    events = events_of("servicenow", tmp_path, "ticket", {"updates": "\n".join(rows) + "\n"})
    events.sort(key=lambda event: (event["sequence"], event["event_time"], event["event_id"]))
    told = [(event["status"], event["event_time"]) for event in events]
    assert told == [(status, micros(f"2016-03-01T{time}")) for status, time in TOLD[case]]


def test_servicenow__one_event_for_each_row_and_its_fields(tmp_path: Path) -> None:
    rows = [HEADER, *INCIDENTS["same count"], INCIDENTS["same count"][1].replace("Updated by 1,", "Updated by 908,")]
    events = events_of("servicenow", tmp_path, "ticket", {"updates": "\n".join(rows) + "\n"})
    assert [event["event_id"] for event in sorted(events, key=lambda event: str(event["event_id"]))] == [
        "I4/0/20160301T0900/1",
        "I4/3/20160301T1000/1",
        "I4/3/20160301T1100/1",
        "I4/3/20160301T1100/2",
    ]
    first, *_, last = events
    assert first == {
        "source": "servicenow",
        "event_id": "I4/0/20160301T0900/1",
        "event_time": micros("2016-03-01T08:55"),
        "customer_id": "Caller 1",
        "segments": {"channel": "phone"},
        "ticket_id": "I4",
        "sequence": 0,
        "actor": "agent",
        "status": "opened",
        "queue": "A",
        "priority": "3",
    }
    assert last["actor"] == "bot"


ORDERS = """\
order_id,customer_id,order_status,order_purchase_timestamp,order_approved_at,order_delivered_carrier_date,\
order_delivered_customer_date,order_estimated_delivery_date
o1,c1,delivered,2018-03-01 10:00:00,2018-03-01 10:30:00,,2018-03-05 12:00:00,2018-03-05 00:00:00
o2,c1,canceled,2018-03-02 10:00:00,,,,2018-03-09 00:00:00
"""
OLIST = {
    "customers": "customer_id,customer_unique_id,customer_state\nc1,u1,SP\n",
    "orders": ORDERS,
    "payments": "order_id,payment_sequential,payment_value\no1,1,10.07\no1,2,0.1\n",
    "reviews": "review_id,order_id,review_score,review_comment_title,review_comment_message,review_creation_date\n"
    "r1,o1,4,,Bom,2018-03-06 00:00:00\nr1,o2,1,Nunca,chegou,2018-03-06 00:00:00\n",
}


def test_olist__survey(tmp_path: Path) -> None:
    first, second = events_of("olist", tmp_path, "survey", OLIST)
    midnight = micros("2018-03-06T03:00")  # São Paulo was at UTC-3
    assert first == {
        "source": "olist",
        "event_id": "r1/o1",
        "event_time": midnight,
        "customer_id": "u1",
        "segments": {"region": "SP", "channel": "marketplace"},
        "survey_id": "review",
        "response_id": "r1/o1",
        "metric": "csat",
        "score": 4.0,
        "weight": 18.6539,
        "comment": "Bom",
        "touchpoint": "order",
        "sent_at": midnight,
        "status": "complete",
    }
    assert (second["event_id"], second["weight"], second["comment"]) == ("r1/o2", 1.0, "Nunca\nchegou")


def test_olist__telemetry_of_the_order(tmp_path: Path) -> None:
    approved, delivered = events_of("olist", tmp_path, "telemetry", OLIST)
    assert (approved["name"], approved["duration_ms"]) == ("order_approved", 30 * 60_000)
    assert "value" not in approved
    # 4 days and 2 hours under way, 12 hours after the promised midnight
    assert (delivered["name"], delivered["duration_ms"], delivered["value"]) == (
        "order_delivered",
        98 * 3_600_000,
        43_200,
    )
    assert delivered["event_time"] == micros("2018-03-05T15:00")


def test_olist__outcomes(tmp_path: Path) -> None:
    events = events_of("olist", tmp_path, "outcome", OLIST)
    assert [
        (event["event_id"], event["outcome_kind"], event.get("amount"), event.get("currency")) for event in events
    ] == [
        ("o1/1", "purchase", 1007, "BRL"),
        ("o1/2", "purchase", 10, "BRL"),
        ("o2/cancellation", "cancellation", None, None),
    ]


def test_sfo__answers_of_2017(tmp_path: Path) -> None:
    columns = [
        "Q7ART",
        "Q7FOOD",
        "Q7STORE",
        "Q7SIGN",
        "Q7WALKWAYS",
        "Q7SCREENS",
        "Q7INFODOWN",
        "Q7INFOUP",
        "Q7WIFI",
        "Q7ROADS",
        "Q7PARK",
        "Q7AIRTRAIN",
        "Q7LTPARKING",
        "Q7RENTAL",
        "Q7ALL",
        "Q9BOARDING",
        "Q9AIRTRAIN",
        "Q9RENTAL",
        "Q9FOOD",
        "Q9RESTROOM",
        "Q9ALL",
        "Q10SAFE",
        "Q13GETRATE",
        "Q14FIND",
        "Q14PASSTHRU",
        "NETPRO",
    ]
    first = {"Q7ART": "5", "Q7FOOD": "6", "Q7STORE": "0", "Q7ALL": "Blank", "Q14PASSTHRU": "1", "NETPRO": "0"}
    second = {"NETPRO": "11"}
    rows = [
        f"{n},13,2,0.25," + ",".join(row.get(name, "") for name in columns) for n, row in enumerate((first, second))
    ]
    text = "\n".join(["RESPNUM,INTDATE,METHOD,WEIGHT," + ",".join(columns), *rows]) + "\n"
    events = events_of("sfo_survey", tmp_path, "survey", {"y2017": text})
    assert [(event["event_id"], event["metric"], event["score"]) for event in events] == [
        ("2017/0/nps/overall", "nps", 0.0),
        ("2017/0/rating/artwork", "rating", 5.0),
        ("2017/0/rating/security", "rating", 1.0),
    ]
    assert (events[0]["weight"], events[0]["survey_id"], events[0]["segments"]) == (
        0.25,
        "sfo-2017",
        {"channel": "mail"},
    )
    assert events[0]["event_time"] == micros("2017-05-13T07:00")  # midnight in California, summer time


def test_sparkify__telemetry_and_outcomes(tmp_path: Path) -> None:
    common = {"sessionId": 3, "level": "paid", "userId": "7"}
    lines = [
        {**common, "itemInSession": 0, "page": "NextSong", "length": 1.5, "status": 200, "ts": 1_541_000_000_123},
        {**common, "itemInSession": 1, "page": "Error", "length": None, "status": 404, "ts": 1_541_000_001_000},
        {
            **common,
            "itemInSession": 2,
            "page": "Submit Downgrade",
            "status": 307,
            "ts": 1_541_000_002_000,
            "userId": "",
        },
    ]
    table = {"log": "\n".join(json.dumps(line) for line in lines) + "\n"}
    song, error, _ = events_of("sparkify", tmp_path, "telemetry", table)
    assert (song["event_id"], song["event_time"], song["duration_ms"]) == ("3/0/7", 1_541_000_000_123_000, 1_500.0)
    assert "error_code" not in song
    assert (error["error_code"], error["segments"]) == ("404", {"plan": "paid"})
    (outcome,) = events_of("sparkify", tmp_path, "outcome", table)
    assert outcome["outcome_kind"] == "downgrade"
    assert "customer_id" not in outcome


def test_tweets__repeated_row_is_another_ticket(tmp_path: Path) -> None:
    row = 'negative,1,Late,0.5,Blue Air,"late, again",16-02-2015 09:05,\n'
    header = (
        "airline_sentiment,airline_sentiment_confidence,negativereason,negativereason_confidence,airline,text,"
        "tweet_created,user_timezone\n"
    )
    first, second = events_of("tweets", tmp_path, "ticket", {"tweets": header + row + row})
    assert first["event_id"].removesuffix("/1") == second["event_id"].removesuffix("/2")
    assert (first["body"], first["queue"], first["actor"]) == ("late, again", "Blue Air", "customer")
    assert first["event_time"] == micros("2015-02-16T17:05")  # Pacific standard time
