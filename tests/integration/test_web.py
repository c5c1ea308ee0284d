"""The web pages over both databases: what they show, who may do what, and what they refuse."""

from __future__ import annotations

import html
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from tests.support.postgres import PostgresServer
from tests.support.web import NOW, SCRIPT, TOKEN, Pages, Sent, fill, served
from vocbeam.pipelines.cli import vocbeam
from vocbeam.pipelines.web.people import People
from vocbeam.pipelines.web.sign_in import ProxySignIn
from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks import audit, tables
from vocbeam.sinks.cases import cases
from vocbeam.sinks.engine import driver_error, open_engine
from vocbeam.sinks.flags import flags

PEOPLE = People.model_validate(
    {
        "people": {
            "lia": {"role": "department", "departments": ["logistics"]},
            "cai": {"role": "department", "departments": ["care"]},
            "ada": {"role": "admin"},
        },
        "groups": {"everybody": {"role": "viewer"}},
    }
)
PROXY = ProxySignIn(PEOPLE, frozenset({"127.0.0.1"}), "X-Forwarded-User", "X-Forwarded-Groups")
LIA, CAI, ADA = ({"X-Forwarded-User": name} for name in ("lia", "cai", "ada"))
VIEWER = {"X-Forwarded-User": "vic", "X-Forwarded-Groups": "others,everybody"}


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite warehouse with figures, flags and cases, to be copied."""
    path = tmp_path_factory.mktemp("filled") / "warehouse.db"
    engine = fill(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@pytest.fixture(scope="module")
def filled_database(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a PostgreSQL warehouse of the same content, to be copied."""
    with postgres_server.database() as url:
        fill(url).dispose()
        yield url.rpartition("/")[2]


@pytest.fixture
def sqlite_copy(filled_file: Path, tmp_path: Path) -> str:
    """A filled SQLite warehouse of this test alone."""
    shutil.copy(filled_file, tmp_path / "warehouse.db")
    return f"sqlite:///{tmp_path / 'warehouse.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def filled_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A filled warehouse of this test alone, on either database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_copy")
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.database(request.getfixturevalue("filled_database")) as url:
        yield url


@pytest.fixture
def proxied(filled_url: str) -> Iterator[Pages]:
    """Pages behind a trusted proxy on this machine."""
    with served(filled_url, sign_in=PROXY, open_flags=False) as pages:
        yield pages


@pytest.fixture
def quick(sqlite_copy: str) -> Iterator[Pages]:
    """Pages over SQLite, where the database makes no difference."""
    with served(sqlite_copy) as pages:
        yield pages


def trail(url: str) -> list[tuple[str, str, str, str]]:
    """(who, action, object, outcome) of the audit trail, the oldest first."""
    with open_engine(url).connect() as connection:
        rows = audit.entries(connection, limit=100)
    return [(row.who, row.action, row.object, row.outcome) for row in reversed(rows)]


def test_pages__figures_trends_topics_flags_and_cases(filled_url: str) -> None:
    with served(filled_url) as pages:
        assert pages.get("/").headers["Location"] == "/sign-in"
        assert pages.get(f"/sign-in/token?token={TOKEN}").headers["Location"] == "/"
        home = pages.get("/").text
        assert "Corner Shop" in home
        assert "1 open flag, 1 open case" in home
        stage = pages.get("/stages/help").text
        # May 2018 holds weeks 5 to 8 of 0 to 12, with 60 + 2 × week of 100 satisfied.
        assert "73.0 %" in stage
        assert "missed" in stage
        assert stage.count('<polyline class="line"') == 1
        assert stage.count("<circle") == 13
        assert "week of 2018-06-25: 84.0 %" in stage
        # Not satisfied in these four weeks: 30 + 28 + 26 + 24.
        assert '<td>Satisfaction</td><td class="r">108</td>' in stage
        assert "Nobody answers on Mondays" in stage
        assert "The driver is always early" not in stage
        department = pages.get("/departments/logistics").text
        assert "95.0 %" in department
        assert "The driver is always early" in department
        assert "Satisfaction at deliver has missed its target" in department
        assert pages.get("/flags/nothing").status_code == 422
        assert pages.get("/stages/nowhere").status_code == 404
        assert pages.get("/departments/nobody").status_code == 404


def test_words_of_a_flag_stay_words(quick: Pages) -> None:
    quick.get(f"/sign-in/token?token={TOKEN}")
    answer = quick.get("/departments/logistics")
    assert SCRIPT not in answer.text
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    for path in ("/", "/stages/deliver", "/flags/new", "/audit", "/cases/1", "/nothing"):
        page = quick.get(path).text
        assert "<script" not in page
        assert " style=" not in page
        assert " on" not in "".join(part.split(">")[0] for part in page.split("<"))


def test_flag_form__sends_what_was_entered(quick: Pages) -> None:
    sent = quick.site._send
    assert isinstance(sent, Sent)
    form = {"kind": "idea", "stage": "deliver", "text": "Ring twice <b>", "severity": "high", "anonymous": "yes"}
    answer = quick.post("/flags/new", form)
    assert answer.headers["Location"] == "/flags/sent/event-0"
    assert "event-0" in quick.get("/flags/sent/event-0").text
    (record,) = sent.records
    assert (record["flag_kind"], record["journey_stage"], record["text"]) == ("idea", "deliver", "Ring twice <b>")
    assert record["severity"] is None
    assert "reporter" not in str(quick.get("/audit").text)
    wrong = quick.post("/flags/new", {"kind": "idea", "text": "   ", "stage": "deliver"})
    assert wrong.status_code == 422
    assert 'id="text-wrong"' in wrong.text
    assert "the text is empty" in wrong.text
    assert len(sent.records) == 1


def test_flag_form__an_anonymous_flag_leaves_no_trace_of_who_raised_it(sqlite_copy: str) -> None:
    with served(sqlite_copy, sign_in=PROXY) as pages:
        form = {"kind": "praise", "stage": "deliver", "text": "Well packed"}
        pages.post("/flags/new", {**form, "anonymous": "yes"}, headers=LIA)
        assert trail(sqlite_copy) == []
        pages.post("/flags/new", form, headers=LIA)
        assert trail(sqlite_copy) == [("lia", "flag_raise", "event-1", "done")]


def test_flag_form__is_closed_to_strangers_unless_opened(sqlite_copy: str) -> None:
    with served(sqlite_copy, sign_in=PROXY, open_flags=False) as pages:
        assert pages.get("/flags/new").status_code == 403
        assert (
            pages.client.post("/flags/new", data={"csrf_token": pages.csrf("/flags/new", headers=VIEWER)}).status_code
            == 403
        )
        assert pages.get("/flags/new", headers=VIEWER).status_code == 200


def test_forms__need_their_token(quick: Pages) -> None:
    form = {"kind": "idea", "stage": "deliver", "text": "Ring twice"}
    quick.csrf("/flags/new")
    for token in ({}, {"csrf_token": ""}, {"csrf_token": quick.visitor().csrf("/flags/new")}):
        assert quick.client.post("/flags/new", data={**form, **token}).status_code == 400
    quick.get(f"/sign-in/token?token={TOKEN}")
    for path in ("/flags/x/acknowledge", "/flags/x/resolve", "/cases/1/acknowledge", "/cases/1/close", "/sign-out"):
        assert quick.client.post(path, data={}).status_code == 400
    assert quick.site._send.records == []  # type: ignore[attr-defined]


def test_forms__limit_how_often_and_how_much(quick: Pages) -> None:
    form = {"kind": "idea", "stage": "deliver", "text": "Ring twice", "anonymous": "yes"}
    codes = [quick.post("/flags/new", form).status_code for _ in range(7)]
    assert codes == [302] * 5 + [429] * 2
    assert "Too Many Requests" in quick.post("/flags/new", form).text
    token = quick.csrf("/flags/new")
    assert quick.client.post("/flags/new", data={"csrf_token": token, "text": "x" * 17_000}).status_code == 413
    assert quick.client.post("/flags/new", data={"csrf_token": token, "text": "x" * 70_000}).status_code == 413
    wrong = [quick.client.get("/sign-in/token?token=guess").status_code for _ in range(12)]
    assert wrong == [403] * 10 + [429] * 2


def test_forms__limits_are_those_of_the_device_behind_a_trusted_proxy(sqlite_copy: str) -> None:
    form = {"kind": "idea", "text": "Ring twice", "anonymous": "yes"}

    def codes(pages: Pages) -> list[int]:
        addresses = ("10.0.0.1", "10.0.0.2")
        return [
            pages.post("/flags/new", form, headers={**VIEWER, "X-Forwarded-For": f"6.6.6.{i}, {address}"}).status_code
            for address in addresses
            for i in range(6)
        ]

    with served(sqlite_copy, sign_in=PROXY, trusted_proxies=frozenset({"127.0.0.1"})) as pages:
        assert codes(pages) == ([302] * 5 + [429]) * 2
    with served(sqlite_copy, sign_in=PROXY) as pages:
        assert codes(pages) == [302] * 5 + [429] * 7


def test_flags__only_their_department_acts(proxied: Pages, filled_url: str) -> None:
    with open_engine(filled_url).connect() as connection:
        (flag,) = flags(connection, department="logistics")
    outcome = {"outcome": "We told the driver"}
    for somebody in (CAI, VIEWER):
        for action in ("acknowledge", "resolve"):
            assert proxied.post(f"/flags/{flag.key}/{action}", outcome, headers=somebody).status_code == 403
    assert "Acknowledge" not in proxied.get("/departments/logistics", headers=CAI).text
    assert "Acknowledge" in proxied.get("/departments/logistics", headers=LIA).text
    assert proxied.post(f"/flags/{flag.key}/acknowledge", {}, headers=LIA).status_code == 302
    assert proxied.post(f"/flags/{flag.key}/resolve", {"outcome": " "}, headers=LIA).status_code == 422
    assert proxied.post(f"/flags/{flag.key}/resolve", outcome, headers=ADA).status_code == 302
    with open_engine(filled_url).connect() as connection:
        (after,) = flags(connection, department="logistics")
    assert (after.acknowledged_by, after.resolved_by, after.outcome) == ("lia", "ada", "We told the driver")
    assert after.resolved_at == NOW
    page = proxied.get(f"/flags/{flag.key}", headers=VIEWER).text
    assert "We told the driver" in page
    assert "What moved since" in page
    on = f"flag {flag.key}"
    assert trail(filled_url) == [
        ("cai", "flag_acknowledge", on, "refused"),
        ("cai", "flag_resolve", on, "refused"),
        ("vic", "flag_acknowledge", on, "refused"),
        ("vic", "flag_resolve", on, "refused"),
        ("lia", "flag_acknowledge", on, "done"),
        ("ada", "flag_resolve", on, "done"),
    ]


def test_cases__only_their_department_acts_and_says_cause_and_action(proxied: Pages, filled_url: str) -> None:
    with open_engine(filled_url).connect() as connection:
        (case,) = cases(connection, department="care")
    path = f"/cases/{case.case_id}"
    said = {"root_cause": "Two were ill", "action": "A third was trained"}
    for action in ("acknowledge", "close"):
        assert proxied.post(f"{path}/{action}", said, headers=LIA).status_code == 403
    assert "Close the case" not in proxied.get(path, headers=LIA).text
    assert proxied.post(f"{path}/acknowledge", {}, headers=CAI).status_code == 302
    for missing in said:
        answer = proxied.post(f"{path}/close", {**said, missing: " "}, headers=CAI)
        assert answer.status_code == 422
        assert f"{missing} is empty" in answer.text
    assert "A third was trained" in proxied.post(f"{path}/close", {**said, "root_cause": ""}, headers=CAI).text
    assert proxied.post(f"{path}/close", said, headers=CAI).status_code == 302
    with open_engine(filled_url).connect() as connection:
        (after,) = cases(connection, department="care")
    assert (after.acknowledged_by, after.closed_by, after.root_cause) == ("cai", "cai", "Two were ill")
    closed = proxied.get(path, headers=VIEWER).text
    assert "once a whole day has passed" in closed
    assert "Two were ill" in closed
    assert "Close the case" not in closed
    assert [entry[1:] for entry in trail(filled_url) if entry[0] == "cai"] == [
        ("case_acknowledge", f"case {case.case_id}", "done"),
        ("case_close", f"case {case.case_id}", "done"),
    ]
    assert proxied.get("/cases/999", headers=CAI).status_code == 422


def test_proxy_sign_in__is_believed_only_from_its_address(sqlite_copy: str) -> None:
    with served(sqlite_copy, sign_in=PROXY) as pages:
        assert pages.get("/", headers=VIEWER).status_code == 200
        assert pages.get("/").status_code == 403
        assert pages.get("/", headers={"X-Forwarded-User": "stranger"}).status_code == 403
    elsewhere = ProxySignIn(PEOPLE, frozenset({"192.0.2.1"}), "X-Forwarded-User", "X-Forwarded-Groups")
    with served(sqlite_copy, sign_in=elsewhere, open_flags=False) as pages:
        assert pages.get("/", headers=ADA).status_code == 403


def test_token_sign_in__and_out(quick: Pages, sqlite_copy: str) -> None:
    assert quick.get("/sign-in/token?token=").status_code == 403
    assert quick.post("/sign-in/token", {"token": TOKEN}, page="/sign-in").status_code == 302
    assert quick.get("/").status_code == 200
    cookie = quick.client.cookies["vocbeam"]
    assert quick.post("/sign-out", {}, page="/").headers["Location"] == "/sign-in"
    assert quick.get("/").status_code == 302
    assert [entry[:2] + entry[3:] for entry in trail(sqlite_copy)] == [
        ("nobody", "sign_in", "refused"),
        ("local", "sign_in", "done"),
        ("local", "sign_out", "done"),
    ]
    forged = quick.visitor()
    forged.client.cookies.set("vocbeam", cookie[:-2])
    assert forged.get("/").status_code == 302


def test_hosts__a_name_that_was_made_to_point_here_is_refused(quick: Pages) -> None:
    assert quick.get("/sign-in", headers={"Host": "evil.example"}).status_code == 400
    assert quick.get("/healthz", headers={"Host": "10.1.2.3"}).json() == {"status": "ok", "warehouse": "ok"}


def test_audit_trail__is_for_admins_and_refuses_changes(proxied: Pages, filled_url: str) -> None:
    assert proxied.post("/cases/1/close", {}, headers=VIEWER).status_code == 403
    assert proxied.get("/audit", headers=LIA).status_code == 403
    page = proxied.get("/audit", headers=ADA).text
    assert "case close" in page
    assert "vic" in page
    engine = open_engine(filled_url, write=True)
    for statement in ("UPDATE audit_trail SET who = 'x'", "DELETE FROM audit_trail"):
        with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
            connection.execute(text(statement))
        cause = driver_error(refused.value)
        assert isinstance(cause, sqlite3.IntegrityError | psycopg.errors.RaiseException)
        assert "only ever added to" in str(cause)
    with engine.connect() as connection:
        assert len(connection.execute(select(tables.audit_trail.c.entry_id)).all()) == 1


def test_least_rights__the_role_web_suffices(postgres_server: PostgresServer, filled_database: str) -> None:
    account = f"{filled_database}_clerk"
    with postgres_server.database(filled_database) as url:
        owner = open_engine(url, write=True)
        with owner.begin() as connection:
            connection.exec_driver_sql(f'CREATE ROLE "{account}" LOGIN IN ROLE "{filled_database}_web"')
        own = url.replace("vocbeam@", f"{account}@")
        with served(own, sign_in=PROXY) as pages:
            for path in ("/", "/stages/help", "/departments/care", "/audit"):
                assert pages.get(path, headers=ADA).status_code == 200, path
            with owner.connect() as connection:
                (flag,) = flags(connection, department="care")
            said = {"root_cause": "Two were ill", "action": "A third was trained", "outcome": "Done"}
            for path in (f"/flags/{flag.key}/acknowledge", f"/flags/{flag.key}/resolve", "/cases/1/close"):
                assert pages.post(path, said, headers=CAI).status_code == 302, path
            assert pages.get("/cases/1", headers=CAI).status_code == 200
        assert [entry[3] for entry in trail(url)] == ["done"] * 3
        owner.dispose()


def test_database_down__pages_say_so_and_recover(postgres_server: PostgresServer, filled_database: str) -> None:
    with postgres_server.database(filled_database) as url, served(url, refresh_seconds=0.5) as pages:
        pages.get(f"/sign-in/token?token={TOKEN}")
        assert pages.get("/stages/help").status_code == 200
        postgres_server.halt()
        try:
            for path in ("/", "/stages/help", "/departments/care", "/cases/1", "/audit"):
                answer = pages.get(path)
                assert answer.status_code == 503, path
                assert "can't be read at the moment" in html.unescape(answer.text)
            assert pages.get("/healthz").status_code == 200
        finally:
            postgres_server.resume()
        assert pages.get("/stages/help").status_code == 200


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--address", "0.0.0.0"], "local token is for this machine alone"),
        (["--address", "0.0.0.0", "--sign-in", "proxy"], "--public-url"),
        (["--address", "somewhere"], "is no IP address"),
        (["--sign-in", "oidc"], "needs --oidc-issuer"),
        (["--sign-in", "oidc", "--oidc-issuer", "http://example.com", "--oidc-client-id", "x"], "is not https"),
        (["--sign-in", "proxy", "--trusted-proxy", "all"], "write an IP address"),
    ],
)
def test_command__refuses_what_would_open_the_pages(tmp_path: Path, options: list[str], reason: str) -> None:
    result = CliRunner().invoke(vocbeam, ["web", "--home", str(tmp_path), "--port", "0", *options])
    assert isinstance(result.exception, ConfigError)
    assert reason in str(result.exception)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("people: {ana: {role: boss}}", "people.ana.role"),
        ("people: {ana: {role: department}}", "departments"),
        ("people: [", "not valid YAML"),
        ("everyone: admin", "everyone"),
    ],
)
def test_people_file__errors_name_place_and_problem(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "people.yaml"
    path.write_text(content, encoding="utf-8")
    result = CliRunner().invoke(vocbeam, ["web", "--home", str(tmp_path), "--sign-in", "proxy", "--people", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert reason in str(result.exception)
    assert str(path) in str(result.exception)
