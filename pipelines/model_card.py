"""A model card as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN_CONFUSIONS = 5
SHOWN_OVERLAPS = 5


def print_card(card: Mapping[str, Any], console: Console) -> None:
    """Prints what a card says: data, figures of every head, the classes of the stage head, the usual mistakes."""
    data = card["data"]
    console.print(f"[bold]Text model {card['version']}[/bold], {data['texts']:,} texts, split {card['split']}")
    for source, texts in data["sources"].items():
        console.print(f"  {texts:,} from {escape(source)}")
    tagged = card["tagged"]
    precision = "nothing" if tagged["precision"] is None else f"{tagged['precision']:.1%} of them right"
    console.print(f"Tags {tagged['share']:.1%} of such texts, {precision} (wanted {card['wanted_precision']:.0%})")

    heads = Table(box=SIMPLE, title="On texts not seen in training, with 95 % intervals", title_justify="left")
    for name in ("decides", "texts", "macro-F1", "accuracy", "calibration error", "of a perfect forecaster"):
        heads.add_column(name, justify="left" if name == "decides" else "right")
    for name, head in card["heads"].items():
        heads.add_row(
            name,
            f"{head['texts']:,}",
            *[
                figure(head[key])
                for key in ("macro_f1", "accuracy", "calibration_error", "calibration_error_of_a_perfect_forecaster")
            ],
        )
    console.print(heads)

    classes = Table(box=SIMPLE, title="Stages", title_justify="left")
    for name in ("stage", "texts", "precision", "recall", "tagged from confidence"):
        classes.add_column(name, justify="left" if name == "stage" else "right")
    for row in card["heads"]["stage"]["classes"]:
        threshold = card["stage_thresholds"][row["name"]]
        classes.add_row(
            row["name"],
            f"{row['support']:,}",
            figure(row["precision"]),
            figure(row["recall"]),
            f"{threshold:.2f}" if threshold <= 1 else "never",
        )
    console.print(classes)
    for mistake in card["heads"]["stage"]["confusions"][:SHOWN_CONFUSIONS]:
        console.print(f"  {mistake['texts']} × {mistake['truth']} taken for {mistake['predicted']}")
    overlaps = card.get("overlaps", ())[:SHOWN_OVERLAPS]
    if overlaps:
        console.print("Stages that are taken for each other:")
    for pair in overlaps:
        console.print(
            f"  {pair['first']} and {pair['second']}: {share(pair['share'])} of {pair['texts']:,} texts "
            f"({pair['first_as_second']} and {pair['second_as_first']})"
        )
    if "compared_with" in card:
        other = card["compared_with"]
        console.print(
            f"Macro-F1 over stages against {other['version']}: {figure(other['macro_f1_difference'], signed=True)}"
        )


def figure(value: Mapping[str, float] | None, *, signed: bool = False) -> str:
    """A figure with its interval, or a dash."""
    if value is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def share(value: Mapping[str, float]) -> str:
    """A share with its interval, in per cent."""
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
