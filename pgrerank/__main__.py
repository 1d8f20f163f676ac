"""`python -m pgrerank` is the command `pgrerank`."""

from pgrerank.cli import app

app(prog_name="pgrerank")
