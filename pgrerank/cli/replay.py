"""The command `pgrerank replay`, which runs logged searches again."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from pgrerank import judgements
from pgrerank.cli.options import (
    Blend,
    Candidates,
    CrossEncoderPassages,
    Diversity,
    Dsn,
    DuplicateThreshold,
    EarlyExit,
    Generation,
    GroupBy,
    Instruction,
    Json,
    ListwiseTop,
    MaxsimBitTop,
    MaxsimTop,
    Measures,
    MinRelevance,
    Name,
    PerGroup,
    Signals,
    Stages,
    Timeout,
    search_arguments,
)
from pgrerank.evaluation.replay import Replay, logged
from pgrerank.evaluation.replay import replay as ask_again
from pgrerank.install.schema import connect
from pgrerank.terminal import console, note, print_rows, report_errors, work_progress

app = typer.Typer()


@app.command(epilog="Example: pgrerank replay documents --since '7 days' --maxsim-top 10")
def replay(
    context: typer.Context,
    name: Name,
    dsn: Dsn = "",
    since: Annotated[str, typer.Option(help="How far to look back.")] = "7 days",
    limit: Annotated[int, typer.Option(help="The newest so many searches.", min=1)] = 200,
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
    stages: Stages = None,
    generation: Generation = None,
    blend: Blend = None,
    timeout: Timeout = None,
    qrels: Annotated[
        str | None,
        typer.Option(metavar="SET|PATH", help="Measure those that these judgements judge."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a BEIR folder.")] = "test",
    measures: Measures = None,
    show: Annotated[int, typer.Option(help="How many to show that changed most.", min=0)] = 10,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show what people typed, beside the searches' ids.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask the searches in the log again, with other settings, and say how the answers change.

    What is not named is as it was in each search, or as the reranker has it now. Run it without
    any first: documents may have changed since. Query texts are hidden, also in JSON, unless
    --texts is given; a search's id is that in pgrerank.searches.
    """
    with report_errors(), connect(dsn) as connection:
        judged = None if qrels is None else judgements.find(connection, qrels, split)
        searches = logged(connection, name, since=since, limit=limit)
        with work_progress("asking again", "searches") as progress:
            replayed = ask_again(
                connection,
                name,
                searches,
                search_arguments(context.params),
                judgements=judged,
                measures=measures or ["nDCG@10", "RR@10"],
                on_progress=progress,
            )
        changed = _changed(replayed, show, texts=texts)
        if as_json:
            answer = _summary(replayed) | {"most_changed": changed}
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        else:
            _print(replayed, changed)


def _summary(replay: Replay) -> dict[str, Any]:
    return {
        "searches": len(replay.asked),
        "overlap": replay.overlap,
        "same_first": replay.same_first,
        "rank_biased_overlap": replay.rank_biased_overlap,
        "degraded": {
            "then": sum(one.then.degraded for one in replay.asked),
            "now": sum(one.now.degraded for one in replay.asked),
        },
        "failed": dict(replay.failed),
        "milliseconds": {stage: times._asdict() for stage, times in replay.times.items()},
        "measures": {
            name: {"then": c.before, "now": c.after, "gain": c.gain, "p": c.p, "queries": c.queries}
            for name, c in replay.measured.items()
        },
    }


def _changed(replay: Replay, count: int, *, texts: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": one.search.id,
            **({"query": one.search.query} if texts else {}),
            "rank_biased_overlap": one.rank_biased_overlap,
            "overlap": one.overlap,
            "first_then": next(iter(one.then.keys), None),
            "first_now": next(iter(one.now.keys), None),
        }
        for one in replay.most_changed(count)
    ]


def _print(replay: Replay, changed: list[dict[str, Any]]) -> None:
    degraded = _summary(replay)["degraded"]
    rows = [
        ("searches asked again", str(len(replay.asked))),
        ("documents in both answers", f"{replay.overlap:.1%}"),
        ("the same first document", f"{replay.same_first:.1%}"),
        ("rank-biased overlap (p = 0.9)", f"{replay.rank_biased_overlap:.3f}"),
        ("degraded then, and now", f"{degraded['then']}, {degraded['now']}"),
    ]
    print_rows(["", "value"], rows, as_json=False)
    for kind, count in replay.failed.most_common():
        note(f"searches that end in an error now, and are left out ({kind}): {count}")
    columns = ["ms", "p50 then", "p50 now", "p95 then", "p95 now"]
    times = [
        (stage, *(f"{side[part]:.1f}" for part in ("p50", "p95") for side in (t.then, t.now)))
        for stage, t in replay.times.items()
    ]
    _section(columns, times)
    gains = [(name, c.before, c.after, c.gain, c.p) for name, c in replay.measured.items()]
    if gains:
        judged = next(iter(replay.measured.values())).queries
        _section([f"{judged} judged queries", "then", "now", "gain", "p"], gains)
    _section(list(changed[0]) if changed else [], [tuple(row.values()) for row in changed])


def _section(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        console.print()
        print_rows(columns, rows, as_json=False)
