"""Commands that create, change, fill and search rerankers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import psycopg
import typer
from psycopg import sql

from pgrerank.catalog import call, call_statement, fetch_one, read_reranker
from pgrerank.cli.found import print_found
from pgrerank.cli.options import (
    After,
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
    Words,
    comma_separated,
    print_cursor,
    search_arguments,
)
from pgrerank.install.schema import connect
from pgrerank.terminal import document_progress, note, print_rows, report_errors

app = typer.Typer()

TextColumns = Annotated[
    Words | None,
    typer.Option("--text", parser=comma_separated, metavar="<words>", help="Its text columns."),
]
TextExpression = Annotated[str | None, typer.Option(help="Or an immutable expression.")]
EmbeddingModel = Annotated[str | None, typer.Option(help="Model for recall.")]
LateInteractionModel = Annotated[str | None, typer.Option(help="Model for MaxSim.")]
CrossEncoderModel = Annotated[str | None, typer.Option(help="Model for the head.")]
CrossEncoderFallback = Annotated[
    str | None, typer.Option(help="Model for the head where that one fails or would be late.")
]
ListwiseModel = Annotated[str | None, typer.Option(help="Language model that orders the best.")]
TokenPrecision = Annotated[str | None, typer.Option(help="float16, int8 or bit.")]
TokenDims = Annotated[int | None, typer.Option(help="Project token vectors to so many dimensions.")]
TokenPool = Annotated[int | None, typer.Option(help="Keep one token vector for so many.")]
LogSample = Annotated[
    float | None, typer.Option(help="Share of searches to remember, 0 to 1 (pgrerank.searches).")
]
LogRetention = Annotated[str | None, typer.Option(help="How long to remember them.")]
GracePeriod = Annotated[
    str | None, typer.Option(help="How long to keep the generation before, for a rollback.")
]


TextSearchConfig = Annotated[
    str | None,
    typer.Option(help="How texts are cut into words: a text search configuration, such as german."),
]
LanguageExpression = Annotated[
    str | None,
    typer.Option(help="Each document's own language: a column, or an SQL expression over columns."),
]
PassageSize = Annotated[
    int | None, typer.Option(help="Tokens of a passage at most; 0: what the models read at once.")
]
PassageOverlap = Annotated[
    int | None, typer.Option(help="Tokens that a passage shares with the one before.")
]
PassageStructure = Annotated[
    str | None, typer.Option(help="How texts are cut: as plain, markdown or html.")
]
PassagePrefix = Annotated[
    str | None,
    typer.Option(help="What models read before each passage: a column, or an SQL expression."),
]
Partitioned = Annotated[
    bool | None,
    typer.Option("--partitioned/--no-partitioned", help="Partition what is stored as the source."),
]
TenantColumn = Annotated[
    str | None,
    typer.Option(help="The column that keeps tenants apart, where searches are filtered by it."),
]


@app.command(
    epilog="Example: pgrerank create documents --source public.documents --text title,body"
    " --embedding-model minilm --late-interaction-model minilm-tokens"
    " --cross-encoder-model ms-marco"
)
def create(
    context: typer.Context,
    name: Name,
    source: Annotated[str, typer.Option(help="Source table or view.")],
    dsn: Dsn = "",
    text_columns: TextColumns = None,
    text_expression: TextExpression = None,
    embedding_model: EmbeddingModel = None,
    late_interaction_model: LateInteractionModel = None,
    cross_encoder_model: CrossEncoderModel = None,
    cross_encoder_fallback: CrossEncoderFallback = None,
    instruction: Instruction = None,
    listwise_model: ListwiseModel = None,
    listwise_top: ListwiseTop = None,
    embedding_column: Annotated[
        str | None, typer.Option(help="An embedding column that the source already has.")
    ] = None,
    distance: Annotated[str | None, typer.Option(help="cosine, inner_product or l2.")] = None,
    candidates: Candidates = None,
    maxsim_bit_top: MaxsimBitTop = None,
    maxsim_top: MaxsimTop = None,
    early_exit: EarlyExit = None,
    signals: Signals = None,
    group_by: GroupBy = None,
    per_group: PerGroup = None,
    diversity: Diversity = None,
    duplicate_threshold: DuplicateThreshold = None,
    min_relevance: MinRelevance = None,
    cross_encoder_passages: CrossEncoderPassages = None,
    passages: Passages = None,
    highlights: Highlights = None,
    token_precision: TokenPrecision = None,
    token_dims: TokenDims = None,
    token_pool: TokenPool = None,
    timeout: Timeout = None,
    grace_period: GracePeriod = None,
    blend: Blend = None,
    log_sample: LogSample = None,
    log_retention: LogRetention = None,
    text_search_config: TextSearchConfig = None,
    language_expression: LanguageExpression = None,
    tenant_column: TenantColumn = None,
    passage_size: PassageSize = None,
    passage_overlap: PassageOverlap = None,
    passage_structure: PassageStructure = None,
    passage_prefix: PassagePrefix = None,
    partitioned: Partitioned = None,
    key_columns: Annotated[
        Words | None,
        typer.Option(
            "--key",
            parser=comma_separated,
            metavar="<words>",
            help="The columns that tell documents apart, if not the primary key's.",
        ),
    ] = None,
) -> None:
    """Create a reranker over a table or view (pgrerank.create_reranker).

    What is not named is as the database has it by default.
    """
    with report_errors(), _connect(dsn) as connection:
        call(connection, "create_reranker", _settings(context))
        note(f"reranker {name} is created; let a worker encode it, or: pgrerank backfill {name}")


@app.command(
    epilog="Example: pgrerank alter documents --candidates 1000 --maxsim-bit-top 100"
    " --cross-encoder-model ''"
)
def alter(
    context: typer.Context,
    name: Name,
    dsn: Dsn = "",
    text_columns: TextColumns = None,
    text_expression: TextExpression = None,
    embedding_model: EmbeddingModel = None,
    late_interaction_model: LateInteractionModel = None,
    cross_encoder_model: CrossEncoderModel = None,
    cross_encoder_fallback: CrossEncoderFallback = None,
    instruction: Instruction = None,
    listwise_model: ListwiseModel = None,
    listwise_top: ListwiseTop = None,
    candidates: Candidates = None,
    maxsim_bit_top: MaxsimBitTop = None,
    maxsim_top: MaxsimTop = None,
    early_exit: EarlyExit = None,
    signals: Signals = None,
    group_by: GroupBy = None,
    per_group: PerGroup = None,
    diversity: Diversity = None,
    duplicate_threshold: DuplicateThreshold = None,
    min_relevance: MinRelevance = None,
    cross_encoder_passages: CrossEncoderPassages = None,
    passages: Passages = None,
    highlights: Highlights = None,
    token_precision: TokenPrecision = None,
    token_dims: TokenDims = None,
    token_pool: TokenPool = None,
    timeout: Timeout = None,
    grace_period: GracePeriod = None,
    blend: Blend = None,
    log_sample: LogSample = None,
    log_retention: LogRetention = None,
    text_search_config: TextSearchConfig = None,
    language_expression: LanguageExpression = None,
    tenant_column: TenantColumn = None,
    passage_size: PassageSize = None,
    passage_overlap: PassageOverlap = None,
    passage_structure: PassageStructure = None,
    passage_prefix: PassagePrefix = None,
    partitioned: Partitioned = None,
) -> None:
    """Change a reranker (pgrerank.alter_reranker).

    What is not named stays. '' takes a model, languages, tenants or the prefix out; 0 takes
    bits or the projection out.
    """
    with report_errors(), _connect(dsn) as connection:
        call(connection, "alter_reranker", _settings(context))
        following, pending = fetch_one(
            connection.execute(
                "SELECT max(g.number), (SELECT count(*) FROM pgrerank.pending p"
                " WHERE (p.reranker, p.generation) = (r.name, max(g.number))"
                " AND p.failed_at IS NULL) FROM pgrerank.rerankers r LEFT JOIN pgrerank.generations"
                " g ON g.reranker = r.name AND g.number > r.generation AND g.retired_at IS NULL"
                " WHERE r.name = %s GROUP BY r.name",
                (name,),
            )
        )
        note(
            f"reranker {name} is changed"
            if following is None
            else f"reranker {name} goes on as it was until generation {following} is encoded:"
            f" {pending} documents; let a worker do it, or: pgrerank backfill {name}"
        )


def _settings(context: typer.Context) -> dict[str, Any]:
    """Turn a command's options, all but `dsn`, into arguments of the SQL function."""
    given = {name: value for name, value in context.params.items() if name != "dsn"}
    return {"reranker": given.pop("name"), **given}


def _connect(dsn: str) -> psycopg.Connection[Any]:
    """Open a connection whose warnings are printed."""
    connection = connect(dsn)
    connection.add_notice_handler(lambda diagnostic: note(str(diagnostic.message_primary)))
    return connection


@app.command(epilog="Example: pgrerank rollback documents")
def rollback(name: Name, dsn: Dsn = "") -> None:
    """Go back to the generation before, or give up the one being made."""
    with report_errors(), connect(dsn) as connection:
        [(generation,)] = call(connection, "rollback_reranker", {"reranker": name}).fetchall()
        note(f"reranker {name} uses generation {generation}")


@app.command(epilog="Example: pgrerank drop documents")
def drop(name: Name, dsn: Dsn = "") -> None:
    """Drop a reranker with its vectors; the source table stays."""
    with report_errors(), connect(dsn) as connection:
        call(connection, "drop_reranker", {"reranker": name})
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


@app.command(epilog="Example: pgrerank reconcile documents --json")
def reconcile(
    name: Name,
    dsn: Dsn = "",
    page: Annotated[int, typer.Option(min=1, help="Documents compared in one transaction.")] = 1000,
    as_json: Json = False,
) -> None:
    """Compare all documents with what is stored of them, and enqueue what no trigger saw.

    Workers do so when they have nothing else to do; this does it now.
    """
    with report_errors(), _connect(dsn) as connection:
        table = sql.SQL(read_reranker(connection, name).table)
        counted = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table))
        [documents] = fetch_one(counted)
        pages, is_whole = 0, False
        with document_progress(f"comparing {name}") as progress:
            while not is_whole:
                given = {"reranker": name, "max_documents": page, "anew": pages == 0}
                [is_whole] = fetch_one(call(connection, "reconcile", given))
                pages += 1
                progress(min(pages * page, documents), documents)
        waiting = connection.execute(
            "SELECT count(*) FROM pgrerank.pending WHERE reranker = %s AND failed_at IS NULL",
            (name,),
        )
        rows = [(name, documents, *fetch_one(waiting))]
        print_rows(["reranker", "compared", "pending"], rows, as_json=as_json)


@app.command(epilog="Example: pgrerank status --json")
def status(dsn: Dsn = "", as_json: Json = False) -> None:
    """How far each reranker's encoding is, and what failed."""
    with report_errors(), connect(dsn) as connection:
        cursor = connection.execute("SELECT * FROM pgrerank.status")
        print_cursor(cursor, as_json=as_json)


@app.command(epilog="Example: pgrerank workers --json")
def workers(dsn: Dsn = "", as_json: Json = False) -> None:
    """Which workers there are, whether each is alive, and how busy."""
    with report_errors(), connect(dsn) as connection:
        cursor = connection.execute("SELECT * FROM pgrerank.workers")
        print_cursor(cursor, as_json=as_json)


@app.command(
    epilog="Example: pgrerank search documents 'why is my pool exhausted'"
    """ --filter '{"lang": "en"}'"""
)
def search(
    context: typer.Context,
    name: Name,
    query: Query,
    dsn: Dsn = "",
    top_k: TopK = 10,
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
    after: After = None,
    exact: Exact = False,
    generation: Generation = None,
    blend: Blend = None,
    timeout: Timeout = None,
    strict: Strict = None,
    as_json: Json = False,
) -> None:
    """Search by a reranker, as pgrerank.NAME_search does; --json has all of its columns."""
    with report_errors(), connect(dsn) as connection:
        reranker = read_reranker(connection, name)
        statement, values = call_statement(
            f"{name}_search",
            search_arguments(context.params),
            casts=reranker.casts,
        )
        print_found(connection.execute(statement, values), as_json=as_json)
