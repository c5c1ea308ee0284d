"""The local broker, run for real: its life is that of a process of its own, so most of it goes through the command."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.reaper import Reaper
from vocbeam.deploy.broker import (
    HOST,
    BrokerOptions,
    broker_status,
    create_topics,
    list_topics,
    start_broker,
    stop_broker,
)
from vocbeam.schemas.errors import BrokerError


def vocbeam_broker(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `vocbeam broker …` on `home` in a process of its own."""
    command = [sys.executable, "-m", "vocbeam.pipelines.cli", "broker", arguments[0], "--home", str(home)]
    return subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, check=False)


def produce(bootstrap: str, topic: str, value: bytes, timestamp_ms: int | None = None) -> None:
    """Send one record and wait until the broker has it."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, max_request_size=32 * 1024 * 1024)
    producer.send(topic, value, timestamp_ms=timestamp_ms).get(timeout=20)
    producer.close()


def consume(bootstrap: str, topic: str) -> list[Any]:
    """All records of partition 0."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, fetch_max_bytes=32 * 1024 * 1024)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    end = consumer.end_offsets([partition])[partition]
    records: list[Any] = []
    while consumer.position(partition) < end:
        for polled in consumer.poll(timeout_ms=1000).values():
            records += polled
    consumer.close()
    return records


def test_broker_command__start_find_use_stop_and_start_again(tmp_path: Path, reaper: Reaper) -> None:
    started = vocbeam_broker(tmp_path, "start", "--port", "0", "--json")
    assert started.returncode == 0, started.stderr
    first = json.loads(started.stdout)
    reaper.watch(first["pid"])
    assert first["started_now"] is True

    # The starting process has ended; the broker lives on in a session of its own.
    assert os.getsid(first["pid"]) == first["pid"]
    again = vocbeam_broker(tmp_path, "start", "--port", "0")
    assert again.returncode == 0
    assert again.stdout.startswith(f"The broker is running already: {first['bootstrap']}, pid {first['pid']}")

    assert create_topics(first["bootstrap"], {"demo.a": 3, "demo.b": 1}) == ["demo.a", "demo.b"]
    assert create_topics(first["bootstrap"], {"demo.a": 3, "demo.c": 1}) == ["demo.c"]
    produce(first["bootstrap"], "demo.b", b"hello")
    assert [record.value for record in consume(first["bootstrap"], "demo.b")] == [b"hello"]

    status = vocbeam_broker(tmp_path, "status", "--json")
    assert status.returncode == 0
    told = json.loads(status.stdout)
    assert told["topics"] == {"demo.a": 3, "demo.b": 1, "demo.c": 1}
    assert (told["pid"], told["bootstrap"], told["cluster_id"]) == (
        first["pid"],
        first["bootstrap"],
        first["cluster_id"],
    )
    readable = vocbeam_broker(tmp_path, "status").stdout
    assert f"address  {first['bootstrap']}" in readable
    assert "topic    demo.a (3 partitions)" in readable

    stopped = vocbeam_broker(tmp_path, "stop", "--json")
    assert json.loads(stopped.stdout) == {"stopped": True, "pid": first["pid"]}
    assert not psutil.pid_exists(first["pid"])
    none = vocbeam_broker(tmp_path, "status")
    assert (none.returncode, none.stdout) == (1, "No broker is running.\n")
    assert vocbeam_broker(tmp_path, "stop").stdout == "No broker is running.\n"

    # Data and cluster stay, the ports may change, and both logs are kept.
    second = json.loads(vocbeam_broker(tmp_path, "start", "--port", "0", "--json").stdout)
    reaper.watch(second["pid"])
    assert second["cluster_id"] == first["cluster_id"]
    assert [record.value for record in consume(second["bootstrap"], "demo.b")] == [b"hello"]
    assert {first["log"], second["log"]} == {str(path) for path in (tmp_path / "broker" / "logs").iterdir()}
    stop_broker(tmp_path / "broker")


def test_start_broker__after_kill_and_by_two_at_once(tmp_path: Path, reaper: Reaper) -> None:
    options = BrokerOptions(home=tmp_path, port=0)
    with ThreadPoolExecutor(2) as pool:
        brokers = list(pool.map(start_broker, [options, options]))
    for broker in brokers:
        reaper.watch(broker.pid)
    assert brokers[0].pid == brokers[1].pid
    assert sorted(broker.started_now for broker in brokers) == [False, True]
    killed = brokers[0]
    create_topics(killed.bootstrap, {"kept": 1})

    os.kill(killed.pid, signal.SIGKILL)
    psutil.Process(killed.pid).wait(10)
    status = broker_status(tmp_path)
    assert (status.running, status.stale_pid) == (False, killed.pid)

    restarted = start_broker(options)
    reaper.watch(restarted.pid)
    assert restarted.started_now
    assert restarted.pid != killed.pid
    assert list_topics(restarted.bootstrap) == {"kept": 1}
    assert stop_broker(tmp_path) == restarted.pid
    assert not psutil.pid_exists(restarted.pid)


def test_broker__keeps_records_of_any_time_and_large_ones(kafka_broker: Any, kafka_topics: Any) -> None:
    topic = kafka_topics.create("survey")
    times_ms = [int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000) for year in (2016, 2999, 1970)]
    for time_ms in times_ms:
        produce(kafka_broker.bootstrap, topic, b"x", time_ms)
    produce(kafka_broker.bootstrap, topic, b"y" * (8 * 1024 * 1024))
    records = consume(kafka_broker.bootstrap, topic)
    assert [record.timestamp for record in records[:3]] == times_ms
    assert [len(record.value) for record in records] == [1, 1, 1, 8 * 1024 * 1024]


def test_broker__listens_on_loopback_only(kafka_broker: Any) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(kafka_broker.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.port for address in listening} == {kafka_broker.port, kafka_broker.controller_port}
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {HOST}


def test_start_broker__port_of_another_program(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is taken by another program; choose one with --port"):
            start_broker(BrokerOptions(home=tmp_path, port=port))


def test_start_broker__setting_that_kafka_refuses(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"(?s)could not format .*log\.retention\.ms"):
        start_broker(BrokerOptions(home=tmp_path, port=0, settings={"log.retention.ms": "soon"}))
    assert not broker_status(tmp_path).running


def test_start_broker__broker_that_ends_at_once_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=broken\nnode.id=7\n")
    with pytest.raises(BrokerError, match=r"(?s)the broker ended by itself; its log .*node id 7 doesn.t match"):
        start_broker(BrokerOptions(home=tmp_path, port=0))
    assert broker_status(tmp_path).stale_pid is None
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]


def test_stop_broker__pid_that_now_belongs_to_another_program(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        state = {"pid": other.pid, "port": 1, "controller_port": 2, "cluster_id": "c", "log": "l"}
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert broker_status(tmp_path).stale_pid == other.pid
        assert stop_broker(tmp_path) is None
        assert other.poll() is None
        assert not (tmp_path / "state.json").exists()
        other.kill()


def test_broker_status__damaged_state(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(BrokerError, match=r"state\.json is damaged"):
        broker_status(tmp_path)
