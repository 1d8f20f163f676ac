"""Tenants: each is found whole, a large one by an HNSW index of its own, which workers make."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import uuid

import psycopg
import pytest
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.install import schema
from pgrerank.worker.indexes import change_indexes
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

LARGE, SMALL = 3200, 40
"""Documents of tenant 7, more than are compared one by one, and of tenant 8."""
WITHOUT_SORT = "SET enable_sort = off"
"""So few short vectors Postgres would rather sort than read by an index."""
TITLE = "made up"
TITLE_HASH = hashlib.sha256(TITLE.encode()).digest()
INDEXES = (
    "SELECT i.indexrelid::regclass::text, pg_get_expr(i.indpred, i.indrelid), i.indisvalid"
    " FROM pg_index i WHERE i.indrelid = 'pgrerank.documents_1_passages'::regclass"
    " AND i.indpred IS NOT NULL"
)


def add(db, tenant: object, count: int) -> None:
    """So many documents of a tenant, with made-up vectors, stored where a worker stores them."""
    generator = random.Random(str(tenant))
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")  # no triggers: nothing to encode
        keys = db.execute(
            "INSERT INTO documents (title, tenant) SELECT %s, %s FROM generate_series(1, %s)"
            " RETURNING id",
            (TITLE, tenant, count),
        ).fetchall()
        with db.cursor().copy(
            "COPY pgrerank.documents_1_passages (key, passage, embedding, hash, cut_hash, tenant)"
            " FROM STDIN"
        ) as copy:
            for [key] in keys:
                vector = [round(generator.gauss(0, 1), 3) for _ in range(32)]
                copy.write_row((key, 1, str(vector), b"-", b"-", tenant))
        db.execute(
            "INSERT INTO pgrerank.documents_1 (key, content_hash, tenant)"
            " SELECT p.key, %s, p.tenant FROM pgrerank.documents_1_passages p WHERE p.tenant = %s",
            (TITLE_HASH, tenant),
        )
    db.execute("ANALYZE documents, pgrerank.documents_1, pgrerank.documents_1_passages")
    db.execute(WITHOUT_SORT)


def found(db, filter_: dict, **arguments) -> list[int]:
    vector = [1.0] + [0.5] * 31
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return [
        key
        for (key,) in db.execute(
            "SELECT id FROM pgrerank.documents_search(NULL, query_embedding => %(vector)s::vector,"
            f" filter => %(filter)s, stages => '{{dense}}', strict => true{named}) ORDER BY rank",
            {"vector": str(vector), "filter": Jsonb(filter_)} | arguments,
        ).fetchall()
    ]


def scans(db) -> int:
    """How often indexes of tenants have been used."""
    db.execute("SELECT pg_stat_force_next_flush()")
    return db.execute(
        "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes"
        r" WHERE indexrelname ~ '_t_[0-9a-f]{10}$'"
    ).fetchone()[0]


@pytest.fixture(scope="module")
def with_tenants(make_database) -> str:
    """A database to be copied: a reranker with a large tenant and a small one."""
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as db:
        schema.install(db)
        source = Source(db)
        source.create(tenant_column="tenant")
        source.encode_by_hand()
        add(db, 7, LARGE)
        add(db, 8, SMALL)
    return dsn


@pytest.fixture
def pgrerank_template(request, pgrerank_template: str) -> str:
    if "tenants" in request.fixturenames:
        return request.getfixturevalue("with_tenants")
    return pgrerank_template


@pytest.fixture
def tenants(db) -> Source:
    db.execute(WITHOUT_SORT)
    return Source.of(db)


def test_a_large_tenant_has_an_index_while_it_is_large(dsn, db, tenants):
    exact = found(db, {"tenant": 7}, top_k=20, recall="exact")
    asyncio.run(change_indexes(dsn))
    [(name, predicate, is_valid)] = db.execute(INDEXES).fetchall()
    assert predicate == "(tenant = 7)"
    assert is_valid
    assert db.execute("SELECT * FROM pgrerank.tenant_index_changes()").fetchall() == []

    before = scans(db)
    by_index = found(db, {"tenant": 7}, top_k=20)
    assert scans(db) == before + 1
    assert len(set(by_index) & set(exact)) >= 16
    assert found(db, {"tenant": {"=": 7}}, top_k=20) == by_index
    assert scans(db) == before + 2

    db.execute(
        "DELETE FROM documents WHERE id IN (SELECT id FROM documents WHERE tenant = 7 LIMIT %s)",
        (LARGE // 3,),
    )
    assert db.execute("SELECT * FROM pgrerank.tenant_index_changes()").fetchall() == []
    db.execute(
        "DELETE FROM documents WHERE id IN (SELECT id FROM documents WHERE tenant = 7 LIMIT %s)",
        (LARGE // 3,),
    )
    changes = db.execute("SELECT tenant, statement FROM pgrerank.tenant_index_changes()").fetchall()
    assert changes == [(None, f"DROP INDEX CONCURRENTLY IF EXISTS {name}")]
    asyncio.run(change_indexes(dsn))
    assert db.execute(INDEXES).fetchall() == []
    assert len(found(db, {"tenant": 7}, top_k=20)) == 20


def test_a_tenant_is_found_whole(dsn, db, tenants):
    asyncio.run(change_indexes(dsn))
    everything = {"all": {"id": {">": 0}}, "small": {"tenant": 8}, "none": {"tenant": 9}}
    assert len(found(db, everything["all"], top_k=50)) == 50
    assert len(found(db, everything["small"], top_k=50)) == SMALL
    assert found(db, everything["none"], top_k=50) == []
    few = db.execute(
        "SELECT array_agg(id) FROM (SELECT id FROM documents WHERE tenant = 7 LIMIT 5) d"
    )
    [keys] = few.fetchone()
    assert sorted(found(db, {"tenant": 7, "id": keys}, top_k=50)) == sorted(keys)
    assert found(db, {"tenant": 8, "id": keys}, top_k=50) == []


def test_a_search_in_haste_looks_around_in_small_steps(dsn, db, tenants):
    asyncio.run(change_indexes(dsn))
    exact = found(db, {"tenant": 7}, top_k=20, recall="exact")
    search = {"top_k": 20, "candidates": 500, "recall": "hnsw", "timeout": "120 ms"}
    for _ in range(20):  # a machine may be too slow for one, but not for all
        with contextlib.suppress(psycopg.Error):
            hasty = found(db, {"tenant": 7}, **search)
            break
    assert len(set(hasty) & set(exact)) >= 16


def test_a_document_that_moves_to_another_tenant_is_not_encoded_again(db, tenants):
    hashes = "SELECT content_hash, encoded_at FROM pgrerank.documents_1 WHERE key = 2"
    before = db.execute(hashes).fetchone()
    assert 2 in found(db, {"tenant": 1})
    db.execute("UPDATE documents SET tenant = 8 WHERE id = 2")
    assert 2 not in found(db, {"tenant": 1})
    tenants.encode_by_hand()
    assert 2 in found(db, {"tenant": 8}, top_k=50)
    assert db.execute(hashes).fetchone() == before


def test_enqueue_notices_a_tenant_changed_without_triggers(db, tenants):
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute("UPDATE documents SET tenant = 8 WHERE id = 2")
        db.execute("DELETE FROM documents WHERE title = 'made up'")
    assert db.execute("SELECT pgrerank.enqueue('documents')").fetchone() == (1,)


def test_a_broken_index_is_made_again(dsn, db, tenants):
    asyncio.run(change_indexes(dsn))
    db.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indpred IS NOT NULL AND indrelid ="
        " 'pgrerank.documents_1_passages'::regclass"
    )
    exact = found(db, {"tenant": 7}, recall="exact")
    assert len(set(found(db, {"tenant": 7})) & set(exact)) >= 8
    asyncio.run(change_indexes(dsn))
    assert db.execute(INDEXES).fetchall() == []
    asyncio.run(change_indexes(dsn))
    assert [row[2] for row in db.execute(INDEXES).fetchall()] == [True]


def test_a_broken_reranker_keeps_no_other_from_its_indexes(dsn, db, tenants, caplog):
    db.execute("CREATE TABLE broken (id bigint PRIMARY KEY, body text, tenant int)")
    db.execute(
        "SELECT pgrerank.create_reranker('broken', 'broken', '{body}',"
        " embedding_model => 'embedding', tenant_column => 'tenant')"
    )
    db.execute("DROP TABLE pgrerank.broken_1_passages CASCADE")
    asyncio.run(change_indexes(dsn))
    assert len(db.execute(INDEXES).fetchall()) == 1
    assert "reranker broken: indexes of tenants" in caplog.text


def test_a_renamed_tenant_column_keeps_its_index(dsn, db, tenants):
    asyncio.run(change_indexes(dsn))
    db.execute("ALTER TABLE documents RENAME COLUMN tenant TO customer")
    assert db.execute("SELECT * FROM pgrerank.tenant_index_changes()").fetchall() == []
    assert len(found(db, {"customer": 8}, top_k=50)) == SMALL


def test_a_worker_and_backfill_make_indexes(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(tenant_column="tenant")
    source.encode_by_hand()
    add(db, 7, LARGE)
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(
            db, f"EXISTS (SELECT FROM ({INDEXES}) i (name, predicate, is_valid) WHERE is_valid)"
        )
    name = db.execute(INDEXES).fetchone()[0]
    db.execute(f"DROP INDEX {name}")
    result = CliRunner().invoke(app, ["backfill", "documents", "--dsn", dsn])
    assert result.exit_code == 0, result.output
    assert db.execute(INDEXES).fetchone()[0] == name


@pytest.mark.parametrize(
    ("of_type", "value", "other"),
    [
        ("varchar(20)", "it's \\ zwölf %s", "b"),
        ("uuid", str(uuid.UUID(int=7)), str(uuid.UUID(int=8))),
    ],
)
def test_tenants_are_of_the_types_that_keys_are(dsn, db, source, of_type, value, other):
    db.execute(
        "ALTER TABLE documents ALTER COLUMN tenant DROP DEFAULT, ALTER COLUMN tenant DROP NOT NULL"
    )
    db.execute(f"ALTER TABLE documents ALTER COLUMN tenant TYPE {of_type} USING NULL::{of_type}")
    source.create(tenant_column="tenant")
    source.encode_by_hand()
    add(db, value, LARGE)
    add(db, other, SMALL)
    asyncio.run(change_indexes(dsn))
    before = scans(db)
    assert len(found(db, {"tenant": value}, top_k=50)) == 50
    assert scans(db) == before + 1
    assert len(found(db, {"tenant": other}, top_k=50)) == SMALL


def test_row_level_security_stands_beside_the_filter(dsn, db, tenants, make_role):
    asyncio.run(change_indexes(dsn))
    role = make_role()
    db.execute(f"GRANT SELECT ON documents TO {role}")
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute(f"CREATE POLICY own ON documents FOR SELECT TO {role} USING (tenant = 8)")
    with psycopg.connect(dsn, user=role, password=role, autocommit=True) as asks:
        assert found(asks, {"tenant": 7}) == []
        assert len(found(asks, {"tenant": 8}, top_k=50)) == SMALL
        assert asks.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone() == (SMALL,)
        assert asks.execute("SELECT * FROM pgrerank.documents_1 WHERE tenant = 7").fetchall() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tenant_column": "nope"}, 'table documents has no column "nope"'),
        ({"tenant_column": "extra"}, "tenant_column documents.extra is of type jsonb"),
        ({"tenant_column": "tenant", "embedding_model": None}, "has tenant_column tenant"),
    ],
)
def test_a_tenant_column_that_can_not_be_is_refused(db, source, settings, message):
    with pytest.raises(psycopg.Error, match=message):
        source.create(**settings)


def test_a_tenant_column_named_later_makes_a_generation(db, source):
    source.create()
    source.encode_by_hand()
    db.execute("SELECT pgrerank.alter_reranker('documents', tenant_column => 'tenant')")
    source.encode_by_hand()
    assert db.execute("SELECT generation FROM pgrerank.rerankers").fetchone() == (2,)
    assert db.execute("SELECT DISTINCT tenant FROM pgrerank.documents_2").fetchall() == [(1,)]
    db.execute("SELECT pgrerank.alter_reranker('documents', tenant_column => '')")
    assert db.execute(
        "SELECT tenant_column FROM pgrerank.generations ORDER BY number DESC LIMIT 1"
    ).fetchone() == (None,)
