"""An installation as docs/security.md describes it: encrypted, with least rights, and with secrets that stay secret.

Kafka demands TLS with SCRAM or a certificate and grants rights by ACL; PostgreSQL takes encrypted connections and SCRAM
passwords alone; the registry asks for a password. Every command runs as its own account.
"""

from __future__ import annotations

import base64
import bz2
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pytest
from cryptography.fernet import Fernet
from kafka import KafkaProducer, TopicPartition
from sqlalchemy import inspect, text

from tests.support import postgres
from tests.support.accounts import Accounts, accounts
from tests.support.command import Vocbeam
from tests.support.reaper import Reaper
from tests.support.registry_server import serve_registry
from tests.support.secured import CERTIFICATE, PRODUCER, READER, SecuredKafka, secured_kafka
from tests.support.tls import Authority
from vocbeam.deploy.broker import create_topics
from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.ingest import Job
from vocbeam.pipelines.job_steps import JobSteps
from vocbeam.pipelines.runners import InProcess
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas.errors import ConfigError, SinkError, SourceError, VocbeamError
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.registry import PASSWORD_VARIABLE, USER_VARIABLE, FileRegistry
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.read import snapshot
from vocbeam.transforms.chunking import Bounds, Polled
from vocbeam.transforms.consumers import ShardConsumer, open_consumer
from vocbeam.transforms.kafka_settings import SourceConfig, find_end_offsets, parse_settings

PREFIX = "voc"
SECRETS = {
    "VOCBEAM_PSEUDONYM_KEY": "planted-pseudonym-key-0123456789abcdef",
    "VOCBEAM_DEAD_LETTER_KEY": Fernet.generate_key().decode(),
    "KAFKA_PASSWORD": "planted-kafka-password",
    "PRODUCER_PASSWORD": "planted-producer-password",
    "TLS_KEY_PASSWORD": "planted-tls-key-password",
    "PGPASSWORD": "planted-postgres-password",
    PASSWORD_VARIABLE: "planted-registry-password",
}
RAW = "planted words of a customer in a record that can't be read"
"""Not a secret but personal: the table holds it encrypted, and no message quotes it."""
CONNECTS_WITHIN_S = 20

CUSTOMER = "planted-customer-4711"

EVENTS = [
    {"event_type": "ticket", "event_id": "t1", "ticket_id": "1", "sequence": 1, "actor": "customer", "status": "opened",
     "subject": "late parcel", "body": "where is it?"},
    {"event_type": "ticket", "event_id": "t2", "ticket_id": "1", "sequence": 2, "actor": "agent", "status": "resolved"},
    {"event_type": "survey", "event_id": "s1", "survey_id": "nps", "response_id": "r1", "metric": "nps", "score": 9,
     "status": "complete"},
]  # fmt: skip


@dataclass(frozen=True)
class Installation:
    """Servers, accounts and settings; `vocbeam` runs commands as the account that its warehouse URL names."""

    folder: Path
    kafka: SecuredKafka
    authority: Authority
    accounts: Accounts
    registry: str
    vocbeam: Vocbeam

    def as_(self, account: str) -> Vocbeam:
        return replace(self.vocbeam, warehouse=self.accounts.url(account))

    def settings(self, user: str, password: str, **changes: str) -> dict[str, str]:
        return {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": user,
            "sasl_plain_password": password,
            "ssl_cafile": str(self.authority.certificate),
            **changes,
        }

    def by_certificate(self, **changes: str) -> dict[str, str]:
        identity = self.folder / "tls" / CERTIFICATE
        return {
            "security_protocol": "SSL",
            "ssl_cafile": str(self.authority.certificate),
            "ssl_certfile": f"{identity}.crt",
            "ssl_keyfile": f"{identity}.key",
            "ssl_password": "${TLS_KEY_PASSWORD}",
            **changes,
        }

    def file(self, name: str, settings: Mapping[str, str]) -> Path:
        path = self.folder / f"{name}.properties"
        path.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")
        return path

    def send_unreadable(self) -> None:
        with KafkaProducer(bootstrap_servers=self.kafka.plain) as producer:
            producer.send(f"{PREFIX}.flag", RAW.encode())
            producer.flush()


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, reaper: Reaper, postgres_server: postgres.PostgresServer
) -> Iterator[Installation]:
    """The servers, and a warehouse into which the pipeline has loaded; `postgres_server` says where none can be had."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "tls")
    authority.issue(CERTIFICATE, password=SECRETS["TLS_KEY_PASSWORD"])
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        identity = authority.issue("postgres")
        database = postgres.start(secured=postgres.Secured(identity, SECRETS["PGPASSWORD"]))
        reaper.watch(database.process.pid)
        stack.callback(database.stop)
        admin = f"{database.url('postgres')}?sslmode=verify-full&sslrootcert={authority.certificate}"
        Accounts(admin).execute("CREATE DATABASE voc")
        warehouse = stack.enter_context(accounts(admin.replace("/postgres?", "/voc?"), password=SECRETS["PGPASSWORD"]))
        passwords = {READER: SECRETS["KAFKA_PASSWORD"], PRODUCER: SECRETS["PRODUCER_PASSWORD"]}
        kafka = stack.enter_context(secured_kafka(folder / "kafka", authority, passwords, reaper, PREFIX))
        registry = stack.enter_context(serve_registry(FileRegistry(folder / "registry")))
        registry.credentials = ("vocbeam", SECRETS[PASSWORD_VARIABLE])
        extra = {"VOCBEAM_REGISTRY": registry.url, USER_VARIABLE: "vocbeam"}
        vocbeam = Vocbeam(folder / "home", kafka.sasl, PREFIX, warehouse.owner, environment=extra)
        made = Installation(folder, kafka, authority, warehouse, registry.url, vocbeam)
        made.vocbeam.call("apply")
        for role in ("writer", "reader", "auditor"):
            warehouse.join(f"the_{role}", f"voc_{role}")
        yield made


@pytest.fixture(scope="module")
def loaded(installation: Installation) -> Installation:
    """The same with events in it."""
    events = installation.folder / "events.jsonl"
    common = {"event_time": "2018-03-01T12:00:00Z", "source": "shop", "customer_id": CUSTOMER}
    events.write_text("".join(json.dumps({**common, **event}) + "\n" for event in EVENTS), encoding="utf-8")
    sending = installation.file("producer", installation.settings(PRODUCER, "${PRODUCER_PASSWORD}"))
    sent = installation.vocbeam.call_json("produce", "--events", events, "--producer-config", sending)
    assert sent["events"] == len(EVENTS)
    create_topics(installation.kafka.plain, {f"{PREFIX}.{event_type}": 1 for event_type in EVENT_TYPES})
    installation.send_unreadable()

    by_password = installation.file("password", installation.settings(READER, "${KAFKA_PASSWORD}"))
    arguments = ("-vv", "run", "--until-caught-up", "--json", "--consumer-config", by_password)
    seen = set()
    with installation.as_("the_writer").started(*arguments) as running:
        while running.process.poll() is None:
            seen |= command_lines(running.process.pid)
        assert running.process.returncode == 0, running.said()
    assert json.loads(running.stdout.read_text())["records"] == len(EVENTS) + 1
    assert any("consumer-config" in line for line in seen)
    assert leaks("\n".join(seen)) == []
    return installation


def command_lines(pid: int) -> set[str]:
    """Command lines of a process and its children, as everybody on the machine sees them."""
    lines = set()
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            lines.add(" ".join(one.cmdline()))
        process.wait(0.2)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass
    return lines


def leaks(content: str) -> list[str]:
    """Names of the secrets that are in a text."""
    basic = base64.b64encode(f"vocbeam:{SECRETS[PASSWORD_VARIABLE]}".encode()).decode()
    sought = {**SECRETS, "Authorization": basic, "raw": RAW, "customer": CUSTOMER}
    return [name for name, secret in sought.items() if secret in content]


def test_leaks__finds_what_is_there() -> None:
    assert leaks(f"key={SECRETS['PGPASSWORD']}; {RAW}") == ["PGPASSWORD", "raw"]


def test_secured__each_command_with_its_account(loaded: Installation) -> None:
    auditor = replace(loaded.as_("the_auditor"), bootstrap=loaded.kafka.mutual)
    auditor.reconcile()
    status = auditor.call_json("status", "--consumer-config", loaded.file("certificate", loaded.by_certificate()))
    assert status["kafka_error"] is None
    assert {row["lag"] for row in status["partitions"]} == {0}
    assert sum(row["loaded"] for row in status["partitions"]) == len(EVENTS)
    assert sum(row["dead_lettered"] for row in status["partitions"]) == 1
    page = loaded.folder / "report.html"
    auditor.call("report", "--month", "2018-03", "--html", page)
    assert leaks(page.read_text(encoding="utf-8")) == []
    with open_engine(loaded.accounts.url("the_reader")).connect() as connection:
        found = connection.execute(text("SELECT n FROM company_metric_by_month WHERE metric = 'nps'")).scalars().all()
    assert len(found) == 1


SEVERAL = """
import json, os, sys
import psycopg
from vocbeam.pipelines.cli import main
given = dict(os.environ)
for case in json.load(sys.stdin):
    os.environ.update(given)
    if case["sql"]:
        with psycopg.connect(case["admin"], autocommit=True) as connection:
            connection.execute(case["sql"])
    os.environ.update(case["environment"])
    sys.argv = ["vocbeam", *case["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    print("ended", code, file=sys.stderr, flush=True)
"""
"""Commands one after another in one process: what each prints, then a line `ended` with its exit code."""


def test_secured__what_ends_badly_says_why_and_tells_no_secret(loaded: Installation) -> None:
    loaded.send_unreadable()
    impatient = loaded.settings(READER, "${KAFKA_PASSWORD}", bootstrap_timeout_ms="2500")
    settings = loaded.file("impatient", impatient)
    wrong = {name: f"wrong-{secret}" for name, secret in SECRETS.items()}
    cases: dict[str, tuple[dict[str, str], str, int, str]] = {
        "no broker": ({"VOCBEAM_BOOTSTRAP": "127.0.0.1:1"}, "", 1, "no Kafka broker answered at 127.0.0.1:1"),
        "Kafka password": (
            {"KAFKA_PASSWORD": wrong["KAFKA_PASSWORD"]}, "", 1, "check sasl_mechanism, user and password",
        ),
        "database password": ({"PGPASSWORD": wrong["PGPASSWORD"]}, "", 1, "the warehouse can't be prepared"),
        "password in a URL": (
            {"VOCBEAM_WAREHOUSE": f"postgresql+psycopg://a:{SECRETS['PGPASSWORD']}@h/voc"}, "", 2, "holds a password",
        ),
        "port in a URL": (
            {"VOCBEAM_REGISTRY": f"http://a:{SECRETS[PASSWORD_VARIABLE]}@h:port"}, "", 2, "given with --registry",
        ),
        "no dead-letter key": (
            {"VOCBEAM_DEAD_LETTER_KEY": SECRETS["VOCBEAM_PSEUDONYM_KEY"]}, "", 2, "no Fernet key",
        ),
        "other pseudonym key": ({"VOCBEAM_PSEUDONYM_KEY": wrong["VOCBEAM_PSEUDONYM_KEY"]}, "", 2, "fingerprint"),
        "reader account": ({"VOCBEAM_WAREHOUSE": loaded.accounts.url("the_reader")}, "", 2, "this account may not"),
        "crash": ({}, "REVOKE INSERT ON dead_letter FROM voc_writer", 1, "Traceback"),
        "after all that": ({}, "GRANT INSERT ON dead_letter TO voc_writer", 0, "1 records"),
    }  # fmt: skip
    arguments = ["-vv", "run", "--until-caught-up", "--max-restarts", "0", "--consumer-config", str(settings)]
    admin = loaded.accounts.admin.replace("+psycopg", "")
    orders = [
        {"environment": environment, "sql": sql, "admin": admin, "arguments": arguments}
        for environment, sql, _, _ in cases.values()
    ]
    ended = subprocess.run(
        [sys.executable, "-c", SEVERAL], input=json.dumps(orders), env=loaded.as_("the_writer").variables(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    said = dict(zip(cases, re.split(r"(?<=\nended \d)\n", ended.stdout), strict=False))
    codes = {name: int(output[-1]) for name, output in said.items()}
    assert codes == {name: code for name, (_, _, code, _) in cases.items()}, ended.stdout[-4000:]
    assert {name: cases[name][3] in output for name, output in said.items()} == dict.fromkeys(cases, True)
    assert {name: leaks(output) for name, output in said.items()} == {name: [] for name in cases}


def test_secured__no_table_holds_a_secret(loaded: Installation) -> None:
    content = []
    with open_engine(loaded.accounts.owner).connect() as connection:
        for name in inspect(connection).get_table_names():
            content += [str([bytes(v) if isinstance(v, memoryview) else v for v in row])
                        for row in connection.execute(text(f'SELECT * FROM "{name}"'))]  # fmt: skip
    everything = "\n".join(content)
    assert "late parcel" in everything
    assert leaks(everything) == []


def test_secured__nothing_printed_holds_a_secret(loaded: Installation) -> None:
    said = loaded.vocbeam.printed()
    assert "INFO kafka" in said
    assert " DEBUG " in said
    assert leaks(said) == []
    kept = [path for path in (loaded.folder / "home").rglob("*") if path.is_file()]
    assert [path.name for path in kept if leaks(path.read_bytes().decode(errors="replace"))] == []


def test_secured__job_graph_holds_names_of_secrets_alone(loaded: Installation) -> None:
    settings = parse_settings(loaded.file("graph", loaded.settings(READER, "${KAFKA_PASSWORD}")).read_text())
    topics = {f"{PREFIX}.{event_type}": event_type for event_type in EVENT_TYPES}
    job = Job(
        source=SourceConfig(topics=tuple(topics), bootstrap=loaded.kafka.sasl, consumer=settings),
        runner=InProcess(),
        steps=JobSteps(
            governance_text=EXAMPLE_GOVERNANCE.read_text(encoding="utf-8"),
            timezone="America/Sao_Paulo",
            event_types=topics,
            registry=loaded.registry,
            home=loaded.folder / "home",
            warehouse_url=loaded.accounts.url("the_writer"),
            key_fingerprint="fingerprint",
            run_epoch=1,
        ),
        max_restarts=0,
        progress_seconds=now_us(),
    )
    pipeline = beam.Pipeline()
    job.compose(pipeline)
    graph = pipeline.to_runner_api().SerializeToString()
    # Beam pickles a DoFn into base64 of bzip2.
    pickled = [bz2.decompress(base64.b64decode(found)) for found in re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", graph)]
    readable = b"\n".join([graph, *pickled]).decode(errors="replace")
    assert "${KAFKA_PASSWORD}" in readable
    assert "VOCBEAM_DEAD_LETTER_KEY" in readable
    assert leaks(readable) == []


def refusal(config: SourceConfig) -> VocbeamError:
    """What a client is told when it connects."""
    with pytest.raises(VocbeamError) as raised:
        find_end_offsets(config)
    return raised.value


def test_kafka__each_refusal_says_why(installation: Installation, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    kafka = installation.kafka
    by_password = installation.settings(READER, "${KAFKA_PASSWORD}")
    another = installation.settings(READER, "${PRODUCER_PASSWORD}")
    cases: dict[str, tuple[str, dict[str, str], str]] = {
        "wrong password": (kafka.sasl, another, "check sasl_mechanism, user and password"),
        "other authority": (kafka.sasl, {**by_password, "ssl_cafile": str(other.certificate)}, "unable to get local"),
        "expired": (kafka.expired, {"security_protocol": "SSL", "ssl_cafile": by_password["ssl_cafile"]}, "expired"),
        "other host name": (kafka.sasl.replace("127.0.0.1", "localhost"), by_password, "Hostname mismatch"),
        "not encrypted": (kafka.sasl, {}, "check security_protocol"),
        "no certificate": (
            kafka.mutual, {"security_protocol": "SSL", "ssl_cafile": by_password["ssl_cafile"]}, "bad certificate",
        ),
        "wrong key password": (
            kafka.mutual, installation.by_certificate(ssl_password="${PGPASSWORD}"), "the key's password",
        ),
        "no such file": (kafka.sasl, {**by_password, "ssl_cafile": "/not/there"}, "/not/there, can't be used"),
    }  # fmt: skip
    topics = (f"{PREFIX}.survey",)
    impatient = {"bootstrap_timeout_ms": 2500}
    configs = [
        SourceConfig(topics=topics, bootstrap=at, consumer={**settings, **impatient})
        for at, settings, _ in cases.values()
    ]
    errors = {name: refusal(config) for name, config in zip(cases, configs, strict=True)}
    assert {name: cases[name][2] in str(error) for name, error in errors.items()} == dict.fromkeys(cases, True)
    assert {name: leaks(str(error)) for name, error in errors.items()} == {name: [] for name in cases}
    assert {name for name, error in errors.items() if isinstance(error, ConfigError)} == {
        "wrong key password",
        "no such file",
    }


@pytest.mark.parametrize("by", ["password", "certificate"])
def test_kafka__librdkafka_reads_with_the_same_settings(loaded: Installation, by: str) -> None:
    settings: dict[str, Any] = (
        loaded.settings(READER, "${KAFKA_PASSWORD}") if by == "password" else loaded.by_certificate()
    )
    bootstrap = loaded.kafka.sasl if by == "password" else loaded.kafka.mutual
    topic = f"{PREFIX}.flag"
    # It has no rights on that group.
    config = SourceConfig(
        topics=(topic,), bootstrap=bootstrap, consumer=settings, client="librdkafka", group_id="nobody"
    )
    partition = TopicPartition(topic, 0)
    with closing(open_consumer(config)) as consumer:
        consumer.assign({partition: 0})
        read = poll(consumer)
    assert (read.offsets[0], read.values[0]) == (0, RAW.encode())


def poll(consumer: ShardConsumer) -> Polled:
    """What comes first."""
    deadline = time.monotonic() + CONNECTS_WITHIN_S
    while True:
        assert time.monotonic() < deadline
        for polled in consumer.poll(Bounds(), 0.1).polled.values():
            return polled


@pytest.mark.parametrize(
    ("topic", "changes", "message"),
    [
        pytest.param("survey", {"sasl_plain_password": "${PRODUCER_PASSWORD}"}, "user and password", id="password"),
        pytest.param("survey", {"ssl_cafile": "other"}, "no encrypted connection .* certificate", id="authority"),
        pytest.param("survey", {"ssl_cafile": "/not/there"}, "/not/there, can't be used", id="no such file"),
        pytest.param("seen", {}, "TOPIC_AUTHORIZATION_FAILED .* check the broker's log and the ACLs", id="rights"),
    ],
)
def test_kafka__librdkafka_says_why_it_is_refused(
    installation: Installation, tmp_path: Path, topic: str, changes: dict[str, str], message: str
) -> None:
    if changes.get("ssl_cafile") == "other":
        changes = {"ssl_cafile": str(Authority(tmp_path, "other").certificate)}
    settings: dict[str, Any] = {**installation.settings(READER, "${KAFKA_PASSWORD}", **changes)}
    name = f"{PREFIX if topic == 'survey' else topic}.survey"
    create_topics(installation.kafka.plain, {name: 1})
    if topic == "seen":
        installation.kafka.let_see(name)
    config = SourceConfig(
        topics=(name,),
        bootstrap=installation.kafka.sasl,
        consumer={**settings, "bootstrap_timeout_ms": 2_500},
        client="librdkafka",
    )

    def read() -> None:
        with closing(open_consumer(config)) as consumer:
            consumer.assign({TopicPartition(name, 0): 0})
            poll(consumer)

    with pytest.raises(VocbeamError, match=message) as raised:
        read()
    assert leaks(str(raised.value)) == []


def test_kafka__topic_without_rights(installation: Installation) -> None:
    create_topics(installation.kafka.plain, {"payroll.survey": 1})
    settings: dict[str, Any] = installation.settings(READER, "${KAFKA_PASSWORD}")
    config = SourceConfig(topics=("payroll.survey",), bootstrap=installation.kafka.sasl, consumer=settings)
    with pytest.raises(SourceError, match=r"not see payroll\.survey; grant it READ and DESCRIBE"):
        find_end_offsets(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda url, _: url.replace("127.0.0.1", "localhost"), "host name", id="other host name"),
        pytest.param(lambda url, other: re.sub("sslrootcert=.*", f"sslrootcert={other}", url), "verify", id="other CA"),
        pytest.param(lambda url, _: re.sub(r"\?.*", "?sslmode=disable", url), "no encryption", id="not encrypted"),
    ],
)
def test_postgresql__refuses(installation: Installation, tmp_path: Path, change: Any, message: str) -> None:
    other = Authority(tmp_path, "other").certificate
    url = change(installation.accounts.url("the_auditor"), other)
    with pytest.raises(SinkError, match=message), snapshot(open_engine(url)):
        pass


def test_postgresql__password_from_a_file(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    engine = open_engine(installation.accounts.url("the_auditor"))
    with pytest.raises(SinkError, match="no password supplied"), snapshot(engine):
        pass
    passwords = tmp_path / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(f"*:*:voc:*:{SECRETS['PGPASSWORD']}\n", encoding="utf-8")
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    with snapshot(engine) as connection:
        used = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.execute(text(used)).scalar_one() is True
