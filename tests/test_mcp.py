"""The MCP server, as the SDK's own client reaches it: a process that speaks on stdin and stdout."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from tests.helpers.workers import wait_for, worker

pytest.importorskip("mcp")
from mcp import Client, StdioServerParameters, stdio_client

from pgrerank.cli import app

Answer = dict[str, Any]


@pytest.fixture
def reader(db, dsn, source, tiny_models, make_role) -> str:
    """The connection string of a role that may read the documents, and nothing else."""
    source.models(**tiny_models)
    source.create()
    role = make_role()
    db.execute(f"GRANT SELECT (id, title, body, lang) ON documents TO {role}")
    db.execute("COMMENT ON TABLE documents IS 'Notes on pools, cats and bread'")
    return make_conninfo(dsn, user=role, password=role)


def served(dsn: str, ask: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Start the server as a client does, and ask it."""
    command = ["-m", "pgrerank", "mcp", "--dsn", dsn]
    parameters = StdioServerParameters(command=sys.executable, args=command)

    async def talk() -> None:
        async with Client(stdio_client(parameters)) as client:
            await ask(client)

    asyncio.run(talk())


async def ok(client: Client, tool: str, **arguments: Any) -> Answer:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return result.content[0].text


def test_a_model_searches_explains_and_is_told_what_the_answer_is_worth(
    db, dsn, reader, source, tmp_path
):
    async def whole(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"search", "explain", "status"}
        assert all(tool.annotations.read_only_hint for tool in tools.values())
        assert "documents (over documents)" in client.instructions

        found = await ok(client, "search", query="an exhausted pool", max_characters=100)
        assert found["reranker"] == "documents"
        rows = db.execute(
            "SELECT id::text FROM pgrerank.documents_search('an exhausted pool') ORDER BY rank"
        ).fetchall()
        assert [(document["key"],) for document in found["documents"]] == rows
        best = found["documents"][0]
        assert best["stage"] == "cross_encoder"
        assert best["relevance"] is None
        assert set(best["columns"]) == {"id", "lang"}
        [note] = found["notes"]
        assert note.startswith("Relevance is not calibrated here")
        rest = await ok(client, "search", query="an exhausted pool", after=[best["key"]], top_k=1)
        assert [document["rank"] for document in rest["documents"]] == [2]

        why = await ok(client, "explain", query="a sleeping cat", keys=["2"])
        [way] = why["documents"]
        assert [step["stage"] for step in way["steps"]][-1] == "cross-encoder"
        assert way["answers"]
        assert why["milliseconds"]["total"] > 0

        status = await ok(client, "status")
        [one] = status["rerankers"]
        assert one["description"] == "Notes on pools, cats and bread"
        assert set(one["columns"]) == {"id", "title", "body", "lang"}
        assert (status["workers_alive"], one["pending"], one["calibrated"]) == (1, None, False)

        told = await refused(client, "search", query="x", min_relevance=0.5)
        assert "relevance" in told
        assert "pgrerank calibrate" in told
        assert '"typo" does not exist' in await refused(
            client, "explain", query="x", reranker="typo"
        )
        assert await refused(client, "search", query="x", top_k=1000, keys=["1"]) == (
            "search has no argument keys: it takes query, reranker, top_k, filter, min_relevance,"
            " after, max_characters"
        )
        assert await refused(client, "search", top_k=1000, after=[7]) == (
            "search needs the argument query\n"
            "search: top_k is 1000, it should be less than or equal to 50\n"
            "search: after.0 is 7, it should be a valid string"
        )
        nothing = await ok(client, "search", query="x", filter={"lang": "xx"})
        assert nothing["documents"] == []
        assert nothing["notes"][0].startswith("No document was found")

    with worker(dsn, tmp_path):
        wait_for(db, "s.pending = 0")
        served(reader, whole)


def test_nothing_relevant_and_a_lost_worker_are_told(db, reader, source):
    db.execute("SELECT pgrerank.create_reranker('words', 'documents', '{title, body}')")
    while db.execute("SELECT FROM pgrerank.claim(64, 'words')").fetchone() is not None:
        pass
    source.encode_by_hand()
    db.execute(
        "INSERT INTO pgrerank.calibrations SELECT 'words', 1, '{lexical}', NULL, NULL, -9,"
        """ '{"lexical": 0.1}', 'dev', 10, 100, 10, 0.1, 0.1"""
    )

    async def alone(client: Client) -> None:
        assert "2 rerankers: name one of documents, words" in await refused(
            client, "search", query="the pool"
        )
        asked = {"query": "the pool", "reranker": "words", "min_relevance": 0.5}
        nothing = await ok(client, "search", **asked)
        assert nothing["documents"] == []
        assert "none of 1 documents has a relevance of 0.5" in nothing["notes"][0]
        lost = await ok(client, "search", query="the pool", reranker="documents")
        assert lost["documents"][0]["stage"] == "lexical"
        assert "degraded" in lost["notes"][0]
        assert (await ok(client, "status"))["workers_alive"] == 0

    served(reader, alone)


def test_what_keeps_it_from_starting_is_said(empty_dsn, dsn):
    def said(dsn: str) -> str:
        result = CliRunner().invoke(app, ["mcp", "--dsn", dsn])
        assert result.exit_code == 1
        return " ".join(result.stderr.split())

    assert "has no pgrerank: run pgrerank install" in said(empty_dsn)
    assert "connection failed" in said(make_conninfo(dsn, password="wrong"))
