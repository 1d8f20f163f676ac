"""The commands that bring something up: a server, the schema, a worker."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from pgrerank.cli.options import Dsn
from pgrerank.errors import extra
from pgrerank.install import schema
from pgrerank.terminal import note, report_errors

app = typer.Typer()


@app.command(epilog="Example: pgrerank demo --keep")
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder for its server; by default in the user's cache.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave server and worker up.")] = False,
    studio: Annotated[
        bool, typer.Option("--studio", help="Open it in pgrerank studio, and ask no questions.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop what --keep left up.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=100, help="Take only so many entries, and fewer questions.")
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
            run_demo(folder, keep=keep, studio=studio, limit=limit)


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
        typer.Option(help="Have searches come here: address and password go to the database."),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT to register, where Postgres reaches it otherwise."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate; TLS is then required.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key.")] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused.")
    ] = 64,
    cache: Annotated[
        int,
        typer.Option(min=0, metavar="<MiB>", help="Memory for scores and query vectors to keep."),
    ] = 64,
    http: Annotated[
        str | None,
        typer.Option(help="HOST:PORT for HTTP clients too: of TEI, Cohere, Jina, OpenAI."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="HOST:PORT for Prometheus, such as 127.0.0.1:9187.")
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(help="URL of an OTLP/HTTP collector of traces: http://127.0.0.1:4318."),
    ] = None,
    checks: Annotated[
        bool, typer.Option(help="While idle, check what stages and HNSW bring.")
    ] = True,
) -> None:
    """Run a worker: the ingest loop and the scoring server.

    Postgres must show the password in PGRERANK_WORKER_PASSWORD; with --register and no such
    variable a fresh one is made. HTTP clients must show the key in PGRERANK_HTTP_KEY, if it is set.
    """
    from pgrerank.worker.process import run_worker
    from pgrerank.worker.settings import worker_settings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="INFO")
    logging.getLogger("httpx").setLevel("WARNING")  # it would log each request, and its whole URL
    with report_errors():
        settings = worker_settings(
            dsn,
            listen,
            os.environ.get("PGRERANK_WORKER_PASSWORD"),
            tls=(tls_cert, tls_key) if tls_cert else None,
            ingest=ingest,
            serve=serve,
            preload=preload,
            register=address or register,
            queue=queue,
            cache=cache,
            http=http,
            http_key=os.environ.get("PGRERANK_HTTP_KEY"),
            metrics=metrics,
            traces=traces,
            checks=checks,
        )
        asyncio.run(
            run_worker(
                settings,
                on_ready=lambda port: note(
                    "ready" if port is None else f"ready, listening on {settings.host}:{port}"
                ),
            )
        )


@app.command(epilog="Example: pgrerank mcp --dsn 'postgresql://reader@db.example.org/app'")
def mcp(dsn: Dsn = "") -> None:
    """Serve search, explain and status to language models: an MCP server on stdin and stdout.

    It sees what the role of --dsn may read, and writes nothing.
    """
    with report_errors():
        with extra("mcp", "an MCP server"):
            from pgrerank.mcp import make_server
        make_server(dsn).run()
