"""The command line: arguments only; what they ask for is done elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from pgrerank import schema
from pgrerank.cli.models import models_app
from pgrerank.cli.native import native_app
from pgrerank.cli.options import Dsn, Json, Name, call, print_cursor
from pgrerank.terminal import document_progress, note, report_errors

app = typer.Typer(
    name="pgrerank",
    help="Rerank inside Postgres: recall, MaxSim and cross-encoder in one SQL call.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models_app, name="models")
app.add_typer(native_app, name="native")


@app.command(epilog="Example: pgrerank demo --keep")
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder for its server; by default in the user's cache.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave server and worker up.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop what --keep left up.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=100, help="Take only so many entries, for a quick look.")
    ] = None,
) -> None:
    """Search Python's own documentation, with real models, on a Postgres of its own."""
    from pgrerank.demo.models import default_folder
    from pgrerank.demo.run import run_demo, stop_demo

    with report_errors():
        folder = data or default_folder()
        if stop:
            note("stopped" if stop_demo(folder) else f"nothing runs on {folder}")
        else:
            run_demo(folder, keep=keep, limit=limit)


@app.command(epilog="Example: pgrerank dev --data ./pgdata --port 5433")
def dev(
    data: Annotated[
        Path | None, typer.Option(help="Folder to keep its data in; by default a temporary one.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="TCP port on 127.0.0.1; default: free.")] = None,
    with_worker: Annotated[bool, typer.Option("--worker/--no-worker", help="A worker too.")] = True,
) -> None:
    """Run a Postgres with pgvector, pgrerank and a worker until Ctrl-C."""
    from pgrerank.dev import run_dev

    with report_errors():
        run_dev(data, port, with_worker=with_worker)


@app.command(epilog="Example: pgrerank install --dsn postgresql://app@db.example.org/app")
def install(dsn: Dsn = "") -> None:
    """Create or renew the schema pgrerank in a database."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        version = schema.install(connection)
        note(f"pgrerank {version} is installed in database {connection.info.dbname}")


@app.command(epilog="Example: pgrerank uninstall --dsn postgresql://app@db.example.org/app --yes")
def uninstall(
    dsn: Dsn = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Drop the schema pgrerank: rerankers, stored vectors, triggers. Source tables stay."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        if not yes:
            typer.confirm(
                f"Drop all rerankers and their vectors from database {connection.info.dbname}?",
                abort=True,
            )
        schema.uninstall(connection)
        note(f"pgrerank is removed from database {connection.info.dbname}")


@app.command(
    epilog="Example: PGRERANK_WORKER_PASSWORD=… pgrerank worker --dsn postgresql:///app"
    " --listen 0.0.0.0:6432 --tls-cert worker.crt --tls-key worker.key --preload"
)
def worker(
    dsn: Dsn = "",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT that Postgres reaches.")
    ] = "127.0.0.1:6432",
    ingest: Annotated[bool, typer.Option(help="Encode pending documents.")] = True,
    serve: Annotated[bool, typer.Option(help="Answer Postgres at search time.")] = True,
    preload: Annotated[bool, typer.Option(help="Load all models before listening.")] = False,
    register: Annotated[
        bool,
        typer.Option(help="Write address and password to the database (pgrerank.set_worker)."),
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate; TLS is then required.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key.")] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused.")
    ] = 64,
) -> None:
    """Run a worker: the ingest loop and the scoring server.

    Postgres must show the password in PGRERANK_WORKER_PASSWORD; with --register and no such
    variable a fresh one is made.
    """
    from pgrerank.worker.process import run_worker
    from pgrerank.worker.settings import worker_settings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="INFO")
    with report_errors():
        settings = worker_settings(
            dsn,
            listen,
            os.environ.get("PGRERANK_WORKER_PASSWORD"),
            tls=(tls_cert, tls_key) if tls_cert else None,
            ingest=ingest,
            serve=serve,
            preload=preload,
            register=register,
            queue=queue,
        )
        asyncio.run(
            run_worker(
                settings,
                on_ready=lambda port: note(
                    "ready" if port is None else f"ready, listening on {settings.host}:{port}"
                ),
            )
        )


@app.command(
    epilog="Example: pgrerank create documents --source public.documents --text title,body"
    " --embedding-model minilm --late-interaction-model minilm-tokens"
    " --cross-encoder-model ms-marco"
)
def create(
    name: Name,
    source: Annotated[str, typer.Option(help="Source table.")],
    dsn: Dsn = "",
    text: Annotated[str | None, typer.Option(help="Text columns, separated by commas.")] = None,
    text_expression: Annotated[str | None, typer.Option(help="Or an immutable expression.")] = None,
    embedding_model: Annotated[str | None, typer.Option(help="Model for recall.")] = None,
    late_interaction_model: Annotated[str | None, typer.Option(help="Model for MaxSim.")] = None,
    cross_encoder_model: Annotated[str | None, typer.Option(help="Model for the head.")] = None,
    embedding_column: Annotated[
        str | None, typer.Option(help="An embedding column that the source already has.")
    ] = None,
    distance: Annotated[str, typer.Option(help="cosine, inner_product or l2.")] = "cosine",
    candidates: Annotated[int, typer.Option(help="Documents that recall returns.")] = 100,
    maxsim_bit_top: Annotated[
        int | None, typer.Option(help="Score all by bits first, so many of them in full.")
    ] = None,
    maxsim_top: Annotated[int, typer.Option(help="Documents that the cross-encoder scores.")] = 30,
    token_precision: Annotated[str, typer.Option(help="float16, int8 or bit.")] = "int8",  # noqa: S107
    token_dims: Annotated[
        int | None, typer.Option(help="Project token vectors to so many dimensions.")
    ] = None,
    token_pool: Annotated[int, typer.Option(help="Keep one token vector for so many.")] = 1,
    timeout: Annotated[str, typer.Option(help="Time limit of a search.")] = "5 s",
) -> None:
    """Create a reranker over a table (pgrerank.create_reranker)."""
    settings: dict[str, Any] = dict(
        name=name,
        source=source,
        text_columns=[column.strip() for column in text.split(",")] if text else None,
        text_expression=text_expression,
        embedding_model=embedding_model,
        late_interaction_model=late_interaction_model,
        cross_encoder_model=cross_encoder_model,
        embedding_column=embedding_column,
        distance=distance,
        candidates=candidates,
        maxsim_bit_top=maxsim_bit_top,
        maxsim_top=maxsim_top,
        token_precision=token_precision,
        token_dims=token_dims,
        token_pool=token_pool,
        timeout=timeout,
    )
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        connection.add_notice_handler(lambda diagnostic: note(str(diagnostic.message_primary)))
        call(connection, "create_reranker", settings)
        note(f"reranker {name} is created; let a worker encode it, or: pgrerank backfill {name}")


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
