"""What each PostgreSQL role can and can't do, tried on a real server by accounts that are members of it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, inspect, text

from tests.support.accounts import Accounts, accounts
from tests.support.postgres import PostgresServer
from tests.support.warehouse import NOW, chunk, mini, new_warehouse, partition_tables, writer
from vocbeam.pipelines.case_receiver import receiver_app
from vocbeam.pipelines.cli import vocbeam
from vocbeam.schemas.errors import ConfigError, SinkError
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.governance_model import Governance
from vocbeam.sinks.cases import close_case
from vocbeam.sinks.catalog import ensure_governance, migrate, require_current
from vocbeam.sinks.engine import driver_error, open_engine
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.reconcile import reconcile
from vocbeam.sinks.roles import ROLES, TABLE_ACCESS, Role, rights, role_names
from vocbeam.sinks.tables import metadata
from vocbeam.sinks.views import view_comments, view_names
from vocbeam.transforms.bins import all_bins

STATEMENTS = {
    "SELECT": 'SELECT * FROM "{name}" LIMIT 0',
    "INSERT": 'INSERT INTO "{name}" SELECT * FROM "{name}" WHERE FALSE',
    "UPDATE": 'UPDATE "{name}" SET "{column}" = NULL WHERE FALSE',
    "DELETE": 'DELETE FROM "{name}"',
    "TRUNCATE": 'TRUNCATE "{name}"',
}
HELD = {
    privilege: text(f"SELECT has_{what}_privilege(:name, :privilege)")
    for what, privileges in {"any_column": ("SELECT", "INSERT", "UPDATE"), "table": ("DELETE", "TRUNCATE")}.items()
    for privilege in privileges
}
"""Whether an account has a privilege on a table, or on some of its columns."""
PERSONAL = {
    "customer_key",
    "text",
    "tag_words",
    "subject",
    "raw",
    "versions",
    "retagged",
    "event_id",
    "response_id",
    "session_id",
    "ticket_id",
}
"""Columns that tell of one person, or hold their words."""

ARRIVED = (
    {"event_id": "1", "event_time": NOW, "customer_key": "c1", "ticket_id": "t1", "status": "opened", "body": "help"},
    {"event_id": "2", "event_time": NOW, "customer_key": "c1", "ticket_id": "t1", "status": "resolved"},
)


@pytest.fixture(scope="module")
def owned(postgres_server: PostgresServer) -> Iterator[Accounts]:
    """A warehouse that belongs to an account without any rights beyond it but to create roles."""
    with postgres_server.database() as url, accounts(url) as made:
        new_warehouse(made.owner, mini()).dispose()
        yield made


@pytest.fixture
def fresh(postgres_url: str) -> Iterator[Accounts]:
    """The same for one test alone."""
    with accounts(postgres_url) as made:
        new_warehouse(made.owner, mini()).dispose()
        yield made


@pytest.fixture(scope="module")
def members(owned: Accounts) -> dict[Role, str]:
    """URL of a member of each role."""
    return {role: owned.join(f"member_{role}", name) for role, name in role_names(owned.database).items()}


def allowed(engine: Engine, statement: str) -> bool:
    """Whether an account may run a statement; it is rolled back."""
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(statement)
        except Exception as error:
            if not isinstance(driver_error(error), psycopg.errors.InsufficientPrivilege):
                raise
            return False
    return True


def test_rights__every_table_is_classified() -> None:
    assert set(TABLE_ACCESS) == {*metadata.tables, "schema_version"}, "say in sinks/roles.py who may do what with it"


def test_rights__no_view_of_readers_has_a_personal_column() -> None:
    shown = {(view, column) for view, column, _ in view_comments() if rights(view, "reader")}
    assert shown
    assert {(view, column) for view, column in shown if column in PERSONAL} == set()


def test_rights__what_is_personal_is_readable_by_no_role_but_where_the_writer_folds_it() -> None:
    readable = {
        (role, table.name, column.name)
        for table in metadata.sorted_tables
        for role in ROLES
        for column in table.columns
        if "SELECT" in (granted := rights(table.name, role)) and column.name in (granted["SELECT"] or table.columns)
        and column.name in PERSONAL
    }  # fmt: skip
    assert {role for role, _, _ in readable} == {"writer"}
    folded = {"ticket", "survey_answer", "survey_response", "customer_day"}
    # The writer drops what falls under an erasure, so it must know who was erased; attribution by touchpoint goes by
    # customer, and by the ids that lead to tickets and answers, but never by words.
    assert {table for _, table, _ in readable} == {*folded, "erasure_marker", "event", "settle_event"}
    assert {column for _, table, column in readable if table == "event"} == {
        "customer_key", "event_id", "response_id", "ticket_id",
    }  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_roles__each_statement_on_each_table_and_view(owned: Accounts, members: dict[Role, str], role: Role) -> None:
    engine = open_engine(members[role])
    catalog = inspect(engine)
    parts = partition_tables(engine)
    tables, views = sorted({*catalog.get_table_names()} - parts), catalog.get_view_names()
    assert (set(tables), set(views)) == (set(TABLE_ACCESS), set(view_names()))
    wrong = []
    for name in tables:
        granted = rights(name, role)
        column = catalog.get_columns(name)[0]["name"]
        for privilege, statement in STATEMENTS.items():
            expected = granted.get(privilege) == () or column in granted.get(privilege, ())
            if privilege in ("SELECT", "INSERT"):
                # They name all columns, and what is inserted is read from the same table.
                expected = granted.get(privilege) == () == granted.get("SELECT")
            if allowed(engine, statement.format(name=name, column=column)) != expected:
                wrong.append((name, privilege, "expected" if expected else "not expected"))
    with engine.connect() as connection:
        for name in views:
            # Most views can't be written by anybody, so the catalog is asked.
            held = {p for p in STATEMENTS if connection.execute(HELD[p], {"name": name, "privilege": p}).scalar_one()}
            if held != set(rights(name, role)):
                wrong.append((name, *held))
            assert allowed(engine, STATEMENTS["SELECT"].format(name=name)) == ("SELECT" in held)
    assert wrong == []
    engine.dispose()


def test_roles__what_each_is_for(owned: Accounts, members: dict[Role, str]) -> None:
    engines = {role: open_engine(url) for role, url in members.items()}
    # Written out by hand, independent of the table in code that the grants are made from.
    may = {
        "SELECT value FROM metric_by_month": {"reader", "auditor", "web"},
        "SELECT name FROM metric": {"reader", "auditor", "web", "receiver"},
        "SELECT n FROM measure": {"writer", "auditor", "web"},
        "SELECT text FROM event": set(),
        "SELECT customer_key FROM event": {"writer"},
        "SELECT tag_words FROM event": set(),
        "UPDATE event SET stage = 'pay'": {"writer"},
        "UPDATE event SET customer_key = ''": set(),
        "UPDATE event SET text = ''": set(),
        "DELETE FROM event": set(),
        "SELECT note FROM tag_override": set(),
        "SELECT customer_key FROM customer_day": {"writer"},
        "SELECT * FROM event_export": set(),
        "SELECT contributions FROM event": {"writer", "auditor"},
        "SELECT raw FROM dead_letter": set(),
        "SELECT message FROM dead_letter": {"auditor"},
        "SELECT records FROM dead_letter_by_cause": {"reader", "auditor", "web"},
        "SELECT offsets FROM data_quality": {"reader", "auditor", "web"},
        "SELECT value FROM warehouse_setting": {"writer", "auditor", "web"},
        "SELECT text FROM flag_event FOR UPDATE": {"web"},
        "UPDATE flag_event SET text = ''": set(),
        "SELECT who FROM audit_trail": {"auditor", "web"},
        "UPDATE audit_trail SET who = ''": set(),
        "UPDATE alert_case SET summary = ''": set(),
        "UPDATE alert_case SET closed_at = 0": {"web"},
        "SELECT root_cause FROM alert_case": {"auditor", "web"},
        "UPDATE case_alert SET ended_at = 0": {"receiver"},
        "SELECT made_by FROM flag_action": {"web"},
        "UPDATE taxonomy_version SET governance_text = ''": set(),
        "UPDATE active_tagging SET taxonomy_version = 0": set(),
        "DELETE FROM ingest_ledger": set(),
        "DELETE FROM dead_letter": set(),
        "DELETE FROM audit_trail": set(),
        "DELETE FROM flag_action": set(),
        "CREATE TABLE mine (n INTEGER)": set(),
        "CREATE TEMPORARY TABLE mine (n INTEGER)": {"writer"},
        "CREATE ROLE mine": set(),
        "DROP VIEW metric_by_month": set(),
        "COPY (SELECT 1) TO '/tmp/out'": set(),
    }
    found = {statement: {role for role, engine in engines.items() if allowed(engine, statement)} for statement in may}
    assert found == may
    for engine in engines.values():
        engine.dispose()


def test_roles__writer_loads_and_auditor_reconciles(owned: Accounts, members: dict[Role, str]) -> None:
    governance = mini()
    tickets = chunk(governance, "ticket", ARRIVED)
    writing = writer(members["writer"], governance)
    assert [committed.loaded for committed in writing.write((tickets,))] == [2]
    later = chunk(governance, "ticket", [{**ARRIVED[1], "event_id": "3", "status": "reopened"}], first_offset=2)
    assert [committed.next_offset for committed in writing.write((later,))] == [3]
    checks = reconcile(open_engine(members["auditor"]))
    assert [check for check in checks if not check.balances] == []
    assert {check.what: check.found for check in checks}["events loaded + healed - retired = event keys present"] == 3
    with pytest.raises(SinkError, match=r"permission denied.*may read"):
        reconcile(open_engine(members["reader"]))


def test_roles__receiver_opens_cases_and_the_pages_close_them(owned: Accounts, members: dict[Role, str]) -> None:
    engine = open_engine(members["receiver"], write=True)
    require_current(engine)
    client = receiver_app(engine, "t" * 32, now=lambda: NOW).test_client()

    def tell(*, status: str) -> Mapping[str, int]:
        labels = {
            "alertname": "TargetMissed", "metric": "csat", "stage": "deliver", "department": "logistics",
            "unit": "points", "window": "day",
        }  # fmt: skip
        times = {"startsAt": "2026-03-02T00:00:00Z", "endsAt": "2026-03-03T00:00:00Z"}
        alert = {"status": status, "fingerprint": "f00", "labels": labels, "annotations": {}, **times}
        answer = client.post("/alerts", json={"alerts": [alert]}, headers={"Authorization": f"Bearer {'t' * 32}"})
        assert answer.status_code == 200, answer.text
        return {what: n for what, n in answer.json.items() if n}

    assert tell(status="firing") == {"opened": 1}
    assert tell(status="firing") == {"repeated": 1}
    assert tell(status="resolved") == {"recovered": 1}
    with open_engine(members["web"], write=True).begin() as connection:
        close_case(connection, 1, by="Ana", at=NOW, root_cause="late vans", action="more vans")
    engine.dispose()


def test_roles__writer_starts_under_what_is_in_force_and_under_nothing_else(
    owned: Accounts, members: dict[Role, str]
) -> None:
    engine = open_engine(members["writer"], write=True)

    def start(governance: Governance) -> None:
        ensure_governance(engine, governance, key_fingerprint="fingerprint", bins=all_bins(), now=lambda: NOW)

    start(mini())
    changed = parse_governance(mini().to_yaml_text().replace("Corner Shop", "Another Shop"))
    with pytest.raises(ConfigError, match=r"permission denied.*have its owner run `vocbeam apply`"):
        start(changed)
    new_warehouse(owned.owner, changed).dispose()
    start(changed)
    # The views were created anew; their readers keep their rights.
    assert allowed(open_engine(members["reader"]), "SELECT value FROM metric_by_month")


def test_roles__a_readers_function_sees_no_row_that_a_view_leaves_out(fresh: Accounts) -> None:
    reader = fresh.join("bi", f"{fresh.database}_reader")
    writer(fresh.owner, mini()).write((chunk(mini(), "ticket", ARRIVED),))
    fresh.execute(f'GRANT TEMPORARY ON DATABASE "{fresh.database}" TO PUBLIC')
    told: list[str] = []
    with psycopg.connect(reader.replace("+psycopg", "")) as connection:
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
        connection.execute(
            "CREATE FUNCTION pg_temp.tell(stage TEXT) RETURNS BOOLEAN IMMUTABLE COST 0.0000001 LANGUAGE plpgsql "
            "AS 'BEGIN RAISE NOTICE ''%'', stage; RETURN TRUE; END'"
        )
        # The only ticket is resolved, so it is in no backlog.
        assert connection.execute("SELECT * FROM ticket_backlog WHERE pg_temp.tell(stage)").fetchall() == []
    assert told == []


def test_migrate__another_prefix_takes_the_rights_of_the_former_away(fresh: Accounts) -> None:
    former = fresh.join("bi", f"{fresh.database}_reader")
    other = f"{fresh.database}_x"
    migrate(open_engine(fresh.owner, write=True), other)
    assert not allowed(open_engine(fresh.join("bi2", f"{other}_reader")), "SELECT 1 FROM measure")
    assert allowed(open_engine(fresh.url("bi2")), "SELECT 1 FROM metric_by_month")
    with pytest.raises(SinkError, match="permission denied for database"), snapshot(open_engine(former)):
        pass
    new_warehouse(fresh.owner, mini()).dispose()
    assert allowed(open_engine(fresh.url("bi2")), "SELECT 1 FROM metric_by_month")


def test_migrate__names_the_views_of_others_that_are_built_on_ours(fresh: Accounts) -> None:
    fresh.execute("CREATE SCHEMA bi")
    fresh.execute('CREATE VIEW bi."By month" AS SELECT d.stage FROM metric_by_month d JOIN data_quality ON TRUE')
    fresh.execute("CREATE MATERIALIZED VIEW kept AS SELECT stage FROM metric_by_month")
    engine = open_engine(fresh.owner, write=True)
    with pytest.raises(ConfigError, match=r'^bi\."By month", public\.kept are built on vocbeam\'s views') as refused:
        migrate(engine)
    assert "dbt run" in str(refused.value)
    fresh.execute('DROP VIEW bi."By month"')
    fresh.execute("DROP MATERIALIZED VIEW kept")
    migrate(engine)
    assert allowed(engine, "SELECT 1 FROM metric_by_month")


def test_migrate__role_of_somebody_else_is_left_alone(owned: Accounts) -> None:
    owned.execute(f'CREATE ROLE "{owned.database}_shop_writer"')
    with pytest.raises(ConfigError, match="was not made for vocbeam"):
        migrate(open_engine(owned.owner, write=True), f"{owned.database}_shop")


def test_migrate__owner_who_may_not_create_roles(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with accounts(postgres_url, may_create_roles=False) as made:
        new_warehouse(made.owner, mini()).dispose()
        assert f"{made.database}_writer" in caplog.text
        assert "`vocbeam roles --sql`" in caplog.text
        printed = CliRunner().invoke(vocbeam, ["roles", "--sql", "--warehouse", made.owner], catch_exceptions=False)
        made.execute(printed.stdout)
        caplog.clear()
        done = CliRunner().invoke(vocbeam, ["migrate", "--warehouse", made.owner], catch_exceptions=False)
        assert done.exit_code == 0
        assert caplog.text == ""
        reading = open_engine(made.join("bi", f"{made.database}_reader"))
        assert allowed(reading, "SELECT 1 FROM metric_by_month")
        assert not allowed(reading, "SELECT 1 FROM measure")


@pytest.mark.parametrize("prefix", ["", "pg_voc", "v" * 56])
def test_role_names__prefix_that_can_not_be(prefix: str) -> None:
    with pytest.raises(ConfigError, match="--role-prefix"):
        role_names(prefix)


def test_migrate__sqlite_has_no_roles(sqlite_url: str) -> None:
    migrate(open_engine(sqlite_url, write=True))
    with pytest.raises(ConfigError, match="SQLite has no roles"):
        migrate(open_engine(sqlite_url, write=True), "voc")


def test_migrate__sqlite_file_is_its_owners_alone(sqlite_url: str, tmp_path: Path) -> None:
    engine = open_engine(sqlite_url, write=True)
    migrate(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1 FROM measure"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"warehouse.db": 0o600, "warehouse.db-wal": 0o600, "warehouse.db-shm": 0o600}


def test_roles__auditor_makes_the_boards_page(owned: Accounts, members: dict[Role, str], tmp_path: Path) -> None:
    def make(role: Role) -> str:
        page = tmp_path / f"{role}.html"
        options = ["--month", "2018-03", "--executive", str(page), "--warehouse", members[role]]
        CliRunner().invoke(vocbeam, ["report", *options], catch_exceptions=False)
        return page.read_text(encoding="utf-8")

    assert "Value at stake" in make("auditor")
    assert not allowed(open_engine(members["auditor"]), "SELECT closed_by FROM alert_case")
    with pytest.raises(SinkError, match="permission denied"):
        make("reader")
