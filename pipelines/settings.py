"""Where things are: the options that every command shares, each an option, an environment variable or a default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import click

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.registry import PASSWORD_VARIABLE, USER_VARIABLE
from vocbeam.transforms.kafka_settings import parse_settings

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_HOME = Path(".vocbeam")
DEFAULT_GOVERNANCE = Path("governance.yaml")
EXAMPLE_GOVERNANCE = Path(__file__).parent.parent / "schemas" / "examples" / "retailer.yaml"


@dataclass(frozen=True)
class Home:
    """The folder that holds what one installation keeps on disk."""

    path: Path

    @property
    def broker(self) -> Path:
        """Data, logs and state of the local broker."""
        return self.path / "broker"

    @property
    def flink(self) -> Path:
        """Settings, checkpoints, logs and state of the local Flink cluster."""
        return self.path / "flink"

    @property
    def registry(self) -> Path:
        """The embedded schema registry."""
        return self.path / "registry"

    @property
    def keys(self) -> Path:
        """Generated secrets, each file with mode 600."""
        return self.path / "keys"

    @property
    def warehouse_url(self) -> str:
        """The embedded default warehouse."""
        return f"sqlite:///{(self.path / 'warehouse.db').absolute()}"


def list_options(states: Sequence[str]) -> Callable[[F], F]:
    """What a list of flags or cases is narrowed by: `--department`, `--stage`, `--state`, `--limit`; and `--json`."""
    most = click.IntRange(1)
    options = (
        click.option("--department", help="Only those of a department."),
        click.option("--stage", help="Only those of a stage."),
        click.option("--state", type=click.Choice(states), help="Only those in this state."),
        click.option("--limit", default=50, show_default=True, type=most, help="At most so many, the latest."),
        click.option("--json", "as_json", is_flag=True, help="Print them as JSON, with all that is known."),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def home_option(command: F) -> F:
    """`--home`: passed on as a `Home`."""
    return click.option(
        "--home",
        envvar="VOCBEAM_HOME",
        default=DEFAULT_HOME,
        show_default=True,
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda _context, _option, value: Home(value),
        help="Folder for keys, the embedded registry, broker and warehouse.",
    )(command)


def warehouse_option(command: F) -> F:
    """`--warehouse`: a SQLAlchemy URL, or None for the SQLite file in the home folder."""
    return click.option(
        "--warehouse",
        envvar="VOCBEAM_WAREHOUSE",
        default=None,
        callback=lambda _context, _option, url: without_password("--warehouse", url, "PGPASSWORD or ~/.pgpass"),
        help="sqlite:///FILE or postgresql+psycopg://USER@HOST/DB.  [default: SQLite in the home folder]",
    )(command)


def governance_option(command: F) -> F:
    """`--governance`: path of the governance file."""
    return click.option(
        "--governance",
        envvar="VOCBEAM_GOVERNANCE",
        default=DEFAULT_GOVERNANCE,
        show_default=True,
        type=click.Path(path_type=Path, dir_okay=False),
        callback=lambda _context, _option, value: _existing_governance(value),
        help="Departments, journeys, rules, metrics and targets.",
    )(command)


def bootstrap_option(command: F) -> F:
    """`--bootstrap`: host:port[,host:port] of Kafka."""
    return click.option(
        "--bootstrap",
        envvar="VOCBEAM_BOOTSTRAP",
        default="127.0.0.1:9092",
        show_default=True,
        help="Kafka bootstrap servers, host:port, comma separated.",
    )(command)


def consumer_config_option(command: F) -> F:
    """`--consumer-config`: settings of kafka-python's consumer as a mapping, empty where no file is given."""
    return click.option(
        "-X",
        "--consumer-config",
        "consumer",
        envvar="VOCBEAM_CONSUMER_CONFIG",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        callback=lambda _context, _option, path: parse_settings(read_text(path)) if path else {},
        help="Settings of kafka-python's consumer (SASL, TLS…), name = value; secrets as ${ENV_NAME} or file:PATH.",
    )(command)


def registry_option(command: F) -> F:
    """`--registry`: URL of a Confluent-compatible registry, or None for the embedded file registry."""
    return click.option(
        "--registry",
        envvar="VOCBEAM_REGISTRY",
        default=None,
        callback=lambda _context, _option, url: without_password(
            "--registry", url, f"{USER_VARIABLE} and {PASSWORD_VARIABLE}"
        ),
        help="URL of a Confluent-compatible schema registry.  [default: embedded, in the home folder]",
    )(command)


def topic_prefix_option(command: F) -> F:
    """`--topic-prefix`: what stands before `.survey`, `.ticket` and so on."""
    return click.option("--topic-prefix", envvar="VOCBEAM_TOPIC_PREFIX", default="voc", show_default=True)(command)


def read_text(path: Path) -> str:
    """The text of a file that an option names. Raises ConfigError if it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; check the path and its rights") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error


def write_text(option: str, path: Path, text: str) -> None:
    """Write a file that an option names, and the folders it lies in. Raises ConfigError if it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror or error}; choose another {option}") from error


def without_password(option: str, url: str | None, instead: str) -> str | None:
    """The URL. Raises ConfigError if it holds a password: URLs show in process lists and travel in the job graph."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        # psycopg takes both also from the query.
        secret = parts.password or parse_qs(parts.query).keys() & {"password", "sslpassword"}
    except ValueError:
        # Without its cause, which may quote a part of the password.
        raise ConfigError(f"the URL given with {option} can't be read; check its host and port") from None
    if secret:
        raise ConfigError(
            f"the URL given with {option} holds a password, and would carry it into process lists and the job graph; "
            f"leave it out and set {instead} where the workers run"
        )
    return url


def _existing_governance(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"no governance file at {path}; give one with --governance or VOCBEAM_GOVERNANCE "
            f"(a worked example to copy: {EXAMPLE_GOVERNANCE})"
        )
    return path
