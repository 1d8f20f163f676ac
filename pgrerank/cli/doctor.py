"""The command that examines a database."""

from __future__ import annotations

import psycopg
import typer
from rich.markup import escape

from pgrerank.cli.options import Dsn, Json
from pgrerank.doctor import Finding, Severity, examine
from pgrerank.terminal import console, note, print_rows, report_errors

app = typer.Typer()

PATIENCE = 10
"""Seconds within which the database has to answer."""
UNSEEN = 3
"""Exit code where the database can't be looked at."""

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


@app.command(epilog="Example: pgrerank doctor --dsn postgresql://app@db.example.org/app --json")
def doctor(dsn: Dsn = "", as_json: Json = False) -> None:
    """Say what is wrong with a database, the worst first, with the line that mends it.

    It changes nothing. Exit code: 0 notes at most, 1 warnings, 2 errors, 3 it can't look.
    """
    try:
        with (
            report_errors(),
            psycopg.connect(dsn, autocommit=True, connect_timeout=PATIENCE) as connection,
        ):
            findings = examine(connection)
    except typer.Exit as error:
        raise typer.Exit(UNSEEN) from error
    if as_json:
        columns = ("severity", "check", "about", "message", "remedy")
        rows = [(f.severity.name.lower(), f.check, f.about, f.message, f.remedy) for f in findings]
        print_rows(columns, rows, as_json=True)
    else:
        for finding in findings:
            _print(finding)
        note(_summary(findings))
    raise typer.Exit(max((finding.severity for finding in findings), default=0))


def _print(finding: Finding) -> None:
    name = finding.severity.name.lower()
    console.print(
        f"[{_COLOURS[finding.severity]}]{name:8}[/] {escape(finding.about)}:"
        f" {escape(finding.message)}"
    )
    if finding.remedy:
        console.print(f"         {escape(finding.remedy)}", style="cyan", soft_wrap=True)


def _summary(findings: list[Finding]) -> str:
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in sorted(Severity, reverse=True)
    }
    return ", ".join(
        f"{count} {severity.name.lower()}{'' if count == 1 else 's'}"
        for severity, count in counts.items()
    )
