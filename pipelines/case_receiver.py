"""Takes in Alertmanager's notifications and opens cases: a server of its own, or a blueprint for another one."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from flask import Blueprint, Flask, Response, jsonify, request
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from waitress.server import create_server
from werkzeug.exceptions import BadRequest, HTTPException

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import Home
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.schemas.errors import ConfigError, Refused, SinkError
from vocbeam.schemas.secrets import MIN_KEY_CHARS, SecretSource
from vocbeam.sinks.cases import receive_alerts
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.transaction import in_transaction
from vocbeam.transforms.progress import PROGRESS

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
"""Largest notification: an alert has some 2 KB."""

THREADS = 4
RETRY_S = 5.0
"""How long the warehouse is tried; Alertmanager sends again what was refused as unavailable."""


def token_source(home: Path) -> SecretSource:
    """Source of the secret that Alertmanager shows (`credentials_file`)."""
    return SecretSource("VOCBEAM_CASE_TOKEN", home / "keys" / "case_token")


def load_token(home: Path) -> str:
    """The secret; a new one is made where none is configured. Raises ConfigError where it is too short."""
    token = token_source(home).ensure()
    if len(token) < MIN_KEY_CHARS:
        raise ConfigError(
            f"the secret of the case receiver has {len(token)} characters, at least {MIN_KEY_CHARS} are needed; make "
            "one with `openssl rand -hex 32` and set VOCBEAM_CASE_TOKEN"
        )
    return token


def case_blueprint(engine: Engine, token: str, *, now: Callable[[], int] = now_us) -> Blueprint:
    """POST /alerts for Alertmanager's webhook, with `Authorization: Bearer <token>`.

    `engine` writes, `now` gives UTC microseconds. Answers in JSON: 200 with what was done; 401 without the right
    secret; 413 above MAX_BODY_BYTES; 400 for what is no notification; 503 while the warehouse can't be written, so
    that Alertmanager sends it again.
    """
    blueprint = Blueprint("cases", __name__)

    @blueprint.post("/alerts")
    def alerts() -> tuple[Response, int] | Response:
        request.max_content_length = MAX_BODY_BYTES
        shown = request.headers.get("Authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            return _problem(401, "the secret is missing or wrong: see credentials_file in Alertmanager's configuration")
        try:
            payload = request.get_json(force=True)
            received = in_transaction(engine, partial(receive_alerts, payload=payload, at=now()), RETRY_S)
        except BadRequest:
            return _problem(400, "the body is no JSON")
        except HTTPException as error:
            return _problem(error.code or 400, error.description or error.name)
        except (Refused, RecursionError) as error:
            log.warning("a notification was refused: %s", error)
            return _problem(400, str(error))
        except (SinkError, DBAPIError) as error:
            log.warning("cases can't be written: %s", type(error).__name__)
            return _problem(503, "the warehouse can't be written; send it again")
        return jsonify(asdict(received))

    return blueprint


def _problem(status: int, message: str) -> tuple[Response, int]:
    return jsonify({"error": message}), status


def receiver_app(engine: Engine, token: str, *, now: Callable[[], int] = now_us) -> Flask:
    """The blueprint alone, and GET /-/healthy."""
    app = Flask("vocbeam.cases", static_folder=None)
    app.register_blueprint(case_blueprint(engine, token, now=now))
    app.add_url_rule("/-/healthy", view_func=lambda: "ok\n")
    return app


@contextmanager
def serving(app: Flask, address: str, port: int) -> Iterator[int]:
    """Serves the app from threads; gives its port, which is chosen where `port` is 0.

    Raises ConfigError where it can't listen there.
    """
    try:
        server = create_server(
            app, host=address, port=port, threads=THREADS, max_request_body_size=MAX_BODY_BYTES, ident=None
        )
    except OSError as error:
        raise ConfigError(
            f"can't listen at {address}:{port}: {error.strerror or error}; choose another --port or --address"
        ) from error
    thread = threading.Thread(target=server.run, name="vocbeam-cases", daemon=True)
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        server.close()
        thread.join(5)


def run_receiver(home: Home, warehouse: str | None, address: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises ConfigError or SinkError where it can't begin."""
    engine = open_engine(warehouse or home.warehouse_url, write=True)
    require_current(engine)
    token = load_token(home.path)
    with stop_on_signals(PROGRESS), serving(receiver_app(engine, token), address, port) as chosen:
        click.echo(f"cases are received at http://{address}:{chosen}/alerts", err=True)
        while not PROGRESS.stop_requested():
            PROGRESS.sleep(3600)
