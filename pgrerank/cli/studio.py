"""The command that serves a page to search, judge and measure by."""

from __future__ import annotations

from typing import Annotated

import typer

from pgrerank.cli.options import Dsn
from pgrerank.errors import extra
from pgrerank.terminal import note, report_errors

app = typer.Typer()


@app.command(epilog="Example: pgrerank studio --dsn postgresql://app@db.example.org/app")
def studio(
    dsn: Dsn = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port on 127.0.0.1; by default 8780, or any where that is taken."
        ),
    ] = None,
    open_browser: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="Open a browser; by default where there is a desktop."
        ),
    ] = None,
) -> None:
    """Serve a page to see what each stage does, to judge, measure, tune and compare by.

    It reads and writes as the role of the connection string. Only a browser of this machine that
    knows the token of the address is let in. Runs until Ctrl-C.
    """
    with report_errors():
        with extra("studio", "pgrerank studio"):
            from pgrerank.studio.serving import has_desktop, run_studio
        run_studio(
            dsn,
            port,
            open_browser=has_desktop() if open_browser is None else open_browser,
            on_ready=lambda address: note(f"studio is at {address}\nCtrl-C ends it"),
        )
