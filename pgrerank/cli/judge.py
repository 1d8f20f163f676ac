"""The command `pgrerank qrels judge`."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Annotated, Any

import psycopg
import typer

from pgrerank.cli.options import Dsn, Json
from pgrerank.cli.qrels import Set
from pgrerank.errors import SettingsError, extra
from pgrerank.install.schema import connect
from pgrerank.judgements import Judgements, find, load_set
from pgrerank.terminal import console, note, print_rows, report_errors, work_progress

app = typer.Typer()


@app.command(
    epilog="Example: pgrerank qrels judge articles-llm --reranker articles --queries articles"
    " --model gpt-5-mini --url https://api.openai.com/v1 --key-env OPENAI_API_KEY"
)
def judge(
    name: Set,
    reranker: Annotated[str, typer.Option(help="Whose best documents to judge.")],
    model: Annotated[str, typer.Option(help="As the endpoint names it.")],
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint, with its /v1.")],
    dsn: Dsn = "",
    key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with its key.")
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="SET|PATH", help="Whose queries; by default those in the reranker's log."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Queries of the log, the commonest.")] = 100,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Documents of each query.")] = 10,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 4,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Of a million tokens read, and of one written, to tell the cost."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Have a language model grade documents from 0 to 3, into the set SET.

    Run it again to go on where it was cut short. Where --queries has judgements by people, the
    agreement with them is printed.
    """
    with report_errors(), connect(dsn) as connection:
        with extra("judge", "judging"):
            from pgrerank.evaluation import judging
            from pgrerank.evaluation.chat import Chat
        human = None if queries is None else find(connection, queries)
        asked = (
            judging.logged_queries(connection, reranker, most) if human is None else human.queries
        )
        if queries == name:
            raise SettingsError(
                f"--queries {queries} is the set to write: a model's judgements go to one of their"
                " own, lest they be taken for people's"
            )
        with (
            closing(Chat(url, model, _key(key_env))) as chat,
            work_progress("judging", "documents") as progress,
        ):
            done = judging.judge(
                connection,
                name,
                reranker,
                asked,
                chat,
                top=top,
                parallel=parallel,
                on_progress=progress,
            )
        figures: dict[str, Any] = {"set": name, **vars(done)}
        if price is not None:
            figures["cost"] = (
                done.tokens_read * price[0] + done.tokens_written * price[1]
            ) / 1_000_000
        _print(connection, figures, human, as_json=as_json)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise SettingsError(f"--key-env names {variable}, which is not set in the environment")
    return key


def _print(
    connection: psycopg.Connection[Any],
    figures: dict[str, Any],
    human: Judgements | None,
    *,
    as_json: bool,
) -> None:
    from pgrerank.evaluation.judging import agreement

    confusion: dict[tuple[int, int], int] = {}
    if human is not None and figures["new"] + figures["known"]:
        agreed = agreement(human.qrels, load_set(connection, figures["set"]).qrels)
        figures |= {"compared": agreed.pairs, "same_grade": agreed.same, "kappa": agreed.kappa}
        confusion = agreed.confusion
    if as_json:
        cells = [[*grades, count] for grades, count in confusion.items()]
        figures["confusion"] = cells
        print_rows(list(figures), [list(figures.values())], as_json=True)
        return
    print_rows(list(figures), [list(figures.values())], as_json=False)
    if confusion:
        console.print()
        given = sorted({grade for _, grade in confusion})
        rows = [
            [grade, *(confusion.get((grade, other), 0) for other in given)]
            for grade in sorted({grade for grade, _ in confusion})
        ]
        print_rows(["people \\ model", *map(str, given)], rows, as_json=False)
    if figures["invalid"]:
        note(f"{figures['invalid']} had no usable answer, and are not stored: run it again")
