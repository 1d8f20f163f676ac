"""The command `pgrerank explain`: why documents have their ranks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from psycopg.rows import dict_row
from rich.table import Table
from rich.text import Text

from pgrerank.catalog import call
from pgrerank.cli.options import (
    Blend,
    Candidates,
    CrossEncoderPassages,
    Diversity,
    Dsn,
    DuplicateThreshold,
    EarlyExit,
    Exact,
    Filter,
    Generation,
    GroupBy,
    Highlights,
    Instruction,
    Json,
    Keys,
    ListwiseTop,
    MaxsimBitTop,
    MaxsimTop,
    MinRelevance,
    Name,
    Passages,
    PerGroup,
    Query,
    Signals,
    Stages,
    Strict,
    Timeout,
    TopK,
    search_arguments,
)
from pgrerank.explain.explanation import (
    ExplainedDocument,
    Explanation,
    Step,
    explanation,
    shown_time,
    stages_of,
    steps,
    time_parts,
)
from pgrerank.explain.stretches import Heat, Stretch, answers, stretches
from pgrerank.install.schema import connect
from pgrerank.terminal import console, note, report_errors

app = typer.Typer()

_SHADES = ("dim", "", "#c86400", "bold #c86400", "bold white on #c86400")
"""From cold to hot; to be read on a light terminal as on a dark one."""
_STEP_WIDTH = 16
_BEGINNING = 60
_SHOWN_STRETCHES = 400


@app.command(
    epilog="Example: pgrerank explain documents 'why is my pool exhausted' --html why.html"
)
def explain(
    context: typer.Context,
    name: Name,
    query: Query,
    dsn: Dsn = "",
    top_k: TopK = 10,
    aligned: Annotated[
        int, typer.Option(help="Documents whose tokens the terminal shows.", min=0)
    ] = 3,
    filter_: Filter = None,
    candidates: Candidates = None,
    maxsim_bit_top: MaxsimBitTop = None,
    maxsim_top: MaxsimTop = None,
    early_exit: EarlyExit = None,
    instruction: Instruction = None,
    listwise_top: ListwiseTop = None,
    signals: Signals = None,
    group_by: GroupBy = None,
    per_group: PerGroup = None,
    diversity: Diversity = None,
    duplicate_threshold: DuplicateThreshold = None,
    min_relevance: MinRelevance = None,
    cross_encoder_passages: CrossEncoderPassages = None,
    passages: Passages = None,
    highlights: Highlights = None,
    stages: Stages = None,
    keys: Keys = None,
    exact: Exact = False,
    generation: Generation = None,
    blend: Blend = None,
    timeout: Timeout = None,
    strict: Strict = None,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(help="Write a heat map to this file.")] = None,
) -> None:
    """Say why documents have their ranks: their way through the stages, and which tokens match.

    As pgrerank.explain_search says in SQL, with the texts, and --html as a heat map.
    """
    alignments = bool(as_json or html or aligned)
    arguments = {
        **search_arguments(context.params),
        "reranker": name,
        "alignments": alignments,
    }
    with report_errors():
        explained = _explained(dsn, arguments)
        if html is not None:
            from pgrerank.explain.heat_map import heat_map

            html.write_text(heat_map(explained), "utf-8")
            note(f"the heat map is in {html}")
        if as_json:
            sys.stdout.write(json.dumps(explained, ensure_ascii=False) + "\n")
        elif html is None:
            _print(explained, aligned)


def _explained(dsn: str, arguments: dict[str, Any]) -> Explanation:
    """Explain a search and read its documents' texts in one snapshot of the database."""
    with connect(dsn, row_factory=dict_row) as connection:
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.add_notice_handler(lambda diagnostic: note(str(diagnostic.message_primary)))
        rows = call(connection, "explain_search", arguments).fetchall()
        return explanation(
            connection,
            *(arguments["reranker"], arguments["query"], arguments["generation"]),
            rows,
            arguments["instruction"],
        )


def _print(explanation: Explanation, aligned: int) -> None:
    parts = [f"{name} {shown_time(ms)}" for _, name, ms in time_parts(explanation["times"])]
    if parts:
        total = shown_time(explanation["times"].get("total", 0))
        console.print(Text(" + ".join(parts) + " = " + total))
    if explanation["instruction"]:
        console.print(Text(f"instruction: {_harmless(explanation['instruction'])}"))
    if explanation["reason"]:
        what = "degraded" if explanation["degraded"] else "fallback"
        console.print(Text(f"{what}: {explanation['reason']}", "bold red"))
    if not explanation["documents"]:
        console.print("no document was found")
        return
    console.print()
    console.print(_ranks(explanation))
    heat = Heat(explanation)
    for document in explanation["documents"][:aligned]:
        for part in _tokens(document, heat):
            console.print(part, soft_wrap=isinstance(part, Text) and not console.is_terminal)


def _ranks(explanation: Explanation) -> Table:
    through = stages_of(explanation)
    table = Table(box=None, pad_edge=False, header_style="bold", expand=console.is_terminal)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("key", overflow="fold")
    is_known = any(document["relevance"] is not None for document in explanation["documents"])
    if is_known:
        table.add_column("relevance", justify="right", no_wrap=True)
    for name in through.values():
        table.add_column(name, no_wrap=True, min_width=_STEP_WIDTH)
    has_signals = any(one["signals_score"] is not None for one in explanation["documents"])
    if has_signals:
        table.add_column("signals", justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for document in explanation["documents"]:
        table.add_row(
            str(document["rank"]),
            Text(document["key"]),
            *([_relevance(document["relevance"])] if is_known else []),
            *(_step(step) for step in steps(document, through)),
            *([f"{document['signals_score']:.4f}"] if has_signals else []),
            Text(_harmless(" ".join(document["text"].split())[:_BEGINNING])),
        )
    return table


def _relevance(value: float | None) -> Text:
    return Text("–", "dim") if value is None else Text(f"{value:.2f}")


def _step(step: Step) -> Text:
    """A rank, the places that it moved, and the score."""
    if step.rank is None:
        return Text("–", "dim")
    up = step.change > 0
    moved = f"{'▲' if up else '▼'}{abs(step.change)}" if step.change else ""
    parts: list[Any] = [f"{step.rank:>3} ", (f"{moved:<4}", "green" if up else "red")]
    if step.score is not None:
        parts.append((f"{step.score:>9.4f}", "dim"))
    return Text.assemble(*parts)


def _tokens(document: ExplainedDocument, heat: Heat) -> Iterator[Table | Text]:
    """Print which tokens answer the query's, and the text with its tokens shaded."""
    place = document["passage"]
    where = "" if place is None else f", characters {place[0]} to {place[1]}"
    yield Text.assemble("\n", (f"{document['rank']}. key {document['key']}", "bold"), where)
    alignment = document["alignment"]
    if alignment is None:
        yield Text(_harmless(document["text"]))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("query")
    table.add_column("answered by")
    table.add_column("score", justify="right")
    for answer in answers(alignment):
        score = Text(f"{answer.score:.4f}", _shade(answer.score, heat))
        table.add_row(Text(_harmless(answer.asked)), Text(_harmless(answer.token)), score)
    yield table
    pieces = stretches(document["text"], alignment)
    shown = Text.assemble(*(_shaded(piece, heat) for piece in pieces[:_SHOWN_STRETCHES]))
    yield shown.append("…") if len(pieces) > _SHOWN_STRETCHES else shown


def _shaded(piece: Stretch, heat: Heat) -> tuple[str, str]:
    style = "" if piece.heat is None else _shade(piece.heat, heat)
    return _harmless(piece.text), f"{style} underline" if piece.answers else style


def _harmless(text: str) -> str:
    """Remove control characters, which a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)


def _shade(value: float, heat: Heat) -> str:
    return _SHADES[heat.level(value, len(_SHADES))]
