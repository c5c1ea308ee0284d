"""Empty warehouses, each for one measurement."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

MODEL_VERSION = "benchmark"
"""Of the text model that is published in them."""


@contextmanager
def fresh_warehouse(kind: str, folder: Path, postgres_url: str | None) -> Iterator[str]:
    """URL of a new, empty SQLite file in `folder` or PostgreSQL database beside `postgres_url`; removed afterwards."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(dir=folder) as own:
            yield f"sqlite:///{Path(own) / 'warehouse.db'}"
        return
    assert postgres_url is not None, "PostgreSQL is started or given where it is measured"
    server = make_url(postgres_url)
    name = f"vocbeam_benchmark_{uuid.uuid4().hex[:12]}"
    database = sql.Identifier(name)
    maintenance = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(database))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(maintenance, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
