"""Which of the libraries' log lines reach the terminal."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """Silences what Kafka's client and Beam say of failures that are retried, or that reach us as exceptions."""
    logging.getLogger("kafka").setLevel(logging.ERROR)
    # A connection that breaks is no news by itself, and some of these lines come with a traceback.
    logging.getLogger("kafka.net").setLevel(logging.CRITICAL)
    # Beam logs the traceback of a failing bundle; the supervisor says in a sentence what failed and what follows.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
