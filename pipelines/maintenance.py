"""`vocbeam maintenance`: times in which alerts are told to nobody, as silences of Alertmanager.

They live in Alertmanager because a window is mostly wanted for what is about to be down: a warehouse under upgrade
could tell neither exporter nor rules of it. Alertmanager keeps them on disk and ends them by itself.
"""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vocbeam.pipelines.alert_rules import DEPARTMENT_SCOPE, PIPELINE_SCOPE
from vocbeam.pipelines.settings import governance_option, without_password
from vocbeam.schemas.errors import ConfigError, MonitoringError
from vocbeam.schemas.governance import Governance, load_governance

F = TypeVar("F", bound=Callable[..., Any])

MARK = "vocbeam maintenance: "
"""Before the reason, in the comment of each silence of ours."""

LONGEST = timedelta(days=7)
"""What is planned for longer is no maintenance: change the target, or the freshness that is allowed."""

FARTHEST = timedelta(days=90)
"""How far ahead a window may begin."""

ANSWER_S = 10.0

_SPAN = re.compile(r"(\d{1,6})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, kw_only=True)
class Silenced:
    """Whose alerts: of these scopes, and within them of these departments and stages; empty means of all."""

    scopes: tuple[str, ...] = (DEPARTMENT_SCOPE,)
    departments: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def matchers(self) -> list[dict[str, Any]]:
        """As Alertmanager takes them; all must hold. Watchdog is of a scope of its own and never silenced."""
        wanted = {"scope": self.scopes, "team": self.departments, "stage": self.stages}
        return [
            {"name": name, "value": "|".join(values), "isRegex": True, "isEqual": True}
            for name, values in wanted.items()
            if values
        ]


@dataclass(frozen=True, kw_only=True)
class Window:
    """One maintenance window; times in UTC. `state` is pending, active or expired."""

    id: str
    what: str
    starts_at: datetime
    ends_at: datetime
    reason: str
    by: str
    state: str


class Alertmanager:
    """The part of its API (version 2) that deals with silences."""

    def __init__(self, client: httpx.Client) -> None:
        """`client` has the address and what signs it in."""
        self._client = client

    def open(self, silenced: Silenced, starts_at: datetime, ends_at: datetime, reason: str, by: str) -> str:
        """Opens a window; its id. Raises MonitoringError; where no answer came, the window may be there."""
        silence = {
            "matchers": silenced.matchers(),
            "startsAt": starts_at.isoformat(),
            "endsAt": ends_at.isoformat(),
            "comment": MARK + reason,
            "createdBy": by,
        }
        return str(self._ask("POST", "silences", json=silence)["silenceID"])

    def windows(self) -> list[Window]:
        """All windows of ours that Alertmanager still knows, by their start."""
        found = [_window(silence) for silence in self._ask("GET", "silences") if silence["comment"].startswith(MARK)]
        return sorted(found, key=lambda window: (window.starts_at, window.id))

    def close(self, window: Window) -> None:
        """Ends a window now; one that had not begun never will."""
        self._ask("DELETE", f"silence/{window.id}")

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        address = self._client.base_url
        try:
            answer = self._client.request(method, f"api/v2/{path}", **content)
            answer.raise_for_status()
            return answer.json() if answer.content else None
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[:200] or "nothing more"
            hint = "; check the file with token or password" if error.response.status_code in (401, 403) else ""
            raise MonitoringError(f"{address} answers {error.response.status_code}: {said}{hint}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise MonitoringError(
                f"Alertmanager at {address} can't be asked ({type(error).__name__}: {error}); check --alertmanager, "
                "and see with `vocbeam maintenance list` what is open"
            ) from error


def plan(
    starts_at: datetime | None, ends_at: datetime | None, lasts: timedelta | None, now: datetime
) -> tuple[datetime, datetime]:
    """Start and end of a window in UTC, times without a zone being UTC.

    Raises ConfigError where it has no end, or one beyond the limits.
    """
    start = now if starts_at is None else _utc(starts_at)
    if ends_at is not None and lasts is None:
        end = _utc(ends_at)
    elif lasts is not None and ends_at is None:
        end = start + lasts
    else:
        raise ConfigError("a maintenance window needs an end; give it with either --until or --for")
    if end <= max(start, now):
        raise ConfigError(f"the window would end at {_shown(end)}, which is past or before it begins")
    if end - start > LONGEST:
        raise ConfigError(
            f"a window lasts at most {LONGEST.days} days; for longer, change targets or freshness instead"
        )
    if start > now + FARTHEST:
        raise ConfigError(f"a window begins within {FARTHEST.days} days")
    return start, end


def chosen(
    governance: Governance, departments: Iterable[str], stages: Iterable[str], *, pipeline: bool, everything: bool
) -> Silenced:
    """What is to be silent. Raises ConfigError for nothing, a contradiction, or a name that the file doesn't know."""
    given = {"department": tuple(dict.fromkeys(departments)), "stage": tuple(dict.fromkeys(stages))}
    if any(given.values()) + pipeline + everything != 1:
        raise ConfigError("say what is to be silent: --department and --stage, or --pipeline, or --all")
    known = {
        "department": [department.id for department in governance.departments],
        "stage": [stage.id for stage in governance.stages],
    }
    for kind, names in given.items():
        for name in names:
            if name not in known[kind]:
                raise ConfigError(f"no {kind} {name} in the governance file; there are {', '.join(known[kind])}")
    scopes = {(True, False): (PIPELINE_SCOPE,), (False, True): (PIPELINE_SCOPE, DEPARTMENT_SCOPE)}
    return Silenced(
        scopes=scopes.get((pipeline, everything), (DEPARTMENT_SCOPE,)),
        departments=given["department"],
        stages=given["stage"],
    )


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _span(_context: click.Context, _option: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ConfigError(f"--for {text}: write minutes, hours or days: 90m, 2h, 1d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _window(silence: Mapping[str, Any]) -> Window:
    values = {matcher["name"]: matcher["value"].split("|") for matcher in silence["matchers"]}
    whole = "everything" if len(values.get("scope", ())) > 1 else "the pipeline"
    return Window(
        id=silence["id"],
        what=", ".join(" or ".join(values[name]) for name in ("team", "stage") if name in values) or whole,
        starts_at=datetime.fromisoformat(silence["startsAt"]),
        ends_at=datetime.fromisoformat(silence["endsAt"]),
        reason=silence["comment"].removeprefix(MARK),
        by=silence["createdBy"],
        state=silence["status"]["state"],
    )


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def alertmanager_options(command: F) -> F:
    """`--alertmanager` and what signs in there."""
    for name, help_text in (
        ("--password-file", "File with the password of --user."),
        ("--user", "Account at Alertmanager, where it asks for one."),
        ("--token-file", "File with a bearer token, where it asks for that."),
    ):
        command = click.option(name, help=help_text)(command)
    return click.option(
        "--alertmanager",
        envvar="VOCBEAM_ALERTMANAGER",
        default="http://127.0.0.1:9093",
        show_default=True,
        callback=lambda _context, _option, url: without_password("--alertmanager", url, "--user and --password-file"),
        help="Address of Alertmanager.",
    )(command)


@contextmanager
def connected(
    alertmanager: str, token_file: str | None, user: str | None, password_file: str | None
) -> Iterator[Alertmanager]:
    """A connection for as long as the context lasts. Raises ConfigError where an address or a secret can't be used."""
    if (user is None) != (password_file is None) or (token_file is not None and user is not None):
        raise ConfigError("give --token-file, or --user with --password-file, or neither")
    headers = {} if token_file is None else {"Authorization": f"Bearer {_secret(token_file)}"}
    auth = None if user is None or password_file is None else (user, _secret(password_file))
    if not alertmanager.startswith(("http://", "https://")):
        raise ConfigError(f"--alertmanager {alertmanager}: write http://HOST:PORT or https://HOST:PORT")
    try:
        client = httpx.Client(base_url=alertmanager, headers=headers, auth=auth, timeout=ANSWER_S)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--alertmanager {alertmanager}: {error}") from error
    with client:
        yield Alertmanager(client)


def _secret(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the secret in {path}: {type(error).__name__}") from error


@click.group()
def maintenance() -> None:
    """Open, close and list windows in which alerts are told to nobody; Watchdog goes on."""


@maintenance.command("open")
@alertmanager_options
@governance_option
@click.option("--department", "departments", multiple=True, help="Alerts of this department; repeatable.")
@click.option("--stage", "stages", multiple=True, help="Alerts of this stage; repeatable. With --department: of both.")
@click.option("--pipeline", is_flag=True, help="Alerts on the pipeline itself.")
@click.option("--all", "everything", is_flag=True, help="Those of departments and those on the pipeline.")
@click.option("--from", "starts_at", type=click.DateTime(), help="When it begins, UTC.  [default: now]")
@click.option("--until", "ends_at", type=click.DateTime(), help="When it ends, UTC.")
@click.option("--for", "lasts", callback=_span, help=f"How long it lasts: 90m, 2h, 1d; at most {LONGEST.days}d.")
@click.option("--reason", required=True, help="Why, for those who wonder about the silence.")
@click.option("--by", help="Who opens it.  [default: this account]")
def open_window(
    *,
    governance: Path,
    departments: tuple[str, ...],
    stages: tuple[str, ...],
    pipeline: bool,
    everything: bool,
    starts_at: datetime | None,
    ends_at: datetime | None,
    lasts: timedelta | None,
    reason: str,
    by: str | None,
    **alertmanager: Any,
) -> None:
    """Open a maintenance window, now or later. It ends by itself; what still fires then is told."""
    silenced = chosen(load_governance(governance), departments, stages, pipeline=pipeline, everything=everything)
    start, end = plan(starts_at, ends_at, lasts, datetime.now(UTC))
    if not reason.strip():
        raise ConfigError("--reason is empty; say why, for those who wonder about the silence")
    with connected(**alertmanager) as connection:
        identity = connection.open(silenced, start, end, reason.strip(), by or getpass.getuser())
    click.echo(identity)
    click.echo(f"from {_shown(start)} until {_shown(end)}; sooner: vocbeam maintenance close {identity}", err=True)


@maintenance.command("close")
@alertmanager_options
@click.argument("identity", metavar="ID")
def close_window(*, identity: str, **alertmanager: Any) -> None:
    """End a maintenance window now, or take back one that has not begun."""
    with connected(**alertmanager) as connection:
        window = next((window for window in connection.windows() if window.id == identity), None)
        if window is None:
            raise ConfigError(f"no maintenance window {identity}; list them: vocbeam maintenance list")
        if window.state != "expired":
            connection.close(window)
    click.echo(f"closed: {window.what}, {window.reason}", err=True)


@maintenance.command("list")
@alertmanager_options
@click.option("--ended", is_flag=True, help="Those too that have ended; Alertmanager forgets them after 5 days.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON, times in UTC.")
def list_windows(*, ended: bool, as_json: bool, **alertmanager: Any) -> None:
    """List the windows that are open or to come."""
    with connected(**alertmanager) as connection:
        windows = [window for window in connection.windows() if ended or window.state != "expired"]
    if as_json:
        click.echo(json.dumps([asdict(window) for window in windows], default=datetime.isoformat, indent=2))
        return
    if not windows:
        click.echo("no maintenance window is open or to come")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("state", "what", "from", "until", "reason", "by", "id"):
        table.add_column(heading, overflow="fold")
    for window in windows:
        cells = (window.state, window.what, _shown(window.starts_at), _shown(window.ends_at))
        table.add_row(*map(escape, (*cells, window.reason, window.by, window.id)))
    Console().print(table)
