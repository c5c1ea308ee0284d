"""`vocbeam check`: what a governance file leaves ungoverned, who is measured by what, which events can be read."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vocbeam.pipelines.schemas import check_contracts, refuse_unreadable
from vocbeam.pipelines.settings import Home, governance_option, home_option, registry_option, topic_prefix_option
from vocbeam.schemas.errors import GovernanceError
from vocbeam.schemas.governance import (
    ANY,
    Finding,
    Governance,
    PlacedStage,
    check,
    load_governance,
    measured_by,
    targets_by_department,
)
from vocbeam.schemas.registry import open_registry
from vocbeam.transforms.alarm_simulation import FALSE_ALARM_RATE

WINDOWS_A_WEEK = {"hour": 168, "day": 7, "week": 1}


@click.command("check")
@home_option
@governance_option
@registry_option
@topic_prefix_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def check_command(home: Home, governance: Path, registry: str | None, topic_prefix: str, as_json: bool) -> None:
    """Check a governance file: every department measured, every stage owned, every metric tied, every rule alive.

    And check the event contracts: they must be able to read all their released versions, and all versions that are
    registered for their topics. Ends with exit code 2 when there is an error, with 0 when there are only warnings.
    """
    loaded = load_governance(governance)
    findings = check(loaded)
    readable = check_contracts(open_registry(registry, home.registry), topic_prefix)
    if as_json:
        result = {**_as_json(loaded, findings), "schemas": asdict(readable)}
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        _print(loaded, findings, governance, console)
        if not readable.unreadable:
            console.print(
                f"The event contracts can read all {readable.released} released and {readable.registered} registered "
                "versions.",
                highlight=False,
            )
    refuse_unreadable(readable.unreadable)
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise GovernanceError(f"{governance}: {errors} {_plural(errors, 'error')}; see above for the lines")


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _as_json(governance: Governance, findings: list[Finding]) -> dict[str, Any]:
    return {
        "company": governance.company,
        "version": governance.version,
        "digest": governance.digest,
        "findings": [asdict(finding) for finding in findings],
        "departments": measured_by(governance),
        "false_alarms_a_week": _false_alarms(governance),
        "stages": [
            {"journey": s.journey, "position": s.position, "stage": s.id, "owner": s.owner, "targets": targets}
            for s, targets in _stage_targets(governance)
        ],
    }


def _false_alarms(governance: Governance) -> dict[str, dict[str, float]]:
    """Department → its targets, and the false alarms to expect in a week if all are judged by hour, day or week."""
    return {
        department: {
            "targets": targets,
            **{window: FALSE_ALARM_RATE * targets * windows for window, windows in WINDOWS_A_WEEK.items()},
        }
        for department, targets in targets_by_department(governance).items()
    }


def _stage_targets(governance: Governance) -> list[tuple[PlacedStage, list[str]]]:
    """Each stage with the metrics that have a target for it or for its owner, in the order of the file."""
    return [
        (
            stage,
            list(
                dict.fromkeys(
                    target.metric
                    for target in governance.targets
                    if stage.id == target.stage or (target.stage == ANY and target.department == stage.owner)
                )
            ),
        )
        for stage in governance.stages
    ]


def _print(governance: Governance, findings: list[Finding], path: Path, console: Console) -> None:
    console.print(
        f"[bold]{escape(governance.company)}[/], taxonomy version {governance.version}: "
        f"{len(governance.departments)} departments, {len(governance.stages)} stages, {len(governance.rules)} rules, "
        f"{len(governance.metrics)} metrics, {len(governance.targets)} targets"
    )
    departments = Table(title="Who is measured by what", title_justify="left")
    departments.add_column("department", no_wrap=True)
    departments.add_column("metrics", justify="right")
    departments.add_column("measured by")
    for department, metrics in measured_by(governance).items():
        departments.add_row(department, str(len(metrics)), ", ".join(metrics) or "[red]nothing[/]")
    console.print(departments)

    stages = Table(title="Who owns which stage", title_justify="left")
    for heading in ("journey", "", "stage", "owner"):
        stages.add_column(heading, no_wrap=True)
    stages.add_column("own targets, beside those that hold everywhere")
    for stage, targets in _stage_targets(governance):
        stages.add_row(stage.journey, str(stage.position), stage.id, stage.owner, ", ".join(targets) or "–")
    console.print(stages)
    everywhere = dict.fromkeys(t.metric for t in governance.targets if t.stage == ANY and t.department == ANY)
    alarms = Table(title="False alarms a week, where judged by", title_justify="left")
    for heading in ("department", "targets", *WINDOWS_A_WEEK):
        alarms.add_column(heading, no_wrap=True, justify="left" if heading == "department" else "right")
    for department, expected in _false_alarms(governance).items():
        figures = (f"{expected[window]:.2f}" for window in WINDOWS_A_WEEK)
        alarms.add_row(department, str(expected["targets"]), *figures)
    console.print(alarms)
    console.print(f"Targets that hold everywhere: {', '.join(everywhere) or 'none'}\n")

    for finding in findings:
        style = "red" if finding.severity == "error" else "yellow"
        console.print(
            f"[{style}]{finding.severity}[/] {escape(f'{path}:{finding.line}: {finding.message}')}",
            soft_wrap=True,
            highlight=False,
        )
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    if not findings:
        console.print("[green]Nothing is ungoverned.[/]")
    else:
        console.print(f"{errors} {_plural(errors, 'error')}, {warnings} {_plural(warnings, 'warning')}")
