"""An MCP server: language models search a database, ask why, and learn what the answer is worth."""

from __future__ import annotations

from mcp.types import ToolAnnotations
from psycopg.rows import dict_row

from pgrerank import __version__
from pgrerank.install.schema import connect
from pgrerank.mcp.server import Server
from pgrerank.mcp.tools import RERANKERS, Tools

__all__ = ["make_server"]

_INSTRUCTIONS = """Searches tables of a Postgres database by meaning and by words, best first.
Read `notes` before you answer: they say where nothing relevant was found, where scores can't tell
whether anything is relevant, and where a stage of the search was lost. An empty `documents` means
that this collection has no answer; say so, and don't make one up. Rerankers: {rerankers}."""


def make_server(dsn: str) -> Server:
    """Make the server, once the database has been looked at; raises as a first connection does."""
    with connect(dsn) as connection:
        rerankers = connection.cursor(row_factory=dict_row).execute(RERANKERS).fetchall()
    named = [f"{one['name']} (over {one['source']})" for one in rerankers]
    server = Server(
        "pgrerank",
        version=__version__,
        instructions=_INSTRUCTIONS.format(rerankers=", ".join(named) or "none yet"),
        log_level="WARNING",
    )
    tools = Tools(dsn)
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    for tool in (tools.search, tools.explain, tools.status):
        server.add_tool(tool, annotations=reads)
    return server
