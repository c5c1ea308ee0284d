"""The pages and forms of `vocbeam web` as a Flask application. All work without scripts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, g, redirect, render_template, request, send_from_directory, url_for
from flask.typing import ResponseReturnValue
from flask_limiter import Limiter
from flask_wtf.csrf import CSRFProtect
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.sansio.utils import host_is_trusted

from vocbeam.pipelines.report import EVERYWHERE, Line, interval_of, overall, size_of, value_of
from vocbeam.pipelines.report_page import SYMBOLS, TEMPLATES
from vocbeam.pipelines.web.charts import HEIGHT, LEFT, RIGHT, WIDTH, Chart, weekly_chart
from vocbeam.pipelines.web.figures import FigureKeeper, Figures, Trends, worst
from vocbeam.pipelines.web.people import Person
from vocbeam.pipelines.web.sign_in import SignIn, sign_out
from vocbeam.pipelines.wording import format_target
from vocbeam.schemas.errors import SinkError, VocbeamError
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import from_micros
from vocbeam.sinks import audit, read

log = logging.getLogger(__name__)

CHARTS = 6
"""More plots than these hide what matters."""

ISSUES = 8
AUDIT_ROWS = 100

WAIT_SECONDS = 8.0
"""Longest wait of a page for the first figures."""

SESSION_HOURS = 12
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


class Site:
    """The pages over one warehouse."""

    def __init__(
        self,
        settings: Settings,
        sign_in: SignIn,
        keeper: FigureKeeper,
        reading: Engine,
        writing: Engine,
        now: Callable[[], int],
    ) -> None:
        """`reading` and `writing` are engines of the same warehouse; `now` gives UTC microseconds."""
        self._settings, self._sign_in, self._keeper, self._now = settings, sign_in, keeper, now
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
            everywhere=EVERYWHERE,
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
        for rule, view in (
            ("/", self.home),
            ("/stages/<stage>", self.stage),
            ("/departments/<department>", self.department),
            ("/audit", self.audit_trail),
            ("/sign-in", self.sign_in),
            ("/healthz", self.healthz),
            ("/style/<name>", self.style),
        ):
            app.add_url_rule(rule, view_func=view)
        app.add_url_rule("/sign-out", view_func=self.sign_out, methods=["POST"])
        self._sign_in.install(app, self._signed_in, self._refused_sign_in)
        for endpoint in ("sign_in_token", "sign_in_oidc", "sign_in_callback"):
            if endpoint in app.view_functions:
                app.view_functions[endpoint] = limiter.limit("10 per minute")(app.view_functions[endpoint])

    def _refuse_strangers(self) -> None:
        """A page of elsewhere that made a name point here (DNS rebinding) asks for its own host."""
        if request.endpoint != "healthz" and not host_is_trusted(request.host, self._settings.hosts):
            abort(400, "This address isn't one of this server's. Whoever runs it can name it with --public-url.")

    def _for_all_pages(self) -> dict[str, Any]:
        figures = self._keeper.figures(0)
        return {
            "person": self.person(),
            "sign_in_kind": self._sign_in.kind,
            "company": figures.company if figures else "vocbeam",
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
            abort(_no_warehouse() if self._keeper.problem else _not_yet())
        return found

    # --- Pages --------------------------------------------------------------------------------------------------------

    def home(self) -> str:
        """Every stage and every department with the figure that stands worst against its target."""
        self.reader()
        figures = self.figures()
        with read.snapshot(self._reading):
            # Says at once that the warehouse is down, however good the last figures are.
            pass
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
        )

    def stage(self, stage: str) -> str:
        """A stage: figures against targets, trends, issues."""
        self.reader()
        figures = self.figures()
        row = figures.stage(stage) or abort(404, "There is no such stage in the governance file in force.")
        whole = [line for line in figures.stage_lines if line.stage == stage]
        with read.snapshot(self._reading):
            pass
        return render_template(
            "stage.html.j2",
            figures=figures,
            stage=row,
            owner=figures.department(row.owner or ""),
            whole=whole,
            lines=[line for line in figures.lines if line.stage == stage],
            charts=_charts(whole, figures.stage_trends, lambda line: line.stage),
            issues=[issue for issue in figures.issues if issue.stage == stage][:ISSUES],
            **_names(figures),
        )

    def department(self, department: str) -> str:
        """A department: its figures against targets at each stage, trends, issues."""
        self.reader()
        figures = self.figures()
        row = figures.department(department) or abort(404, "There is no such department in the governance file.")
        whole = [line for line in figures.department_lines if line.department == department]
        order = {stage.stage: number for number, stage in enumerate(figures.stages)}
        lines = [line for line in figures.lines if line.department == department]
        with read.snapshot(self._reading):
            pass
        return render_template(
            "department.html.j2",
            figures=figures,
            department=row,
            owned=[stage for stage in figures.stages if stage.owner == department],
            lines=sorted(lines, key=lambda line: order.get(line.stage, len(order))),
            charts=_charts(whole, figures.department_trends, lambda line: line.department),
            issues=[issue for issue in figures.issues if issue.department == department][:ISSUES],
            **_names(figures),
        )

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
    return ServiceUnavailable("The warehouse can't be read at the moment. Nothing is lost; try again soon.", retry_after=10)


def _not_yet() -> ServiceUnavailable:
    return ServiceUnavailable("The figures are being read for the first time. Try again in some seconds.", retry_after=5)


def _standing(lines: Iterable[Line]) -> tuple[Line | None, str]:
    own = list(lines)
    return worst(own), overall(own)


def _charts(lines: Sequence[Line], trends: Trends, place: Callable[[Line], str]) -> list[Chart]:
    """Plots of the lines with a target first, then of the customers' own words, at most CHARTS."""
    ordered = sorted(lines, key=lambda line: (line.target is None, line.metric.level != "cx"))
    found = (
        weekly_chart(line, trends.get((place(line), line.metric.metric, line.unit), ())) for line in ordered
    )
    return [chart for chart in found if chart is not None][:CHARTS]


def _names(figures: Figures) -> dict[str, dict[str, str]]:
    lines = (*figures.stage_lines, *figures.department_lines)
    return {
        "stage_names": {row.stage: row.name for row in figures.stages},
        "department_names": {row.department: row.name for row in figures.departments},
        "metric_names": {line.metric.metric: line.metric.name for line in lines},
    }
