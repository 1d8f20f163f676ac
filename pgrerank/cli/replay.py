"""The command `pgrerank replay`: logged searches, asked again."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import psycopg
import typer

from pgrerank.cli.options import Dsn, Json, Name, app
from pgrerank.errors import SettingsError
from pgrerank.evaluation.replay import Replay, logged
from pgrerank.evaluation.replay import replay as ask_again
from pgrerank.judgements import load_set
from pgrerank.terminal import console, note, print_rows, report_errors, work_progress


@app.command(epilog="Example: pgrerank replay documents --since '7 days' --maxsim-top 10")
def replay(
    name: Name,
    dsn: Dsn = "",
    since: Annotated[str, typer.Option(help="How far to look back.")] = "7 days",
    limit: Annotated[int, typer.Option(help="The newest so many searches.", min=1)] = 200,
    candidates: Annotated[int | None, typer.Option(help="Documents that recall returns.")] = None,
    maxsim_bit_top: Annotated[
        int | None, typer.Option(help="Best by bits that MaxSim scores in full.")
    ] = None,
    maxsim_top: Annotated[int | None, typer.Option(help="Documents for the cross-encoder.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="recall,maxsim_bit,maxsim,cross_encoder: these only.")
    ] = None,
    generation: Annotated[
        int | None, typer.Option(help="Another generation than the one in use.")
    ] = None,
    blend: Annotated[
        str | None, typer.Option(help='Weights by stage, JSON, {"maxsim": 1, …}; {} for none.')
    ] = None,
    qrels: Annotated[
        str | None, typer.Option(metavar="SET", help="Measure those that this set judges.")
    ] = None,
    measures: Annotated[
        str, typer.Option(help="With --qrels: separated by commas.")
    ] = "nDCG@10,RR@10",
    show: Annotated[int, typer.Option(help="How many to show that changed most.", min=0)] = 10,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show what people typed, beside the searches' ids.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask the searches in the log again, with other settings, and say how the answers change.

    What is not named is as it was in each search, or as the reranker has it now. Run it without
    any first: documents may have changed since. What people typed is not shown, in JSON neither,
    unless --texts asks for it; a search's id is that in pgrerank.searches.
    """
    settings: dict[str, Any] = dict(
        candidates=candidates,
        maxsim_bit_top=maxsim_bit_top,
        maxsim_top=maxsim_top,
        stages=stages.split(",") if stages else None,
        generation=generation,
    )
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        settings["blend"] = None if blend is None else _weights(blend)
        judgements = None if qrels is None else load_set(connection, qrels)
        searches = logged(connection, name, since=since, limit=limit)
        with work_progress("asking again", "searches") as progress:
            found = ask_again(
                connection,
                name,
                searches,
                settings,
                judgements=judgements,
                measures=[one.strip() for one in measures.split(",")],
                on_progress=progress,
            )
        if as_json:
            answer = _summary(found) | {"most_changed": _changed(found, show, texts=texts)}
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        else:
            _print(found, _changed(found, show, texts=texts))


def _weights(text: str) -> dict[str, Any]:
    try:
        weights = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"--blend is {text!r}, which is not JSON: {error}") from error
    if not isinstance(weights, dict):
        raise SettingsError(f'--blend is {text!r}, wanted an object, such as {{"maxsim": 1}}')
    return weights


def _summary(found: Replay) -> dict[str, Any]:
    return {
        "searches": len(found.asked),
        "overlap": found.overlap,
        "same_first": found.same_first,
        "rank_biased_overlap": found.rank_biased_overlap,
        "degraded": {
            "then": sum(one.then.degraded for one in found.asked),
            "now": sum(one.now.degraded for one in found.asked),
        },
        "failed": dict(found.failed),
        "milliseconds": {stage: times._asdict() for stage, times in found.times.items()},
        "measures": {
            name: {"then": c.before, "now": c.after, "gain": c.gain, "p": c.p, "queries": c.queries}
            for name, c in found.measured.items()
        },
    }


def _changed(found: Replay, count: int, *, texts: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": one.search.id,
            **({"query": one.search.query} if texts else {}),
            "rank_biased_overlap": one.rank_biased_overlap,
            "overlap": one.overlap,
            "first_then": next(iter(one.then.keys), None),
            "first_now": next(iter(one.now.keys), None),
        }
        for one in found.most_changed(count)
    ]


def _print(found: Replay, changed: list[dict[str, Any]]) -> None:
    degraded = _summary(found)["degraded"]
    rows = [
        ("searches asked again", str(len(found.asked))),
        ("documents in both answers", f"{found.overlap:.1%}"),
        ("the same first document", f"{found.same_first:.1%}"),
        ("rank-biased overlap (p = 0.9)", f"{found.rank_biased_overlap:.3f}"),
        ("degraded then, and now", f"{degraded['then']}, {degraded['now']}"),
    ]
    print_rows(["", "value"], rows, as_json=False)
    for kind, count in found.failed.most_common():
        note(f"searches that end in an error now, and are left out ({kind}): {count}")
    columns = ["ms", "p50 then", "p50 now", "p95 then", "p95 now"]
    times = [
        (stage, *(f"{side[part]:.1f}" for part in ("p50", "p95") for side in (t.then, t.now)))
        for stage, t in found.times.items()
    ]
    _section(columns, times)
    gains = [(name, c.before, c.after, c.gain, c.p) for name, c in found.measured.items()]
    if gains:
        judged = next(iter(found.measured.values())).queries
        _section([f"{judged} judged queries", "then", "now", "gain", "p"], gains)
    _section(list(changed[0]) if changed else [], [tuple(row.values()) for row in changed])


def _section(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        console.print()
        print_rows(columns, rows, as_json=False)
