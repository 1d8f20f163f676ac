"""The commands `pgrerank models …`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgrerank.catalog import call
from pgrerank.cli.evaluate import Queries, Split, find_judgements
from pgrerank.cli.options import Dsn, Json, json_object, print_cursor
from pgrerank.errors import extra
from pgrerank.install.schema import connect
from pgrerank.models import Kind, Loader
from pgrerank.models.recommended import recommended
from pgrerank.terminal import console, note, print_rows, report_errors, work_progress

if TYPE_CHECKING:
    from pgrerank.optimising import Settings, Verdict

models_app = typer.Typer(
    help="The registry of models: list, recommend, add, optimise, drop.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@models_app.command("list", epilog="Example: pgrerank models list --json")
def list_models(dsn: Dsn = "", as_json: Json = False) -> None:
    """The registered models."""
    with report_errors(), connect(dsn) as connection:
        cursor = connection.execute(
            "SELECT name, kind, loader, source, revision, dims, max_tokens"
            " FROM pgrerank.models ORDER BY name"
        )
        print_cursor(cursor, as_json=as_json)


@models_app.command(
    "add",
    epilog="Example: pgrerank models add minilm --kind embedding"
    " --source sentence-transformers/all-MiniLM-L6-v2",
)
def add_model(
    name: Annotated[str, typer.Argument(help="Name to register it by.")],
    kind: Annotated[Kind, typer.Option(help="embedding, late_interaction or cross_encoder.")],
    source: Annotated[str, typer.Option(help="Hub name, folder, or package://PACKAGE/FOLDER.")],
    dsn: Dsn = "",
    loader: Annotated[
        Loader | None, typer.Option(help="What reads it; by default by kind.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    options: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=json_object, metavar="<json>", help="The loader's, as an object."),
    ] = None,
) -> None:
    """Load a model once, to learn its dimensions, and register it."""
    from pgrerank.catalog import register_model

    with report_errors(), connect(dsn) as connection:
        spec = register_model(
            connection, name, kind, source, loader=loader, revision=revision, options=options
        )
        note(f"model {spec.name} is registered: {spec.kind}, loaded by {spec.loader}")


@models_app.command("drop", epilog="Example: pgrerank models drop minilm")
def drop_model(name: Annotated[str, typer.Argument(help="Its name.")], dsn: Dsn = "") -> None:
    """Forget a model that no reranker uses."""
    with report_errors(), connect(dsn) as connection:
        call(connection, "drop_model", {"name": name})
        note(f"model {name} is forgotten")


@models_app.command(
    "recommend", epilog="Example: pgrerank models recommend --kind cross_encoder --language zh"
)
def recommend_models(
    kind: Annotated[
        Kind | None, typer.Option(help="embedding, late_interaction or cross_encoder.")
    ] = None,
    language: Annotated[
        Literal["en", "zh", "multilingual", "code"] | None, typer.Option(help="What they read.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Models worth a try, with size, licence and window, and the commands that register them."""
    found = recommended(kind, language)
    columns = ("name", "kind", "parameters", "licence", "languages", "window", "prompt")
    rows = [
        [
            *(one.name, one.kind, one.parameters, one.licence),
            *(", ".join(one.languages), one.window, one.prompt),
        ]
        for one in found
    ]
    if as_json:
        rows = [[*row, one.was_run, one.command] for row, one in zip(rows, found, strict=True)]
        print_rows([*columns, "was_run", "command"], rows, as_json=True)
        return
    print_rows(columns, rows, as_json=False)
    for one in found:
        console.print(one.command, markup=False, soft_wrap=True)


@models_app.command(
    "optimise", epilog="Example: pgrerank models optimise ms-marco --qrels dev --queries 100"
)
def optimise_model(
    name: Annotated[str, typer.Argument(help="A registered cross-encoder.")],
    dsn: Dsn = "",
    new_name: Annotated[
        str | None, typer.Option("--name", help="Name to register it by; by default NAME-int8.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for its files, for workers to read; by default named after it."),
    ] = None,
    qrels_name: Annotated[
        str | None,
        typer.Option(
            "--qrels",
            metavar="SET|PATH",
            help="Set in the database, BEIR folder, or JSON lines, to measure the loss of nDCG@10.",
        ),
    ] = None,
    split: Split = "test",
    queries: Queries = None,
    reranker: Annotated[
        str | None,
        typer.Option(help="Whose documents to compare on; by default the only one that has NAME."),
    ] = None,
    most_loss: Annotated[
        float, typer.Option(help="Loss of nDCG@10 above which it is refused.", min=0, max=1)
    ] = 0.005,
    force: Annotated[
        bool,
        typer.Option("--force", help="Register it though slower or worse; that is recorded."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a cross-encoder faster on CPUs: export it as an int8 ONNX graph, and register that.

    Original and optimised model score the same pairs in turn. It is refused where it is not faster
    on this machine or, by judgements, loses too much. A reranker is switched by pgrerank alter.
    """
    with report_errors(), connect(dsn) as connection:
        with extra("optimise", "optimising"):
            from pgrerank.optimising import Settings, default_folder, optimise, users_of
        chosen = new_name or f"{name}-int8"
        folder = output or default_folder(chosen)
        judged = (
            None if qrels_name is None else find_judgements(connection, qrels_name, split, queries)
        )
        settings = Settings(name, chosen, folder, reranker, judged, most_loss, force)
        optimise(
            connection,
            settings,
            phase=work_progress,
            on_verdict=lambda verdict, accepted: _print_verdict(
                settings, verdict, is_registered=accepted, as_json=as_json
            ),
        )
        note(f"model {chosen} is registered, from {folder.resolve()}")
        for user in users_of(connection, name) or ["RERANKER"]:
            note(
                "let it take over: pgrerank alter"
                f" {shlex.join([user, '--cross-encoder-model', chosen])}"
            )


def _print_verdict(
    settings: Settings, verdict: Verdict, *, is_registered: bool, as_json: bool
) -> None:
    figures = verdict.measures()["optimise"]
    if as_json:
        row = {"name": settings.name, **figures, "registered": is_registered}
        print_rows(list(row), [list(row.values())], as_json=True)
        return
    before, after = verdict.scored.speeds
    rows = [("pairs/s", f"{before:.3g}", f"{after:.3g}")]
    compared = verdict.comparison
    if compared is not None:
        rows.append((figures["measure"], f"{compared.before:.4f}", f"{compared.after:.4f}"))
    print_rows(["", verdict.original, settings.name], rows, as_json=False)
    note(
        f"{verdict.scored.pairs} pairs: rank correlation {verdict.scored.correlation:.4f}; scores"
        f" differ by {verdict.scored.difference:.3g} at most, over a range of"
        f" {verdict.scored.spread:.3g}; {verdict.size / 2**20:.0f} MiB"
    )
    if compared is None:
        note("what it loses of nDCG@10 is not known: --qrels measures it")
    else:
        note(
            f"nDCG@10 of {compared.queries} queries: {compared.better} better, {compared.worse}"
            f" worse, p = {compared.p:.3f}"
        )
