"""`vocbeam tag`: what people do about tags."""

from __future__ import annotations

import click

from vocbeam.pipelines.watch import watch


@click.group()
def tag() -> None:
    """Watch how events are tagged."""


tag.add_command(watch)
