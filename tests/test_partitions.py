"""Side tables are partitioned like their source: pruned by filters, and dropped with its partitions."""

from __future__ import annotations

import pytest

from tests.helpers.sources import Source


@pytest.fixture
def parts(db):
    """Reranker `parts` over 60 encoded documents in three partitions."""
    db.execute(
        "CREATE TABLE docs (tenant int, id int, body text, PRIMARY KEY (tenant, id))"
        " PARTITION BY LIST (tenant)"
    )
    for tenant in (1, 2, 3):
        db.execute(f"CREATE TABLE docs_{tenant} PARTITION OF docs FOR VALUES IN ({tenant})")
    db.execute("INSERT INTO docs SELECT 1 + i % 3, i, 'text ' || i FROM generate_series(1, 60) i")
    source = Source.of(db)
    source.models()
    db.execute(
        "SELECT pgrerank.create_reranker('parts', 'docs', '{body}', embedding_model => 'embedding',"
        " late_interaction_model => 'tokens')"
    )
    source.encode_by_hand("parts")
    return db


def test_x(parts):
    print(parts.execute("select * from pgrerank.status").fetchall())
    print(parts.execute("select * from pgrerank.partitions").fetchall())
    q = "SELECT tenant, id, stage FROM pgrerank.parts_search('text', query_embedding => %s::vector, stages=>'{dense,lexical}', filter => %s, recall=>'hnsw')"
    v = str([1.0] + [0.1] * 31)
    print(parts.execute(q, (v, '{"tenant": 2}')).fetchall())
    print(parts.execute(q, (v, '{"tenant": [2, 3]}')).fetchall())
    print(parts.execute(q, (v, '{}')).fetchall())
    print(parts.execute(q, (v, '{"tenant": 9}')).fetchall())
    assert 0
