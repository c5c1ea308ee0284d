"""Jars of Kafka and Flink: fetched with jgo from a Maven repository, checked against our hashes, kept in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from vocbeam.schemas.errors import BrokerError

# Without a logging binding neither would log anything.
LOGGING = "org.slf4j:slf4j-simple:1.7.36"
KAFKA = ("org.apache.kafka:kafka_2.13:4.1.2", LOGGING)
# The job server with all it depends on, which is all that a Flink cluster consists of, too.
FLINK = ("org.apache.beam:beam-runners-flink-1.19:2.62.0", LOGGING)
JAR_LIST = Path(__file__).with_name("kafka-jars.sha256")
FLINK_JAR_LIST = Path(__file__).with_name("flink-jars.sha256")

_FETCH_THREADS = 4
_FETCH_ATTEMPTS = 3
_FETCH_TIMEOUT_S = 60

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Jar:
    """One jar of the list: `group:artifact:version` and the hex SHA-256 of its bytes."""

    coordinate: str
    sha256: str

    @property
    def filename(self) -> str:
        """The file's name in the cache, `artifact-version.jar`."""
        _group, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def read_jar_list(path: Path = JAR_LIST) -> tuple[Jar, ...]:
    """Read lines of `coordinate sha256`; empty lines and lines with `#` are skipped.

    Raises BrokerError naming file and line where a line has another form.
    """
    jars = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match line.split():
            case [coordinate, digest] if coordinate.count(":") == 2 and len(digest) == 64:
                jars.append(Jar(coordinate, digest))
            case _:
                raise BrokerError(f"{path}:{number}: expected `group:artifact:version sha256`")
    return tuple(jars)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """VOCBEAM_CACHE, else `vocbeam` below XDG_CACHE_HOME, else `~/.cache/vocbeam`."""
    if own := environ.get("VOCBEAM_CACHE"):
        return Path(own)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vocbeam"


def maven_repository(environ: Mapping[str, str] = os.environ, settings: Path | None = None) -> str | None:
    """URL of the repository to fetch from, or None for jgo's default (Maven Central).

    VOCBEAM_MAVEN_REPOSITORY wins; else the first mirror of `central` in the user's Maven settings (jgo itself does not
    read them). Raises BrokerError where the settings are not XML.
    """
    if url := environ.get("VOCBEAM_MAVEN_REPOSITORY"):
        return url.rstrip("/")
    settings = settings or Path.home() / ".m2" / "settings.xml"
    if not settings.is_file():
        return None
    try:
        root = ElementTree.parse(settings).getroot()  # noqa: S314 - the user's own settings
    except ElementTree.ParseError as error:
        raise BrokerError(
            f"{settings} is not readable as XML ({error}); mend it or set VOCBEAM_MAVEN_REPOSITORY"
        ) from error
    for mirror in root.iterfind("{*}mirrors/{*}mirror"):
        mirrored = {name.strip() for name in (mirror.findtext("{*}mirrorOf") or "").split(",")}
        url = (mirror.findtext("{*}url") or "").strip()
        if url and "!central" not in mirrored and mirrored & {"central", "*", "external:*"}:
            return url.rstrip("/")
    return None


def verify_jars(folder: Path, jars: Sequence[Jar]) -> None:
    """Compare every jar in `folder` with its hash (45 MB in about 0.1 s).

    Raises BrokerError naming the first file that is missing or differs.
    """
    for jar in jars:
        path = folder / jar.filename
        if not path.is_file():
            raise BrokerError(f"{path} is missing; remove {folder} so that it is fetched again")
        if (digest := _sha256(path)) != jar.sha256:
            raise BrokerError(
                f"{path} is not the {jar.coordinate} of our list: its SHA-256 is {digest}, expected {jar.sha256}; "
                f"find out what changed it, then remove {folder} so that it is fetched again"
            )


def ensure_jars(
    cache: Path,
    jars: Sequence[Jar] | None = None,
    repository: str | None = None,
    progress: Progress | None = None,
    name: str = "kafka",
) -> list[Path]:
    """Paths of all jars (None: the broker's), each verified; fetched first where the cache doesn't hold them.

    Safe to call from several processes: one fetches into a temporary folder and renames it, the others wait.
    `progress` is called with (jars fetched, jars in all). The folder is called `name` and the digest of the list, so a
    changed list never meets an older cache. Raises BrokerError where a jar can't be fetched or has other bytes.
    """
    jars = read_jar_list() if jars is None else jars
    listed = hashlib.sha256("".join(f"{jar.coordinate} {jar.sha256}\n" for jar in jars).encode())
    folder = cache / f"{name}-{listed.hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as staging:
                _fetch_all(Path(staging), jars, repository, progress)
                (Path(staging) / "jars").rename(folder)
        verify_jars(folder, jars)
    return [folder / jar.filename for jar in jars]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for it; the system frees it when the process ends, however it ends."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def resolve_jar_list(roots: Sequence[str], repository: str | None = None) -> tuple[Jar, ...]:
    """Resolve the dependency tree of `roots` anew and hash what comes, for `make lock-jars`; needs the network."""
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(
            repo_cache=Path(folder),
            remote_repos={"central": repository} if repository else None,
            timeout=_FETCH_TIMEOUT_S,
        )
        wanted = [context.create_dependency(coordinate) for coordinate in roots]
        direct, transitive = context.resolver.resolve(wanted)
        artifacts = [dependency.artifact for dependency in [*direct, *transitive]]
        return tuple(
            sorted(
                (
                    Jar(f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}", _sha256(artifact.resolve()))
                    for artifact in artifacts
                ),
                key=lambda jar: jar.coordinate,
            )
        )


def write_jar_list(roots: Sequence[str], jars: Sequence[Jar], path: Path) -> None:
    """Write the list that `read_jar_list` reads."""
    lines = [
        f"# Jars of {' and '.join(roots)}; written by `make lock-jars`.",
        *(f"{j.coordinate} {j.sha256}" for j in jars),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fetch_all(staging: Path, jars: Sequence[Jar], repository: str | None, progress: Progress | None) -> None:
    (staging / "jars").mkdir()
    with ThreadPoolExecutor(_FETCH_THREADS) as pool:
        fetches = pool.map(lambda jar: _fetch(staging, jar, repository), jars)
        for done, _ in enumerate(fetches, start=1):
            if progress:
                progress(done, len(jars))


def _fetch(staging: Path, jar: Jar, repository: str | None) -> None:
    """Fetch one jar into `staging/jars`; each attempt has an empty folder, for jgo trusts a file that is there."""
    try:
        import requests
        from jgo.maven import MavenContext
    except ImportError as error:
        raise BrokerError("fetching jars needs jgo; install `vocbeam[broker]`") from error

    group, artifact, version = jar.coordinate.split(":")
    reason = ""
    for _attempt in range(_FETCH_ATTEMPTS):
        with tempfile.TemporaryDirectory(dir=staging) as folder:
            context = MavenContext(
                repo_cache=Path(folder),
                remote_repos={"central": repository} if repository else None,
                timeout=_FETCH_TIMEOUT_S,
            )
            try:
                path = context.project(group, artifact).at_version(version).artifact().resolve()
            except (requests.RequestException, RuntimeError) as error:
                reason = type(error).__name__
                continue
            if (digest := _sha256(path)) != jar.sha256:
                raise BrokerError(
                    f"{jar.filename} as fetched is not the {jar.coordinate} of our list: its SHA-256 is {digest}, "
                    f"expected {jar.sha256}; nothing was kept, check the Maven repository it came from"
                )
            path.rename(staging / "jars" / jar.filename)
            return
    raise BrokerError(
        f"could not fetch {jar.coordinate} ({reason}, {_FETCH_ATTEMPTS} attempts); check the network, or name a "
        f"Maven repository in VOCBEAM_MAVEN_REPOSITORY"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


if __name__ == "__main__":
    for wanted_roots, list_path in ((KAFKA, JAR_LIST), (FLINK, FLINK_JAR_LIST)):
        write_jar_list(wanted_roots, resolve_jar_list(wanted_roots, maven_repository()), list_path)
