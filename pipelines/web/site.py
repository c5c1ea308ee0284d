"""The pages and forms of `vocbeam web` as a Flask application. All work without scripts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from flask import Flask, Response, abort, g, redirect, render_template, request, send_from_directory, url_for
from flask.typing import ResponseReturnValue, RouteCallable
from flask_limiter import Limiter
from flask_wtf.csrf import CSRFProtect
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, ServiceUnavailable, UnprocessableEntity
from werkzeug.sansio.utils import host_is_trusted

from vocbeam.pipelines.outcomes import around_flag, did_it_help
from vocbeam.pipelines.report import Line, interval_of, overall, size_of, value_of
from vocbeam.pipelines.report_page import SYMBOLS, TEMPLATES
from vocbeam.pipelines.web.charts import HEIGHT, LEFT, RIGHT, WIDTH, Chart, weekly_chart
from vocbeam.pipelines.web.figures import FigureKeeper, Figures, Trends, standing, worst
from vocbeam.pipelines.web.people import Person
from vocbeam.pipelines.web.sign_in import SignIn, sign_out
from vocbeam.pipelines.wording import NOTHING, format_change, format_target, format_value
from vocbeam.schemas.errors import Refused, SinkError, VocbeamError
from vocbeam.schemas.governance import Governance
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import from_micros
from vocbeam.sinks import audit, read
from vocbeam.sinks.cases import CaseRow, acknowledge_case, close_case, get_case, unclosed_cases
from vocbeam.sinks.cases import cases as find_cases
from vocbeam.sinks.flags import (
    MAX_NAME_CHARS,
    MAX_WORDS_CHARS,
    RED_FLAG,
    FlagRow,
    acknowledge_flag,
    get_flag,
    resolve_flag,
    unresolved_flags,
)
from vocbeam.sinks.flags import flags as find_flags
from vocbeam.transforms.comparison import Movement
from vocbeam.transforms.flags import KINDS, MAX_FLAG_CHARS, SEVERITIES, NewFlag

log = logging.getLogger(__name__)

T = TypeVar("T", FlagRow, CaseRow)

CHARTS = 6
"""More plots than these hide what matters."""

ISSUES = 8
ENTRIES, ALL_ENTRIES = 10, 500
"""Most flags, and most cases, on a page, and on one that was asked for all."""

AUDIT_ROWS = 100

WAIT_SECONDS = 8.0
"""Longest wait of a page for the first figures."""

SESSION_HOURS = 12
SIGN_IN_LIMIT = "10 per minute"
MAX_BODY_BYTES = 16 * 1024
"""Of a request: a form holds one short text."""

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the pages are reached. `hosts` are the names that a request may ask for, without port."""

    secret: str = field(repr=False)
    public_url: str
    hosts: Sequence[str]
    trusted_proxies: frozenset[str] = frozenset()
    open_flags: bool = False
    flag_limit: str = "5 per minute;30 per hour"
    flag_limit_of_all: str = "120 per minute"


class Site:
    """The pages over one warehouse."""

    def __init__(
        self,
        settings: Settings,
        sign_in: SignIn,
        keeper: FigureKeeper,
        reading: Engine,
        writing: Engine,
        send: Callable[[NewFlag, Governance], str],
        now: Callable[[], int],
    ) -> None:
        """`reading` and `writing` are engines of the same warehouse; `send` raises a flag and returns its event id,
        as `pipelines.flagging.raise_flag` does; `now` gives UTC microseconds.
        """
        self._settings, self._sign_in, self._keeper, self._now = settings, sign_in, keeper, now
        self._send = send
        self._reading, self._writing = reading, writing
        self.app = self._make_app()

    # --- Around every request -----------------------------------------------------------------------------------------

    def _make_app(self) -> Flask:
        app = Flask(__name__, static_folder=None, template_folder="templates")
        app.config.update(
            SECRET_KEY=self._settings.secret,
            MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
            MAX_FORM_MEMORY_SIZE=MAX_BODY_BYTES,
            MAX_FORM_PARTS=50,
            PERMANENT_SESSION_LIFETIME=timedelta(hours=SESSION_HOURS),
            SESSION_COOKIE_NAME="vocbeam",
            SESSION_COOKIE_SAMESITE="Lax",
            SESSION_COOKIE_SECURE=self._settings.public_url.startswith("https:"),
            WTF_CSRF_TIME_LIMIT=SESSION_HOURS * 3600,
        )
        # Flask escapes by the end of a template's name, which isn't .html here.
        app.jinja_env.autoescape = True
        app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
        app.jinja_env.filters["symbol"] = lambda verdict: SYMBOLS[verdict]
        app.jinja_env.filters["slug"] = lambda text: text.replace(" ", "-").replace("_", "-")
        app.jinja_env.filters["moment"] = lambda micros: f"{from_micros(micros):%Y-%m-%d %H:%M} UTC"
        app.jinja_env.globals.update(
            value=value_of,
            interval=interval_of,
            size=size_of,
            target=lambda line: format_target(line.metric, line.unit, line.target),
            chart_width=WIDTH,
            chart_height=HEIGHT,
            chart_left=LEFT,
            chart_right=WIDTH - RIGHT,
            max_words=MAX_WORDS_CHARS,
        )
        app.context_processor(self._for_all_pages)
        app.before_request(self._refuse_strangers)
        app.after_request(_protect)
        app.register_error_handler(HTTPException, self._error_page)
        app.register_error_handler(VocbeamError, self._our_error)
        app.register_error_handler(DBAPIError, self._our_error)
        CSRFProtect(app)
        limiter = Limiter(self.client_address, app=app, storage_uri="memory://", headers_enabled=True)
        self._add_routes(app, limiter)
        return app

    def _add_routes(self, app: Flask, limiter: Limiter) -> None:
        pages: dict[str, RouteCallable] = {
            "/": self.home,
            "/stages/<stage>": self.stage,
            "/departments/<department>": self.department,
            "/flags/new": self.new_flag,
            "/flags/sent/<event_id>": self.flag_sent,
            "/flags/<key>": self.flag,
            "/cases/<int:case_id>": self.case,
            "/audit": self.audit_trail,
            "/sign-in": self.sign_in,
            "/healthz": self.healthz,
            "/style/<name>": self.style,
        }
        forms: dict[str, RouteCallable] = {
            "/flags/<key>/acknowledge": self.acknowledge_flag,
            "/flags/<key>/resolve": self.resolve_flag,
            "/cases/<int:case_id>/acknowledge": self.acknowledge_case,
            "/cases/<int:case_id>/close": self.close_case,
            "/sign-out": self.sign_out,
        }
        for rule, view in pages.items():
            app.add_url_rule(rule, view_func=view)
        for rule, view in forms.items():
            app.add_url_rule(rule, view_func=view, methods=["POST"])
        raising = limiter.limit(self._settings.flag_limit)(self.raise_flag)
        raising = limiter.limit(self._settings.flag_limit_of_all, key_func=lambda: "all")(raising)
        app.add_url_rule("/flags/new", view_func=raising, methods=["POST"])
        self._sign_in.install(app, self._signed_in, self._refused_sign_in)
        for endpoint in ("sign_in_token", "sign_in_oidc", "sign_in_callback"):
            if endpoint in app.view_functions:
                limited = limiter.limit(SIGN_IN_LIMIT)(app.view_functions[endpoint])
                app.view_functions[endpoint] = cast(RouteCallable, limited)

    def _refuse_strangers(self) -> None:
        """A page of elsewhere that made a name point here (DNS rebinding) asks for its own host."""
        if request.endpoint != "healthz" and not host_is_trusted(request.host, self._settings.hosts):
            abort(400, "This address isn't one of this server's. Whoever runs it can name it with --public-url.")

    def _for_all_pages(self) -> dict[str, Any]:
        figures = self._keeper.figures(0)
        return {
            "person": self.person(),
            "sign_in_kind": self._sign_in.kind,
            "company": figures.governance.company if figures else "vocbeam",
            "may_raise": self.may_raise(),
        }

    def _error_page(self, error: HTTPException) -> ResponseReturnValue:
        response = error.get_response()
        if error.code is not None and error.code < 400:
            return response
        headers = [(name, value) for name, value in response.headers if name.lower() == "retry-after"]
        page = render_template("error.html.j2", code=error.code, title=error.name, what=error.description)
        return page, error.code or 500, headers

    def _our_error(self, error: Exception) -> ResponseReturnValue:
        log.warning("%s %s: %s", request.method, request.path, error)
        if isinstance(error, SinkError | DBAPIError):
            return self._error_page(_no_warehouse())
        if isinstance(error, Refused):
            return self._error_page(UnprocessableEntity(f"{error}."))
        return self._error_page(ServiceUnavailable(f"{error}."))

    def client_address(self) -> str:
        """Where the request comes from: what a trusted proxy says, else the other end of the connection."""
        peer = request.remote_addr or ""
        forwarded = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        return forwarded if forwarded and peer in self._settings.trusted_proxies else peer

    def person(self) -> Person | None:
        """Who is signed in; asked once a request."""
        if "person" not in g:
            g.person = self._sign_in.person()
        person: Person | None = g.person
        return person

    def reader(self) -> Person:
        """Who is signed in; anybody else is sent to sign in."""
        person = self.person()
        if person is None:
            if self._sign_in.kind == "proxy":
                abort(403, "The proxy in front of this page says nobody who has access here.")
            abort(redirect(url_for("sign_in")))
        return person

    def may_raise(self) -> bool:
        """Whether whoever asks may raise a flag."""
        return self._settings.open_flags or self.person() is not None

    def asked(self) -> audit.Asked:
        """The request in hand, for the audit trail."""
        person = self.person()
        return audit.Asked(person.name if person else audit.NOBODY, self._now(), self.client_address())

    def _signed_in(self, person: Person) -> Response:
        g.person = person
        with self._writing.begin() as connection:
            audit.record(connection, self.asked(), "sign_in")
        found = redirect(url_for("home"))
        assert isinstance(found, Response)
        return found

    def _refused_sign_in(self, name: str) -> None:
        with self._writing.begin() as connection:
            audit.record(connection, self.asked(), "sign_in", name, "refused")

    def figures(self) -> Figures:
        """What the pages show; a page that says so where there are none."""
        found = self._keeper.figures(WAIT_SECONDS)
        if found is None:
            raise _no_warehouse() if self._keeper.problem else _not_yet()
        return found

    # --- Pages --------------------------------------------------------------------------------------------------------

    def home(self) -> str:
        """Every stage and every department with the figure that stands worst against its target."""
        self.reader()
        figures = self.figures()
        with read.snapshot(self._reading) as connection:
            flags, cases = unresolved_flags(connection), unclosed_cases(connection)
        return render_template(
            "home.html.j2",
            figures=figures,
            cards=[
                (stage, *_standing(line for line in figures.lines if line.stage == stage.stage))
                for stage in figures.stages
                if stage.stage != UNASSIGNED
            ],
            departments=[
                (department, *_standing(line for line in figures.lines if line.department == department.department))
                for department in figures.departments
                if department.department != UNASSIGNED
            ],
            names={row.department: row.name for row in figures.departments},
            open_flags=_by_place(flags),
            open_cases=_by_place(cases),
        )

    def stage(self, stage: str) -> str:
        """A stage: figures against targets, trends, topics, cases, flags."""
        self.reader()
        figures = self.figures()
        row = figures.stage(stage) or abort(404, "There is no such stage in the governance file in force.")
        whole = sorted((line for line in figures.stage_lines if line.stage == stage), key=standing)
        return render_template(
            "stage.html.j2",
            stage=row,
            owner=figures.department(row.owner or ""),
            whole=whole,
            lines=sorted((line for line in figures.lines if line.stage == stage), key=standing),
            charts=_charts(whole, figures.stage_trends, lambda line: line.stage),
            issues=[issue for issue in figures.issues if issue.stage == stage][:ISSUES],
            **self._work(stage=stage),
            **_named(figures),
        )

    def department(self, department: str) -> str:
        """A department: its figures against targets at each stage, trends, topics, cases, flags."""
        self.reader()
        figures = self.figures()
        row = figures.department(department) or abort(404, "There is no such department in the governance file.")
        whole = [line for line in figures.department_lines if line.department == department]
        return render_template(
            "department.html.j2",
            department=row,
            owned=[stage for stage in figures.stages if stage.owner == department],
            lines=sorted((line for line in figures.lines if line.department == department), key=standing),
            charts=_charts(whole, figures.department_trends, lambda line: line.department),
            issues=[issue for issue in figures.issues if issue.department == department][:ISSUES],
            **self._work(department=department),
            **_named(figures),
        )

    def _work(self, **place: str) -> dict[str, Any]:
        """Open flags and cases of a stage or department, the latest first."""
        most = ALL_ENTRIES if "all" in request.args else ENTRIES
        with read.snapshot(self._reading) as connection:
            open_flags = [
                *find_flags(connection, **place, state="open", limit=most),
                *find_flags(connection, **place, state="acknowledged", limit=most),
            ]
            open_cases = [
                *find_cases(connection, **place, state="open", limit=most),
                *find_cases(connection, **place, state="acknowledged", limit=most),
            ]
            counts = [_by_place(count(connection)) for count in (unresolved_flags, unclosed_cases)]
        return {
            "flags": open_flags[:most],
            "cases": open_cases[:most],
            "flags_in_all": sum(counts[0][kind, of] for kind, of in place.items()),
            "cases_in_all": sum(counts[1][kind, of] for kind, of in place.items()),
            "now": self._now(),
        }

    # --- Flags and cases ----------------------------------------------------------------------------------------------

    def new_flag(self) -> str:
        """The form on which a flag is raised."""
        self._reporter()
        return self._flag_form({"stage": request.args.get("stage", ""), "kind": "red_flag", "anonymous": "yes"})

    def raise_flag(self) -> ResponseReturnValue:
        """Sends a flag to Kafka; back to the form with what was entered where it breaks a rule."""
        self._reporter()
        form = request.form
        kind, anonymous = form.get("kind", ""), form.get("anonymous") == "yes"
        flag = NewFlag(
            kind=kind,
            text=form.get("text", ""),
            stage=form.get("stage") or None,
            severity=form.get("severity") or None if kind == RED_FLAG else None,
            role=form.get("role") or None,
            anonymous=anonymous,
        )
        try:
            event_id = self._send(flag, self.figures().governance)
        except Refused as error:
            return self._flag_form(form.to_dict(), error), 422
        if not anonymous:
            # Of an anonymous flag nothing is kept here that could tell who raised it, not even when it was.
            with self._writing.begin() as connection:
                audit.record(connection, self.asked(), "flag_raise", event_id)
        return redirect(url_for("flag_sent", event_id=event_id))

    def flag_sent(self, event_id: str) -> str:
        """What a flag is known by, once it was taken."""
        self._reporter()
        return render_template("flag_sent.html.j2", event_id=event_id[:MAX_NAME_CHARS])

    def _reporter(self) -> None:
        """Lets those pass who may raise flags; anybody else is sent to sign in."""
        if not self.may_raise():
            self.reader()

    def _flag_form(self, entered: Mapping[str, str], error: Refused | None = None) -> str:
        figures = self.figures()
        return render_template(
            "flag_form.html.j2",
            entered=entered,
            wrong=str(error) if error else None,
            wrong_field=error.field if error else None,
            stages=[stage for stage in figures.stages if stage.stage != UNASSIGNED],
            kinds=KINDS,
            severities=SEVERITIES,
            roles=sorted({entry.role for entry in figures.governance.reporters}),
            most_chars=min(MAX_FLAG_CHARS, figures.governance.privacy.text_max_chars),
        )

    def acknowledge_flag(self, key: str) -> ResponseReturnValue:
        """Says that a department takes a flag on."""
        with self._acting("flag_acknowledge", f"flag {key}", lambda found: get_flag(found, key)) as (
            connection,
            asked,
            row,
        ):
            acknowledge_flag(connection, row.key, by=asked.who, at=asked.at)
        return self._back(row, f"flag-{row.key}")

    def resolve_flag(self, key: str) -> ResponseReturnValue:
        """Says what came of a flag."""
        outcome = request.form.get("outcome", "")
        with self._acting("flag_resolve", f"flag {key}", lambda found: get_flag(found, key)) as (writing, asked, row):
            resolve_flag(writing, row.key, by=asked.who, at=asked.at, outcome=outcome)
        return self._back(row, "flags")

    def case(self, case_id: int, wrong: str | None = None) -> str:
        """A case and what was done about it."""
        self.reader()
        figures = self.figures()
        with read.snapshot(self._reading) as connection:
            row = get_case(connection, case_id)
            outcome = did_it_help(connection, case_id, now=self._now())
        moved = [] if outcome is None else [outcome.comparison.here, *outcome.comparison.elsewhere]
        return render_template(
            "case.html.j2", case=row, wrong=wrong, outcome=outcome, moved=_moved(moved, figures), **_named(figures)
        )

    def flag(self, key: str) -> str:
        """A flag, and how the figures of its stage moved around it."""
        self.reader()
        figures = self.figures()
        with read.snapshot(self._reading) as connection:
            row = get_flag(connection, key)
            moved = around_flag(connection, row.key, now=self._now())
        return render_template(
            "flag.html.j2", flag=row, moved=_moved(moved, figures), now=self._now(), **_named(figures)
        )

    def acknowledge_case(self, case_id: int) -> ResponseReturnValue:
        """Says that a department works on a case."""
        on = f"case {case_id}"
        with self._acting("case_acknowledge", on, lambda found: get_case(found, case_id)) as (writing, asked, row):
            acknowledge_case(writing, row.case_id, by=asked.who, at=asked.at)
        return redirect(url_for("case", case_id=case_id))

    def close_case(self, case_id: int) -> ResponseReturnValue:
        """Closes a case; back to it with what was entered where root cause or action is missing."""
        on, form = f"case {case_id}", request.form
        said = {"root_cause": form.get("root_cause", ""), "action": form.get("action", "")}
        try:
            with self._acting("case_close", on, lambda found: get_case(found, case_id)) as (writing, asked, row):
                close_case(writing, row.case_id, by=asked.who, at=asked.at, **said)
        except Refused as error:
            if error.field not in said:
                raise
            return self.case(case_id, str(error)), 422
        return redirect(url_for("case", case_id=case_id))

    @contextmanager
    def _acting(
        self, action: str, on: str, find: Callable[[Connection], T]
    ) -> Iterator[tuple[Connection, audit.Asked, T]]:
        """A transaction in which whoever asks does something to a flag or case of the own department, and its entry in
        the audit trail. Somebody else's is refused with 403, which is entered too.
        """
        person, asked = self.reader(), self.asked()
        with self._writing.begin() as connection:
            found = find(connection)
            allowed = person.may_act_for(found.department)
            if allowed:
                yield connection, asked, found
            audit.record(connection, asked, action, on, "done" if allowed else "refused")
        if not allowed:
            abort(403, "Only the department that it belongs to, or an administrator, may do that.")

    def _back(self, row: FlagRow, anchor: str) -> ResponseReturnValue:
        return redirect(url_for("department", department=row.department, _anchor=anchor))

    # --- The rest -----------------------------------------------------------------------------------------------------

    def audit_trail(self) -> str:
        """Who did what; for admins."""
        if self.reader().role != "admin":
            abort(403, "The audit trail is for administrators.")
        before = request.args.get("before", type=int)
        with read.snapshot(self._reading) as connection:
            rows = audit.entries(connection, limit=AUDIT_ROWS, before=before)
        return render_template("audit.html.j2", rows=rows, more=len(rows) == AUDIT_ROWS)

    def sign_in(self) -> ResponseReturnValue:
        """How to sign in."""
        return redirect(url_for("home")) if self.person() else render_template("sign_in.html.j2")

    def sign_out(self) -> ResponseReturnValue:
        """Ends the session."""
        if self.person():
            with self._writing.begin() as connection:
                audit.record(connection, self.asked(), "sign_out")
        return sign_out()

    def healthz(self) -> ResponseReturnValue:
        """For probes: the process answers; whether the last look at the warehouse succeeded."""
        return {"status": "ok", "warehouse": "down" if self._keeper.problem else "ok"}

    def style(self, name: str) -> Response:
        """The two style sheets."""
        folder = {"vocbeam.css": TEMPLATES, "web.css": Path(__file__).parent / "templates"}.get(name) or abort(404)
        return send_from_directory(folder, name, max_age=3600)


def _protect(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers[name] = value
    if request.endpoint != "style":
        response.headers["Cache-Control"] = "no-store"
    return response


def _no_warehouse() -> ServiceUnavailable:
    return ServiceUnavailable(
        "The warehouse can't be read at the moment. Nothing is lost; try again soon.", retry_after=10
    )


def _not_yet() -> ServiceUnavailable:
    return ServiceUnavailable(
        "The figures are being read for the first time. Try again in some seconds.", retry_after=5
    )


def _by_place(counts: Mapping[tuple[str, str], int]) -> Counter[tuple[str, str]]:
    """("stage" or "department", its id) → n."""
    found: Counter[tuple[str, str]] = Counter()
    for (stage, department), n in counts.items():
        found["stage", stage] += n
        found["department", department] += n
    return found


def _standing(lines: Iterable[Line]) -> tuple[Line | None, str]:
    own = list(lines)
    return worst(own), overall(own)


def _charts(lines: Sequence[Line], trends: Trends, place: Callable[[Line], str]) -> list[Chart]:
    """Plots of the lines with a target first, then of the customers' own words, at most CHARTS."""
    ordered = sorted(lines, key=lambda line: (line.target is None, line.metric.level != "cx"))
    found = (weekly_chart(line, trends.get((place(line), line.metric.metric, line.unit), ())) for line in ordered)
    return [chart for chart in found if chart is not None][:CHARTS]


@dataclass(frozen=True, slots=True)
class Moved:
    """A movement in words."""

    stage: str
    metric: str
    before: str
    after: str
    change: str
    verdict: str


def _moved(movements: Iterable[Movement], figures: Figures) -> list[Moved]:
    """Movements of metrics that are known, those that can be judged first."""
    metrics = {row.metric: row for row in figures.metrics}
    found = []
    for movement in movements:
        metric, unit = metrics.get(movement.metric), movement.unit
        if metric is None:
            continue
        both = [figure.value if figure else None for figure in (movement.before, movement.after)]
        change = movement.change
        words = NOTHING if change is None else format_change(metric, unit, change.value)
        if change is not None and change.low is not None and change.high is not None:
            ends = (format_change(metric, unit, end) for end in (change.low, change.high))
            words += f" ({' to '.join(ends)})"
        values = [format_value(metric, unit, value) for value in both]
        found.append(Moved(movement.stage, metric.name, values[0], values[1], words, movement.verdict))
    return sorted(found, key=lambda moved: moved.verdict == "not enough data")


def _named(figures: Figures) -> dict[str, Any]:
    """The figures, and the names of all that they speak of by ids."""
    return {
        "figures": figures,
        "stage_names": {row.stage: row.name for row in figures.stages},
        "department_names": {row.department: row.name for row in figures.departments},
        "metric_names": {row.metric: row.name for row in figures.metrics},
    }
