"""The commands for rerankers: make one, change it, fill it, ask it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import psycopg
import typer

from pgrerank.catalog import call
from pgrerank.cli.options import Dsn, Json, Name, app, print_cursor
from pgrerank.terminal import document_progress, note, report_errors

TextColumns = Annotated[str | None, typer.Option(help="Text columns, separated by commas.")]
TextExpression = Annotated[str | None, typer.Option(help="Or an immutable expression.")]
EmbeddingModel = Annotated[str | None, typer.Option(help="Model for recall.")]
LateInteractionModel = Annotated[str | None, typer.Option(help="Model for MaxSim.")]
CrossEncoderModel = Annotated[str | None, typer.Option(help="Model for the head.")]
Candidates = Annotated[int | None, typer.Option(help="Documents that recall returns.")]
MaxsimBitTop = Annotated[
    int | None, typer.Option(help="Score all by bits first, so many of them in full.")
]
MaxsimTop = Annotated[int | None, typer.Option(help="Documents that the cross-encoder scores.")]
TokenPrecision = Annotated[str | None, typer.Option(help="float16, int8 or bit.")]
TokenDims = Annotated[int | None, typer.Option(help="Project token vectors to so many dimensions.")]
TokenPool = Annotated[int | None, typer.Option(help="Keep one token vector for so many.")]
Timeout = Annotated[str | None, typer.Option(help="Time limit of a search, such as '500 ms'.")]
Blend = Annotated[
    str | None,
    typer.Option(help="""Weights by stage, {"maxsim": 1, "cross_encoder": 2}; {} for none."""),
]
LogSample = Annotated[
    float | None, typer.Option(help="Share of searches to remember, 0 to 1 (pgrerank.searches).")
]
LogRetention = Annotated[str | None, typer.Option(help="How long to remember them.")]
GracePeriod = Annotated[
    str | None, typer.Option(help="How long to keep the generation before, for a rollback.")
]


@app.command(
    epilog="Example: pgrerank create documents --source public.documents --text title,body"
    " --embedding-model minilm --late-interaction-model minilm-tokens"
    " --cross-encoder-model ms-marco"
)
def create(
    name: Name,
    source: Annotated[str, typer.Option(help="Source table.")],
    dsn: Dsn = "",
    text: TextColumns = None,
    text_expression: TextExpression = None,
    embedding_model: EmbeddingModel = None,
    late_interaction_model: LateInteractionModel = None,
    cross_encoder_model: CrossEncoderModel = None,
    embedding_column: Annotated[
        str | None, typer.Option(help="An embedding column that the source already has.")
    ] = None,
    distance: Annotated[str, typer.Option(help="cosine, inner_product or l2.")] = "cosine",
    candidates: Candidates = 100,
    maxsim_bit_top: MaxsimBitTop = None,
    maxsim_top: MaxsimTop = 30,
    token_precision: TokenPrecision = "int8",  # noqa: S107
    token_dims: TokenDims = None,
    token_pool: TokenPool = 1,
    timeout: Timeout = "5 s",
    grace_period: GracePeriod = "1 day",
    blend: Blend = None,
    log_sample: LogSample = 0.0,
    log_retention: LogRetention = "30 days",
    text_search_config: Annotated[
        str, typer.Option(help="How words are cut for the full-text fallback.")
    ] = "simple",
) -> None:
    """Create a reranker over a table (pgrerank.create_reranker)."""
    settings = _settings(locals())
    with report_errors(), _connect(dsn) as connection:
        call(connection, "create_reranker", settings)
        note(f"reranker {name} is created; let a worker encode it, or: pgrerank backfill {name}")


@app.command(
    epilog="Example: pgrerank alter documents --candidates 1000 --maxsim-bit-top 100"
    " --cross-encoder-model ''"
)
def alter(
    name: Name,
    dsn: Dsn = "",
    text: TextColumns = None,
    text_expression: TextExpression = None,
    embedding_model: EmbeddingModel = None,
    late_interaction_model: LateInteractionModel = None,
    cross_encoder_model: CrossEncoderModel = None,
    candidates: Candidates = None,
    maxsim_bit_top: MaxsimBitTop = None,
    maxsim_top: MaxsimTop = None,
    token_precision: TokenPrecision = None,
    token_dims: TokenDims = None,
    token_pool: TokenPool = None,
    timeout: Timeout = None,
    grace_period: GracePeriod = None,
    blend: Blend = None,
    log_sample: LogSample = None,
    log_retention: LogRetention = None,
) -> None:
    """Change a reranker (pgrerank.alter_reranker).

    What is not named stays. '' takes a model out; 0 takes bits or the projection out.
    """
    settings = _settings(locals())
    with report_errors(), _connect(dsn) as connection:
        call(connection, "alter_reranker", settings)
        [(following, pending)] = connection.execute(
            "SELECT next_generation, pending FROM pgrerank.status WHERE reranker = %s", (name,)
        )
        note(
            f"reranker {name} is changed"
            if following is None
            else f"reranker {name} goes on as it was until generation {following} is encoded:"
            f" {pending} documents; let a worker do it, or: pgrerank backfill {name}"
        )


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """A command's options as arguments of the SQL function."""
    settings = {key: value for key, value in given.items() if key not in ("dsn", "text")}
    if given["text"]:
        settings["text_columns"] = [column.strip() for column in given["text"].split(",")]
    return settings


def _connect(dsn: str) -> psycopg.Connection[Any]:
    """A connection whose warnings are shown."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.add_notice_handler(lambda diagnostic: note(str(diagnostic.message_primary)))
    return connection


@app.command(epilog="Example: pgrerank rollback documents")
def rollback(name: Name, dsn: Dsn = "") -> None:
    """Go back to the generation before, or give up the one being made."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        [(generation,)] = call(connection, "rollback_reranker", {"name": name}).fetchall()
        note(f"reranker {name} uses generation {generation}")


@app.command(epilog="Example: pgrerank drop documents")
def drop(name: Name, dsn: Dsn = "") -> None:
    """Drop a reranker with its vectors; the source table stays."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        call(connection, "drop_reranker", {"name": name})
        note(f"reranker {name} is dropped")


@app.command(epilog="Example: pgrerank backfill documents --retry-failed")
def backfill(
    name: Name,
    dsn: Dsn = "",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed ones again.")
    ] = False,
) -> None:
    """Encode whatever a reranker lacks, here and now, beside any worker."""
    from pgrerank.worker.backfill import backfill as run

    with report_errors(), document_progress(f"encoding {name}") as progress:
        total = asyncio.run(run(dsn, name, retry_failed=retry_failed, on_progress=progress))
    note(f"{total} documents were pending")
    status(dsn=dsn)


@app.command(epilog="Example: pgrerank status --json")
def status(dsn: Dsn = "", as_json: Json = False) -> None:
    """How far each reranker's encoding is, and what failed."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute("SELECT * FROM pgrerank.status")
        print_cursor(cursor, as_json=as_json)


@app.command(
    epilog="Example: pgrerank search documents 'why is my pool exhausted'"
    """ --filter '{"lang": "en"}'"""
)
def search(
    name: Name,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    dsn: Dsn = "",
    top_k: Annotated[int, typer.Option(help="Documents to return.")] = 10,
    filter_: Annotated[
        str | None, typer.Option("--filter", help='JSON, {"column": value, …}.')
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="Documents that recall returns.")] = None,
    maxsim_bit_top: Annotated[
        int | None, typer.Option(help="Best by bits that MaxSim scores in full.")
    ] = None,
    maxsim_top: Annotated[int | None, typer.Option(help="Documents for the cross-encoder.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="recall,maxsim_bit,maxsim,cross_encoder: these only.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Exact recall instead of HNSW.")] = False,
    timeout: Annotated[str | None, typer.Option(help="Time limit, such as '500 ms'.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail rather than degrade.")] = False,
    as_json: Json = False,
) -> None:
    """Search by a reranker, as pgrerank.NAME_search does."""
    arguments: dict[str, Any] = dict(
        query=query,
        top_k=top_k,
        filter=filter_,
        candidates=candidates,
        maxsim_bit_top=maxsim_bit_top,
        maxsim_top=maxsim_top,
        stages=stages.split(",") if stages else None,
        recall="exact" if exact else "hnsw",
        timeout=timeout,
        strict=strict,
    )
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pgrerank._reranker(%s)", (name,))
        print_cursor(call(connection, f"{name}_search", arguments), as_json=as_json)
