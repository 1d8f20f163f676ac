"""Signals, groups and diversity with all stages and a live worker, and through every client."""

from __future__ import annotations

import json

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.langchain import PgrerankRetriever
from pgrerank.sqlalchemy import Reranker, search
from tests.helpers.sources import Source
from tests.helpers.urls import url
from tests.helpers.workers import wait_for, worker

TOP = 6
LAST = {
    "signals": {"tenant": {"weight": 0.3}},
    "group_by": "tenant",
    "per_group": 2,
    "diversity": 0.4,
    "duplicate_threshold": 0.9999,
}
EXPLAIN = """
    SELECT d.id, d.tenant, e.score, e.signals_score, e.cross_encoder_score, e.degraded, e.reason,
        e.scored, e.times
    FROM pgrerank.explain_search('documents', 'the pool', alignments => false, {}) e
    JOIN documents d ON d.id::text = e.key ORDER BY e.rank"""


@pytest.fixture(scope="module")
def asked_dsn(make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """Thirty documents, twenty of one tenant and one each of ten others; the last are the same."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        source = Source(connection)
        connection.execute("DELETE FROM documents")
        connection.execute(
            "INSERT INTO documents (title, body, tenant)"
            " SELECT 'cat ' || least(i, 26), repeat('pool ', least(i, 26) % 5),"
            " greatest(i - 20, 1) FROM generate_series(1, 30) i"
        )
        source.models(**tiny_models)
        source.create(timeout="20 s", maxsim_top=TOP)
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0")
            yield dsn


@pytest.fixture
def asked(asked_dsn):
    """Explains searches there; rows as dicts."""
    with psycopg.connect(
        make_conninfo(asked_dsn), autocommit=True, row_factory=psycopg.rows.dict_row
    ) as connection:

        def call(**arguments):
            given = {
                name: Jsonb(value) if isinstance(value, dict) else value
                for name, value in arguments.items()
            }
            named = ", ".join(f"{name} => %({name})s" for name in given)
            return connection.execute(EXPLAIN.format(named), given).fetchall()

        yield call


@pytest.mark.parametrize("blend", [None, {}])
@pytest.mark.parametrize("early_exit", [0, 0.5])
def test_signals_choose_what_the_cross_encoder_reads_and_count_after_it(asked, blend, early_exit):
    given = {"top_k": 30, "blend": blend, "early_exit": early_exit}
    rows = asked(signals={"id": {"weight": 50}}, **given)
    last = sorted((row["id"] for row in rows), reverse=True)[:TOP]
    read = {row["id"] for row in rows if row["cross_encoder_score"] is not None}
    assert read == set(last)
    assert [row["id"] for row in rows[:TOP]] == last
    assert not any(row["degraded"] for row in rows)
    assert rows[0]["scored"]["signals"] == 30
    assert rows[0]["times"]["signals"] > 0
    if blend == {}:
        rows = asked(signals={"id": {"weight": 1e-6}}, **given)
        read = [row for row in rows if row["cross_encoder_score"] is not None]
        scores = [row["cross_encoder_score"] for row in read]
        assert scores == sorted(scores, reverse=True)
        assert sum(row["score"] for row in read) == pytest.approx(0, abs=1e-4), "z-scores"


def test_the_cross_encoder_reads_the_best_of_each_group_and_no_more_than_its_share(asked):
    for top_k, candidates in ((1, 30), (4, 30), (8, 3), (11, 30)):
        rows = asked(top_k=top_k, candidates=candidates, group_by="tenant", early_exit=0)
        assert len({row["tenant"] for row in rows}) == len(rows) == min(top_k, 10)
        assert 0 < rows[0]["scored"]["cross_encoder"] <= TOP
        assert not rows[0]["degraded"]
        assert rows[0]["times"]["groups"] > 0
    pairs = asked(top_k=3, group_by="tenant", per_group=2, early_exit=0)
    assert len({row["tenant"] for row in pairs}) == 3


def test_a_deadline_between_waves_leaves_the_groups_found_so_far(asked):
    late = {"top_k": 10, "candidates": 10, "group_by": "tenant", "timeout": "1 ms"}
    rows = asked(stages=["lexical"], **late)
    assert {row["degraded"] for row in rows} == {True}
    assert 0 < len({row["tenant"] for row in rows}) == len(rows) < 10
    with pytest.raises(psycopg.Error) as error:
        asked(stages=["lexical"], strict=True, **late)
    assert error.value.sqlstate == "PGR02"


def test_all_of_it_at_once_with_every_stage(asked):
    rows = asked(top_k=10, **LAST)
    assert not any(row["degraded"] for row in rows)
    tenants = [row["tenant"] for row in rows]
    assert tenants == sorted(tenants, key=tenants.index)
    assert len(set(tenants)) < 10, "the same text is not told twice"
    assert rows[0]["scored"]["duplicates"] > 0
    assert {"signals", "groups", "diversity", "cross_encoder"} <= rows[0]["times"].keys()


def test_every_client_carries_the_arguments(asked, asked_dsn):
    wanted = [row["id"] for row in asked(top_k=4, **LAST)]
    options = [
        *("documents", "the pool", "--dsn", asked_dsn, "--top-k", "4"),
        *("--signals", '{"tenant": {"weight": 0.3}}', "--group-by", "tenant", "--per-group", "2"),
        *("--diversity", "0.4", "--duplicate-threshold", "0.9999"),
    ]
    found = CliRunner().invoke(app, ["search", *options, "--json"])
    assert found.exit_code == 0, found.output
    assert [row["id"] for row in json.loads(found.stdout)] == wanted
    retriever = PgrerankRetriever(
        reranker="documents",
        connect=lambda: psycopg.connect(asked_dsn),
        content=["title"],
        k=4,
        arguments=LAST,
    )
    assert [int(str(document.id)) for document in retriever.invoke("the pool")] == wanted
    table = sa.Table("documents", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True))
    table.append_column(sa.Column("title", sa.Text))
    hits = search(Reranker("documents", table, text=table.c.title), "the pool", top_k=4, **LAST)
    engine = sa.create_engine(url(asked_dsn, "psycopg"))
    with engine.connect() as connection:
        rows = connection.execute(sa.select(hits.key, hits.c.signals_score).order_by(hits.rank))
        assert [(key, type(score)) for key, score in rows] == [(key, float) for key in wanted]
    engine.dispose()
    explained = CliRunner().invoke(app, ["explain", *options, "--aligned", "0"])
    assert "signals" in explained.stdout
