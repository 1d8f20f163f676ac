"""The command line. It reads arguments and prints results; other packages do the work."""

import typer

from pgrerank.cli import (
    calibrate,
    deployment,
    doctor,
    evaluate,
    explain,
    judge,
    measure,
    replay,
    rerankers,
    studio,
    train,
)
from pgrerank.cli.extension import extension_app
from pgrerank.cli.models import models_app
from pgrerank.cli.native import native_app
from pgrerank.cli.qrels import qrels_app

__all__ = ["app"]

app = typer.Typer(
    name="pgrerank",
    help="Rerank inside Postgres: recall, MaxSim and cross-encoder in one SQL call.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    *(deployment, doctor, rerankers, explain, studio, replay, evaluate, calibrate, measure, train),
):
    app.add_typer(module.app)
qrels_app.add_typer(judge.app)
app.add_typer(models_app, name="models")
app.add_typer(extension_app, name="extension")
app.add_typer(native_app, name="native")
app.add_typer(qrels_app, name="qrels")
