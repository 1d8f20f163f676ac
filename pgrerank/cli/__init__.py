"""The command line: arguments only; what they ask for is done elsewhere."""

from pgrerank.cli import (  # noqa: F401 - for their commands
    deployment,
    evaluate,
    explain,
    measure,
    replay,
    rerankers,
    train,
)
from pgrerank.cli.extension import extension_app
from pgrerank.cli.models import models_app
from pgrerank.cli.native import native_app
from pgrerank.cli.options import app
from pgrerank.cli.qrels import qrels_app

app.add_typer(models_app, name="models")
app.add_typer(extension_app, name="extension")
app.add_typer(native_app, name="native")
app.add_typer(qrels_app, name="qrels")

__all__ = ["app"]
