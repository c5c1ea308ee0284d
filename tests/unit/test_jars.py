"""The jar list, the choice of repository, and that no byte runs which the list doesn't know."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vocbeam.deploy.broker import HOST
from vocbeam.deploy.jars import (
    FLINK,
    FLINK_JAR_LIST,
    JAR_LIST,
    KAFKA,
    Jar,
    cache_folder,
    ensure_jars,
    maven_repository,
    read_jar_list,
    verify_jars,
    write_jar_list,
)
from vocbeam.schemas.errors import BrokerError

CONTENT = b"a jar"
JAR = Jar("org.example:thing:1.2", hashlib.sha256(CONTENT).hexdigest())


@contextmanager
def repository(folder: Path, content: bytes) -> Iterator[str]:
    """A Maven repository over HTTP that holds JAR with `content`; its URL."""
    place = folder / "org" / "example" / "thing" / "1.2"
    place.mkdir(parents=True)
    (place / "thing-1.2.jar").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "roots"), [(JAR_LIST, KAFKA), (FLINK_JAR_LIST, FLINK)])
def test_read_jar_list__committed_lists(path: Path, roots: tuple[str, ...]) -> None:
    jars = read_jar_list(path)
    coordinates = [jar.coordinate for jar in jars]
    assert set(roots) <= set(coordinates)
    assert len(set(coordinates)) == len(jars)
    assert len({jar.filename for jar in jars}) == len(jars)
    assert all(int(jar.sha256, 16) for jar in jars)


def test_read_jar_list__reads_what_was_written(tmp_path: Path) -> None:
    write_jar_list([JAR.coordinate], [JAR], tmp_path / "list")
    assert read_jar_list(tmp_path / "list") == (JAR,)


def test_read_jar_list__malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(f"# comment\n{JAR.coordinate} {JAR.sha256}\norg.example:thing 12\n")
    with pytest.raises(BrokerError, match=f"{path}:3"):
        read_jar_list(path)


def test_ensure_jars__fetches_once_and_then_uses_the_cache(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with repository(tmp_path / "repository", CONTENT) as url:
        [path] = ensure_jars(tmp_path / "cache", [JAR], url, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen == [(1, 1)]
    # The repository is gone by now.
    assert ensure_jars(tmp_path / "cache", [JAR], url) == [path]


def test_ensure_jars__other_bytes_from_the_repository_are_refused(tmp_path: Path) -> None:
    with (
        repository(tmp_path / "repository", b"another jar") as url,
        pytest.raises(BrokerError, match=r"thing-1\.2\.jar as fetched is not the org\.example:thing:1\.2 of our list"),
    ):
        ensure_jars(tmp_path / "cache", [JAR], url)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kafka.lock"]


def test_ensure_jars__jar_that_the_repository_lacks(tmp_path: Path) -> None:
    missing = Jar("org.example:thing:9.9", JAR.sha256)
    with (
        repository(tmp_path / "repository", CONTENT) as url,
        pytest.raises(BrokerError, match=r"could not fetch org\.example:thing:9\.9.*VOCBEAM_MAVEN_REPOSITORY"),
    ):
        ensure_jars(tmp_path / "cache", [missing], url)


def test_ensure_jars__jar_tampered_with_in_the_cache_is_refused(tmp_path: Path) -> None:
    with repository(tmp_path / "repository", CONTENT) as url:
        [path] = ensure_jars(tmp_path / "cache", [JAR], url)
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(BrokerError, match=f"{path} is not the org.example:thing:1.2 of our list"):
        ensure_jars(tmp_path / "cache", [JAR], url)


def test_verify_jars__missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"thing-1\.2\.jar is missing"):
        verify_jars(tmp_path, [JAR])


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"VOCBEAM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/vocbeam")),
        ({}, Path.home() / ".cache" / "vocbeam"),
    ],
)
def test_cache_folder__precedence(environ: dict[str, str], expected: Path) -> None:
    assert cache_folder(environ) == expected


def mirrors(*entries: tuple[str, str]) -> str:
    inner = "".join(f"<mirror><url>{url}</url><mirrorOf>{of}</mirrorOf></mirror>" for url, of in entries)
    return f'<settings xmlns="urn:maven"><mirrors>{inner}</mirrors></settings>'


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (mirrors(("http://m.test/maven/", "central")), "http://m.test/maven"),
        (mirrors(("http://m.test/", "*,!central"), ("http://n.test", "snapshots, external:*")), "http://n.test"),
        (mirrors(("http://m.test/", "snapshots")), None),
        ("<settings/>", None),
    ],
)
def test_maven_repository__mirror_in_the_settings(tmp_path: Path, settings: str, expected: str | None) -> None:
    path = tmp_path / "settings.xml"
    path.write_text(settings)
    assert maven_repository({}, path) == expected
    assert maven_repository({"VOCBEAM_MAVEN_REPOSITORY": "http://own.test/"}, path) == "http://own.test"


def test_maven_repository__no_settings(tmp_path: Path) -> None:
    assert maven_repository({}, tmp_path / "settings.xml") is None


def test_maven_repository__unreadable_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.xml"
    path.write_text("<settings>")
    with pytest.raises(BrokerError, match=r"settings\.xml is not readable"):
        maven_repository({}, path)
