"""Side tables partitioned like their source: pruned by filters, dropped with its partitions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgrerank.install import schema
from pgrerank.tokens import DType, pack_parts
from tests.helpers.sources import Source
from tests.helpers.versions import dump, restore
from tests.helpers.workers import settle

DOCS = "CREATE TABLE docs (tenant int, id int, body text, PRIMARY KEY (tenant, id)) PARTITION BY "
KINDS = ("", "_passages", "_words", "_tokens")


@pytest.fixture
def parts(db):
    """Reranker `parts` over 90 encoded documents in three partitions."""
    db.execute(DOCS + "LIST (tenant)")
    for tenant in (1, 2, 3):
        db.execute(f"CREATE TABLE docs_{tenant} PARTITION OF docs FOR VALUES IN ({tenant})")
    db.execute(
        "INSERT INTO docs SELECT 1 + i % 3, i, 'a cat number ' || i FROM generate_series(1, 90) i"
    )
    Source.of(db).models()
    create(db)
    return db


def create(db, name: str = "parts", **settings: Any) -> None:
    """Create a reranker over `docs`, and encode all of it."""
    names = "".join(f", {key} => %({key})s" for key in settings)
    db.execute(
        "SELECT pgrerank.create_reranker(%(name)s, 'docs', '{body}',"
        f" embedding_model => 'embedding', late_interaction_model => 'tokens'{names})",
        {"name": name, **settings},
    )
    Source.of(db).encode_by_hand(name)


def found(db, chosen: Any = None, name: str = "parts", **options: Any) -> list[tuple[Any, ...]]:
    """Tenants and ids that a search by vectors and words finds, best first."""
    names = "".join(f", {key} => %({key})s" for key in options)
    return db.execute(
        f"SELECT tenant, id FROM pgrerank.{name}_search('cat number 7', 100,"
        " query_embedding => %(query)s::vector, stages => '{dense,lexical}', timeout => '1 min',"
        f" filter => %(filter)s{names})",
        {
            "query": str([1.0] + [0.1] * 31),
            "filter": None if chosen is None else json.dumps(chosen),
            **options,
        },
    ).fetchall()


def stored(db, name: str = "parts_1") -> dict[str, int]:
    """How many documents are stored of each partition of the source."""
    return dict(
        db.execute(
            "SELECT p.leaf::text, count(s.key) FROM pgrerank.partitions p"
            f" LEFT JOIN pgrerank.{name} s ON s.partition = p.number GROUP BY 1"
        )
    )


def side_tables(db) -> int:
    """How many partitions side tables have."""
    [count] = db.execute(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'pgrerank'::regnamespace"
        " AND relispartition AND relkind = 'r'"
    ).fetchone()
    return count


FILTERS = {
    "none": None,
    "one": {"tenant": 2},
    "two": {"tenant": [1, 3]},
    "range": {"tenant": {">": 1}, "id": {"<": 60}},
    "another column": {"id": {"<": 10}},
    "no partition": {"tenant": 9},
    "or": {"or": [{"tenant": 1}, {"id": 5}]},
}


@pytest.mark.parametrize("recall", ["auto", "hnsw", "exact"])
def test_searches_find_what_they_find_without_partitions(parts, recall: str) -> None:
    create(parts, "whole", partitioned=False)
    for name, chosen in FILTERS.items():
        expected = set(found(parts, chosen, "whole", recall=recall))
        assert set(found(parts, chosen, recall=recall)) == expected, name
        assert bool(expected) == (name != "no partition")


def test_a_filter_reads_its_partitions_alone(parts, dsn: str) -> None:
    with psycopg.connect(dsn) as other:
        for kind in ("_passages", "_words", "_tokens"):
            other.execute(f"LOCK TABLE pgrerank.parts_1_p1{kind} IN ACCESS EXCLUSIVE MODE")
        parts.execute("SET lock_timeout = '100ms'")
        assert {tenant for tenant, _ in found(parts, {"tenant": 3})} == {3}
        assert {tenant for tenant, _ in found(parts, {"tenant": 3}, recall="exact")} == {3}
        with pytest.raises(psycopg.errors.LockNotAvailable):
            found(parts)


BOUNDS = {
    "HASH (tenant, id)": [
        "PARTITION OF docs FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "PARTITION OF docs FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    ],
    "RANGE (tenant, id)": [
        "PARTITION OF docs FOR VALUES FROM (MINVALUE, MINVALUE) TO (2, 30)",
        "PARTITION OF docs FOR VALUES FROM (2, 30) TO (MAXVALUE, MAXVALUE)",
    ],
    "LIST (tenant)": [
        "PARTITION OF docs DEFAULT",
        "PARTITION OF docs FOR VALUES IN (1, 2) PARTITION BY RANGE (id)",
        "PARTITION OF docs_1 FOR VALUES FROM (0) TO (20)",
        "PARTITION OF docs_1 FOR VALUES FROM (20) TO (1000)",
    ],
}


@pytest.mark.parametrize("by", BOUNDS)
def test_any_bounds_are_followed(db, by: str) -> None:
    db.execute(DOCS + by)
    for number, bounds in enumerate(BOUNDS[by]):
        db.execute(f"CREATE TABLE docs_{number} {bounds}")
    db.execute("INSERT INTO docs SELECT i % 4, i, 'a cat ' || i FROM generate_series(1, 60) i")
    Source.of(db).models()
    create(db)
    assert stored(db) == dict(
        db.execute("SELECT tableoid::regclass::text, count(*) FROM docs GROUP BY 1")
    )
    assert len(found(db, {"tenant": 2, "id": {">": 30}})) == 7


def test_all_kinds_of_side_tables_are_partitioned(parts) -> None:
    parts.execute("UPDATE docs SET body = 'of two passages' WHERE id = 30")
    [claim] = parts.execute("SELECT keys, tickets, content_hashes FROM pgrerank.claim()").fetchall()
    packed = pack_parts(np.eye(32, dtype=np.float32)[:2], DType.INT8)
    parts.execute(
        "SELECT pgrerank.store('parts', 1, %s, %s::bigint[], %s, NULL, %s, '{1}', '{h}', '{c}',"
        " '{1}', %s::real[], token_keys => %s, token_passages => '{1}', token_parts => '{1}',"
        " tokens => %s)",
        (*claim, claim[0], [1.0] * 32, claim[0], packed),
    )
    for kind in KINDS:
        assert parts.execute(
            f"SELECT DISTINCT partition, tableoid::regclass::text FROM pgrerank.parts_1{kind}"
            " WHERE key = (1, 30)::pgrerank.parts_key"
        ).fetchall() == [(1, f"pgrerank.parts_1_p1{kind}")]
    [options] = parts.execute(
        "SELECT reloptions FROM pg_class WHERE relname = 'parts_1_p1_tokens'"
    ).fetchone()
    assert options == ["toast_tuple_target=8160"]


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE docs DETACH PARTITION docs_2", "DROP TABLE docs_2"]
)
def test_what_is_stored_goes_with_its_partition(parts, statement: str) -> None:
    parts.execute(statement)
    assert {tenant for tenant, _ in found(parts)} == {1, 3}
    settle(parts)
    assert stored(parts) == {"docs_1": 30, "docs_3": 30}
    assert side_tables(parts) == 2 * len(KINDS)
    assert len(found(parts)) == 60


def test_a_partition_that_comes_is_stored_apart(parts) -> None:
    parts.execute("CREATE TABLE more (body text, id int, tenant int, PRIMARY KEY (tenant, id))")
    parts.execute("INSERT INTO more VALUES ('a cat', 1000, 4), ('a cat', 1001, 5)")
    parts.execute("ALTER TABLE docs ATTACH PARTITION more FOR VALUES IN (4, 5)")
    parts.execute("SELECT pgrerank.claim()")
    Source.of(parts).encode_by_hand("parts")
    assert stored(parts) == {"docs_1": 30, "docs_2": 30, "docs_3": 30, "more": 2}
    assert found(parts, {"tenant": 5}) == [(5, 1001)]
    parts.execute("CREATE TABLE late PARTITION OF docs DEFAULT")
    parts.execute("INSERT INTO docs VALUES (7, 7, 'a cat, claimed at once')")
    Source.of(parts).encode_by_hand("parts")
    assert found(parts, {"tenant": 7}) == [(7, 7)]


def test_documents_move_with_their_partition_key_and_their_bounds(parts) -> None:
    parts.execute("UPDATE docs SET tenant = 3 WHERE tenant = 1 AND id < 10")
    Source.of(parts).encode_by_hand("parts")
    assert stored(parts) == {"docs_1": 27, "docs_2": 30, "docs_3": 33}
    parts.execute("ALTER TABLE docs DETACH PARTITION docs_2")
    parts.execute("CREATE TABLE new_2 PARTITION OF docs FOR VALUES IN (2)")
    parts.execute("INSERT INTO docs SELECT * FROM docs_2")
    Source.of(parts).encode_by_hand("parts")
    assert stored(parts) == {"docs_1": 27, "docs_3": 33, "new_2": 30}
    assert len(found(parts, {"tenant": 2})) == 30


def test_a_search_that_holds_a_partition_is_not_waited_for(parts, dsn: str) -> None:
    parts.execute("ALTER TABLE docs DETACH PARTITION docs_2")
    parts.execute("CREATE TABLE new_2 PARTITION OF docs FOR VALUES IN (2)")
    parts.execute("INSERT INTO docs SELECT * FROM docs_2")
    with psycopg.connect(dsn) as other:
        assert len(found(other, {"tenant": 1})) == 30
        Source.of(parts).encode_by_hand("parts")
        assert stored(parts) == {"docs_1": 30, "docs_2": 0, "docs_3": 30, "new_2": 30}
        assert len(found(parts)) == len(found(other)) == 90
        assert side_tables(parts) == 4 * len(KINDS)
    parts.execute("UPDATE pgrerank.partitions SET tried_at = tried_at - interval '1 minute'")
    settle(parts)
    assert side_tables(parts) == 3 * len(KINDS)
    assert len(found(parts, {"tenant": 2})) == 30


def test_rows_that_are_hidden_are_hidden_in_every_partition(parts, dsn: str, make_role) -> None:
    role = make_role()
    parts.execute(f"GRANT SELECT ON docs TO {role}")
    parts.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    parts.execute("CREATE POLICY few ON docs USING (id <= 30)")
    with psycopg.connect(make_conninfo(dsn, user=role, password=role)) as reader:
        assert len(found(reader, {"tenant": 2})) == 10
        assert len(found(reader)) == 30
        for kind in KINDS[:3]:
            query = f"SELECT count(*) FROM pgrerank.parts_1_p2{kind}"
            assert reader.execute(query).fetchone() == (10,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("DELETE FROM pgrerank.parts_1_p2")
    parts.execute(f"REVOKE ALL ON docs FROM {role}")


def test_a_worker_that_owns_nothing_follows_partitions(parts, dsn: str, make_role) -> None:
    role = make_role("BYPASSRLS")
    parts.execute(f"SELECT pgrerank.grant_worker('{role}')")
    parts.execute("DROP TABLE docs_1")
    parts.execute("CREATE TABLE docs_4 PARTITION OF docs FOR VALUES IN (4)")
    parts.execute(f"GRANT SELECT, UPDATE (id) ON docs TO {role}")
    parts.execute("INSERT INTO docs VALUES (4, 4, 'a cat')")
    with psycopg.connect(
        make_conninfo(dsn, user=role, password=role), autocommit=True
    ) as connection:
        Source.of(connection).encode_by_hand("parts")
    assert stored(parts) == {"docs_2": 30, "docs_3": 30, "docs_4": 1}
    parts.execute(f"DROP OWNED BY {role}")


def test_it_is_a_setting(parts, source) -> None:
    parts.execute("SELECT pgrerank.alter_reranker('parts', partitioned => false)")
    Source.of(parts).encode_by_hand("parts")
    assert parts.execute(
        "SELECT number, partitioned FROM pgrerank.generations ORDER BY number"
    ).fetchall() == [(1, True), (2, False)]
    assert len(found(parts)) == 90
    parts.execute("DROP TABLE docs_3")
    settle(parts)
    assert len(found(parts)) == len(found(parts, generation=1)) == 60
    parts.execute("SELECT pgrerank.alter_reranker('parts', partitioned => true)")
    Source.of(parts).encode_by_hand("parts")
    assert stored(parts, "parts_3") == {"docs_1": 30, "docs_2": 30}
    parts.execute("SELECT pgrerank.drop_reranker('parts')")
    assert side_tables(parts) == 0
    assert parts.execute("SELECT count(*) FROM pgrerank.partitions").fetchone() == (0,)
    create(parts, "parts", tenant_column="tenant")
    assert parts.execute("SELECT partitioned FROM pgrerank.generations").fetchone() == (False,)


def test_what_cannot_be_partitioned_is_said(parts, source) -> None:
    with pytest.raises(
        psycopg.errors.FeatureNotSupported, match="has tenant_column tenant, and is"
    ):
        create(parts, "both", tenant_column="tenant", partitioned=True)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="table documents is not part"):
        source.create(partitioned=True)


def test_a_dump_is_restored_with_its_partitions(parts, dsn: str, make_database, make_role) -> None:
    copy, role = make_database(), make_role()
    restore(dump(dsn, "--no-acl"), copy)
    with psycopg.connect(copy, autocommit=True) as restored:
        schema.install(restored)
        restored.execute(f"GRANT SELECT ON docs TO {role}")
        with psycopg.connect(make_conninfo(copy, user=role, password=role)) as reader:
            assert found(reader, {"tenant": 2}) == found(parts, {"tenant": 2})
        restored.execute(f"REVOKE ALL ON docs FROM {role}")
        assert found(restored, {"tenant": 2}) == found(parts, {"tenant": 2})
        restored.execute("DROP TABLE docs_1")
        restored.execute("CREATE TABLE docs_4 PARTITION OF docs FOR VALUES IN (4)")
        restored.execute("INSERT INTO docs VALUES (4, 4, 'a cat')")
        Source.of(restored).encode_by_hand("parts")
        assert stored(restored) == {"docs_2": 30, "docs_3": 30, "docs_4": 1}
