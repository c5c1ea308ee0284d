"""Trained text models in the warehouse, which hands them to every process that tags; bytes that nothing here reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks.tables import active_tagging, model_stage, text_model


class StagePrecision(NamedTuple):
    """How often a stage that a model gives is right: texts it was given to in cross-validation, the right ones of them,
    and the lower end of the interval of their share.
    """

    stage: str
    given: int
    right_given: int
    precision_low: float


def add(
    connection: Connection,
    model_version: str,
    artefact: bytes,
    card: Mapping[str, Any],
    *,
    taxonomy_version: int,
    now: int,
    precisions: Iterable[StagePrecision] = (),
) -> None:
    """Stores a model beside its card; it is never changed. Raises ConfigError where the version is there already.

    `now` is in UTC microseconds. A stage without a precision counts as never right in the bounds of totals.
    """
    try:
        connection.execute(
            insert(text_model).values(
                model_version=model_version,
                artefact=artefact,
                card=json.dumps(card, ensure_ascii=False),
                taxonomy_version=taxonomy_version,
                stored_at=now,
            )
        )
    except IntegrityError as error:
        raise ConfigError(
            f"model {model_version} is stored already, and a stored model is never changed; train under a new version"
        ) from error
    rows = [{"model_version": model_version, **precision._asdict()} for precision in precisions]
    if rows:
        connection.execute(insert(model_stage), rows)


def publish(connection: Connection, model_version: str | None) -> None:
    """Makes a stored model the one that new events are tagged with; None: tag them without a model.

    Waits for the transactions that write what was tagged with the former one; those that come later refuse it. Raises
    ConfigError where there is no such model, or nothing is in force that it could tag under.
    """
    if model_version is not None:
        _require(connection, model_version)
    if not connection.execute(update(active_tagging).values(model_version=model_version)).rowcount:
        raise ConfigError("no governance file is in force in this warehouse yet; run `vocbeam apply`")


def published(connection: Connection) -> str | None:
    """The version that new events are tagged with; None where that is no model."""
    return connection.execute(select(active_tagging.c.model_version)).scalar_one_or_none()


def load(connection: Connection, model_version: str) -> bytes:
    """A stored model, as it was added. Raises ConfigError where there is none of this version."""
    _require(connection, model_version)
    query = select(text_model.c.artefact).where(text_model.c.model_version == model_version)
    return bytes(connection.execute(query).scalar_one())


def card(connection: Connection, model_version: str) -> dict[str, Any]:
    """The card of a stored model. Raises ConfigError where there is none of this version."""
    _require(connection, model_version)
    query = select(text_model.c.card).where(text_model.c.model_version == model_version)
    read: dict[str, Any] = json.loads(connection.execute(query).scalar_one())
    return read


def versions(connection: Connection) -> list[str]:
    """All stored versions, the newest last."""
    c = text_model.c
    return list(connection.execute(select(c.model_version).order_by(c.stored_at, c.model_version)).scalars())


def _require(connection: Connection, model_version: str) -> None:
    known = select(text_model.c.model_version).where(text_model.c.model_version == model_version)
    if connection.execute(known).first() is None:
        raise ConfigError(
            f"no text model {model_version} in this warehouse; `vocbeam models list` shows those there are"
        )
