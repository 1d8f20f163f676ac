"""What the demo prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from rich.markup import escape
from rich.table import Table

from pgrerank.evaluation.result import Order
from pgrerank.terminal import console

_TITLES = {
    "dense": "dense recall",
    "lexical": "with BM25",
    "maxsim": "after MaxSim",
    "cross_encoder": "after the cross-encoder",
}


def show_sql(statement: str) -> None:
    """The call that answers a question."""
    console.print("\nEach question is one call, answered next to the data:\n")
    console.print(f"    [bold]{escape(statement.replace('%s', '$1'))}[/]\n")


def show_question(
    text: str, stages: Sequence[str], orders: Sequence[Sequence[str]], relevant: Mapping[str, int]
) -> None:
    """Print the first documents of each order side by side; ● answers, ○ comes close."""
    table = Table(title=escape(text), title_justify="left", title_style="bold", box=None)
    table.add_column("", justify="right", style="dim")
    for stage in stages:
        table.add_column(_TITLES[stage], overflow="ellipsis", no_wrap=True, min_width=24)
    for place in range(max(map(len, orders), default=0)):
        cells = [_marked(order[place], relevant) if place < len(order) else "" for order in orders]
        table.add_row(str(place + 1), *cells)
    console.print(table)
    console.print()


def _marked(key: str, relevant: Mapping[str, int]) -> str:
    match relevant.get(key, 0):
        case 0:
            return f"  {escape(key)}"
        case 1:
            return f"[green]○ {escape(key)}[/]"
    return f"[bold green]● {escape(key)}[/]"


def show_measures(questions: int, orders: Sequence[Order], day: date | None = None) -> None:
    """Print a row for each stage: means over the questions, and the median time of a call.

    `day` is that of an earlier run that asked them.
    """
    when = "" if day is None else f"; asked on {day}"
    table = Table(
        title=f"{questions} questions, each judged by hand{when}",
        title_justify="left",
        title_style="bold",
        box=None,
    )
    table.add_column("order")
    for name in [*orders[0]["measures"], "ms a call (median)"]:
        table.add_column(name, justify="right")
    for order in orders:
        cells = [f"{value:.3f}" for value in order["measures"].values()]
        table.add_row(_TITLES[order["stage"]], *cells, f"{order['total_ms']['p50']:.0f}")
    console.print(table)


def show_studio(address: str) -> None:
    """Print where studio is."""
    console.print(f"\nSee the demo in a browser:\n\n    {escape(address)}\n", soft_wrap=True)
    console.print("Ctrl-C ends it.")


def show_end(dsn: str, *, kept: bool) -> None:
    """Print what to try next."""
    query = "SELECT id, score, stage FROM pgrerank.stdlib_search('merge two dictionaries')"
    console.print()
    if kept:
        console.print("Server and worker stay up. Go on with:\n")
        console.print(f"    psql '{escape(dsn)}'", soft_wrap=True)
        console.print(f"    {escape(query)};\n", soft_wrap=True)
        console.print("See documents move from stage to stage, in a browser:\n")
        console.print(f"    pgrerank studio --dsn '{escape(dsn)}'\n", soft_wrap=True)
        console.print("See what each stage brings, query by query:\n")
        command = f"pgrerank evaluate stdlib --qrels stdlib --report report --dsn '{dsn}'"
        console.print(f"    {escape(command)}\n", soft_wrap=True)
        console.print("Stop them with:  pgrerank demo --stop")
    else:
        console.print("See documents move from stage to stage, in a browser:\n")
        console.print("    make demo ARGS=--studio\n")
        console.print("Keep server and worker up, to ask questions of your own:\n")
        console.print("    make demo ARGS=--keep")
        console.print(f"    {escape(query)};", soft_wrap=True)
