"""Accounts of one PostgreSQL database as an administrator sets them up: its owner, and members of its roles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url


@dataclass(frozen=True)
class Accounts:
    """A database and its owner, who is no superuser; `admin` is the URL of the superuser."""

    admin: str
    password: str | None = None
    """Of every account made here; None where the server asks for none."""

    @property
    def database(self) -> str:
        """Name of the database, with which the names of all these accounts begin."""
        name = make_url(self.admin).database
        assert name is not None
        return name

    @property
    def owner(self) -> str:
        """URL of the owner."""
        return self.url("owner")

    def url(self, account: str) -> str:
        """URL of an account of this database."""
        url = make_url(self.admin).set(username=f"{self.database}_{account}")
        return url.render_as_string(hide_password=False)

    def join(self, account: str, role: str) -> str:
        """Creates an account that may log in, as a member of a role; its URL."""
        self.execute(f'CREATE ROLE "{self.database}_{account}" LOGIN {self._password()} IN ROLE "{role}"')
        return self.url(account)

    def _password(self) -> str:
        return f"PASSWORD '{self.password}'" if self.password else ""

    def execute(self, statement: str) -> None:
        """Runs a statement as the superuser."""
        with psycopg.connect(self.admin.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(sql.SQL(statement))  # type: ignore[arg-type]


@contextmanager
def accounts(admin: str, *, may_create_roles: bool = True, password: str | None = None) -> Iterator[Accounts]:
    """The set-up that docs/security.md describes; the accounts are removed when the context ends."""
    made = Accounts(admin, password)
    name = made.database
    made.execute(f'CREATE ROLE "{name}_owner" LOGIN {"CREATEROLE" if may_create_roles else ""} {made._password()}')
    made.execute(f'ALTER DATABASE "{name}" OWNER TO "{name}_owner"')
    made.execute(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
    try:
        yield made
    finally:
        with psycopg.connect(admin.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(sql.Identifier(f"{name}_owner")))
            query = "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)"
            for (role,) in connection.execute(query, [f"{name}_"]).fetchall():
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
