"""Documents chosen for what they add: maximal marginal relevance, and no near-duplicates."""

from __future__ import annotations

import json
import time

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrerank import tokens
from tests.helpers.searching import Searching
from tests.helpers.sources import Source

NUMBER = 130
PROPERTY = settings(max_examples=25)


@pytest.fixture(scope="module", params=["side table", "own column"])
def varied(request, make_database, pgrerank_template):
    """Searches over documents of which some are the same but for a little, and two have nothing."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        random = np.random.default_rng(7)
        vectors = random.normal(size=(40, 32)) + 0.6
        rows = [vectors[i % 40] + 0.05 * random.normal(size=32) * (i >= 40) for i in range(NUMBER)]
        with psycopg.connect(dsn, autocommit=True) as plain:
            source = Source(plain)
            plain.execute("DELETE FROM documents")
            plain.execute("ALTER TABLE documents ADD vec vector(32)")
            with plain.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO documents (title, tenant, lang, vec) VALUES (%s, %s, %s, %s)",
                    [
                        (f"cat {i}", i % 9, None if i % 5 else "en", str(rows[i].round(3).tolist()))
                        for i in range(NUMBER)
                    ],
                )
            plain.execute(
                "INSERT INTO documents (title, vec)"
                " VALUES ('cat', NULL), ('cat', array_fill(0, '{32}')::vector)"
            )
            own = {"embedding_column": "vec"} if request.param == "own column" else {}
            source.create(timeout="20 s", candidates=NUMBER, **own)
            source.encode_by_hand()
            if not own:
                plain.execute(
                    "UPDATE pgrerank.documents_1_passages s SET embedding = d.vec::halfvec"
                    " FROM documents d WHERE d.id = s.key"
                )

        call = Searching(
            connection,
            {
                "query": "cat",
                "stages": ["dense", "lexical"],
                "query_embedding": str([1.0] * 20 + [0.2] * 12),
                "recall": "exact",
                "strict": True,
            },
        )
        table = (
            "documents_1_passages s ON s.key"
            if request.param == "side table"
            else "documents s ON s.id"
        )
        schema = "pgrerank." if request.param == "side table" else ""
        column = "embedding::vector" if request.param == "side table" else "vec"
        call.vectors = {
            row["id"]: None if row["vec"] is None else np.array(json.loads(row["vec"]))
            for row in connection.execute(
                f"SELECT d.id, (s.{column})::text AS vec FROM documents d"
                f" LEFT JOIN {schema}{table} = d.id"
            )
        }
        yield call


def cosine(a, b) -> float:
    if a is None or b is None or not a.any() or not b.any():
        return 0.0
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def share_said(a, b) -> float:
    """How much of one document's token vectors another's have."""
    return float((a @ b.T).max(axis=1).sum() / (a @ a.T).max(axis=1).sum())


def chosen(rows, vectors, diversity, threshold, top_k, likeness_of=cosine) -> tuple[list[int], int]:
    """What the definition says: the documents chosen, and how many were left out."""
    scores = [np.inf if row["score"] is None else row["score"] for row in rows]
    lowest = np.minimum.accumulate(scores)
    scale = lowest[0] - lowest[min(99, len(lowest) - 1)]
    relevance = 1 - (lowest[0] - lowest) / scale
    ids = [row["id"] for row in rows]
    picked: list[int] = []
    likeness = np.zeros(len(ids))
    while len(picked) < top_k:
        size = max(100, 3 * (len(picked) + 1))
        left = [p for p in range(min(size, len(ids))) if ids[p] not in picked]
        left = [p for p in left if likeness[p] <= threshold]
        if not left:
            break
        values = [round((1 - diversity) * relevance[p] - diversity * likeness[p], 9) for p in left]
        best = left[int(np.argmax(values))]
        picked.append(ids[best])
        for place, key in enumerate(ids):
            likeness[place] = max(likeness[place], likeness_of(vectors[key], vectors[ids[best]]))
    size = max(100, 3 * len(picked))
    out = [p for p in range(min(size, len(ids))) if likeness[p] > threshold]
    return picked, len([p for p in out if ids[p] not in picked])


diversities = st.sampled_from([0.0, 0.2, 0.5, 0.9])


@PROPERTY
@given(
    diversity=diversities,
    threshold=st.sampled_from([1.0, 0.98, 0.6]),
    top_k=st.integers(1, 25),
    stages=st.sampled_from([["dense"], ["dense", "lexical"]]),
)
def test_documents_are_chosen_as_the_definition_says(varied, diversity, threshold, top_k, stages):
    everything = varied(top_k=NUMBER + 2, stages=stages)
    picked, left_out = chosen(
        everything, varied.vectors, diversity, threshold if threshold < 1 else 2, top_k
    )
    arguments = {
        "top_k": top_k,
        "stages": stages,
        "diversity": diversity,
        "duplicate_threshold": threshold,
    }
    rows = varied(**arguments)
    assert [row["id"] for row in rows] == picked
    assert [row["rank"] for row in rows] == [*range(1, len(picked) + 1)]
    named = {"reranker": "documents", **arguments}
    [explained] = varied("explain_search", alignments=False, **(named | {"top_k": 1}))
    [traced] = varied("trace", **named)
    if (diversity, threshold) == (0.0, 1.0):
        assert "duplicates" not in explained["scored"]
        assert rows == everything[:top_k]
    else:
        assert traced["trace"]["scored"]["duplicates"] == left_out
        assert explained["times"]["diversity"] > 0


@PROPERTY
@given(
    diversity=diversities,
    threshold=st.sampled_from([1.0, 0.95, 0.7]),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    groups=st.sampled_from([{}, {"group_by": "tenant"}, {"group_by": "lang", "per_group": 3}]),
    candidates=st.sampled_from([5, 120, NUMBER]),
)
def test_growing_top_k_extends_and_never_reorders(
    varied, diversity, threshold, sizes, groups, candidates
):
    if not groups:
        candidates = NUMBER
    arguments = {"diversity": diversity, "duplicate_threshold": threshold, **groups}
    most = candidates // 3 if candidates > 5 else 1
    less, more = (
        varied(top_k=min(size, most), candidates=candidates, **arguments) for size in sorted(sizes)
    )
    assert more[: len(less)] == less


@PROPERTY
@given(
    signals=st.sampled_from([{}, {"tenant": {"weight": 0.4}}]),
    groups=st.sampled_from([{}, {"group_by": "tenant", "per_group": 2}, {"group_by": "lang"}]),
    diversity=st.sampled_from([{}, {"diversity": 0.4, "duplicate_threshold": 0.95}]),
    filter_=st.sampled_from([None, {"id": {"<": 100}}, {"lang": "en"}]),
    keys=st.sampled_from([None, [*range(4, 60, 3)], []]),
    lost=st.booleans(),
)
def test_what_comes_last_composes(varied, signals, groups, diversity, filter_, keys, lost):
    """Also where the query's embedding is lost, for there is no worker: then words alone search."""
    given_ = {"signals": signals, "filter": filter_, "keys": keys, **groups, **diversity}
    if lost:
        given_ |= {"query_embedding": None, "strict": False, "stages": None}
    rows = varied(top_k=12, candidates=20, **given_)
    assert {row["degraded"] for row in rows} <= {(lost and keys is None) or lost}
    assert all((row["signals_score"] is not None) == bool(signals) for row in rows)
    assert [row["rank"] for row in rows] == [*range(1, len(rows) + 1)]
    where = varied.connection.execute(
        "SELECT id, tenant, lang FROM documents"
        " WHERE (%(keys)s::int[] IS NULL OR id = ANY (%(keys)s))"
        + {None: "", "id": " AND id < 100", "lang": " AND lang = 'en'"}[
            filter_ and next(iter(filter_))
        ],
        {"keys": keys},
    ).fetchall()
    matching = {row["id"]: row for row in where}
    assert {row["id"] for row in rows} <= set(matching)
    near = [
        cosine(varied.vectors[a["id"]], varied.vectors[b["id"]])
        for a in rows
        for b in rows
        if a["id"] < b["id"]
    ]
    if diversity and groups.get("per_group") is None:
        assert max(near, default=0) <= 0.95 + 1e-3
    if groups:
        column = groups["group_by"]
        group = {
            key: row[column] if row[column] is not None else -key for key, row in matching.items()
        }
        found = [group[row["id"]] for row in rows]
        assert found == sorted(found, key=found.index)
        assert max(map(found.count, found), default=0) <= groups.get("per_group", 1)
        if not diversity:
            assert len(set(found)) == min(12, len(set(group.values())))
    elif not diversity:
        assert len(rows) == min(12, len(matching))


def test_groups_of_one_leave_out_as_many_near_duplicates_as_no_groups(varied):
    asked = {"reranker": "documents", "top_k": 12, "duplicate_threshold": 0.9}
    alone, grouped = (
        varied("trace", **asked, **groups)[0]["trace"]["scored"]["duplicates"]
        for groups in ({}, {"group_by": "id"})
    )
    assert alone == grouped > 0


def test_without_embeddings_token_vectors_tell_likeness_where_the_kernel_is(db, source):
    if not db.execute("SELECT pgrerank.has_native_kernel()").fetchone()[0]:
        pytest.skip("the server has no native kernel")
    random = np.random.default_rng(3)
    db.execute("DELETE FROM documents")
    db.execute(
        "INSERT INTO documents (title) SELECT repeat('cat ', i % 9 + 1) || repeat('x ', i)"
        " FROM generate_series(1, 30) i"
    )
    source.create(embedding_model=None, timeout="20 s")
    source.encode_by_hand()
    ids = [key for (key,) in db.execute("SELECT id FROM documents ORDER BY id").fetchall()]
    vectors = {}
    for place, key in enumerate(ids):
        matrix = random.normal(size=(12, 32)) + 0.4
        if place >= 15:  # says again what another does, and the last ones a part of it
            matrix = vectors[ids[place - 15]][: 12 if place < 25 else 5]
            matrix = matrix + 0.02 * random.normal(size=matrix.shape)
        vectors[key] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO pgrerank.documents_1_tokens (key, passage, part, tokens)"
            " VALUES (%s, 1, %s, %s)",
            [
                (key, part, tokens.pack(rows.astype(np.float32), tokens.DType.FLOAT16))
                for key, matrix in vectors.items()
                for part, rows in enumerate((matrix[:4], matrix[4:]), 1)
                if len(rows)
            ],
        )
        # What follows the first 256 of a long document is not compared.
        long = np.tile(vectors[ids[0]], (22, 1)), random.normal(size=(300, 32))
        for part, rows in enumerate(long, 1):
            cursor.execute(
                "UPDATE pgrerank.documents_1_tokens SET tokens = %s WHERE key = %s AND part = %s",
                (tokens.pack(rows.astype(np.float32), tokens.DType.FLOAT16), ids[0], part),
            )
    search = (
        "SELECT id, score FROM pgrerank.documents_search('cat', stages => '{lexical}',"
        " top_k => %s, diversity => %s, duplicate_threshold => %s, strict => true)"
    )
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        everything = cursor.execute(search, (30, 0.0, 1.0)).fetchall()
        for diversity, threshold in ((0.4, 1.0), (0.0, 0.95), (0.7, 0.9)):
            picked, left_out = chosen(
                *(everything, vectors, diversity, threshold if threshold < 1 else 2, 10, share_said)
            )
            rows = cursor.execute(search, (10, diversity, threshold)).fetchall()
            assert [row["id"] for row in rows] == picked
            assert (left_out > 0) == (threshold < 1)


def test_a_call_needs_embeddings_and_numbers_in_range(db, source):
    source.create(embedding_model=None, late_interaction_model=None)
    source.encode_by_hand()
    for arguments, message in (
        ("diversity => 0.5", "has no embeddings, by which diversity"),
        ("duplicate_threshold => 0.9", "has no embeddings, by which diversity"),
        ("diversity => 2", "diversity is '2', expected 0 to 1"),
        ("duplicate_threshold => 0", "duplicate_threshold is '0', expected more than 0, up to 1"),
    ):
        for statement in (
            f"SELECT FROM pgrerank.documents_search('cat', stages => '{{lexical}}', {arguments})",
            f"SELECT pgrerank.alter_reranker('documents', {arguments})",
        ):
            with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
                db.execute(statement)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="top_k is NULL"):
        db.execute("SELECT FROM pgrerank.documents_search('cat', NULL)")


def test_the_deadline_holds_and_what_is_not_chosen_stands_as_it_stood(db):
    db.execute(
        "CREATE TABLE many (id int PRIMARY KEY, body text, e vector(16));"
        "INSERT INTO many SELECT i, 'x', ARRAY(SELECT sin(i * j) FROM generate_series(1, 16) j)"
        " FROM generate_series(1, 3000) i;"
        "SELECT pgrerank.create_reranker('many', 'many', '{body}', embedding_column => 'e')"
    )
    search = (
        "SELECT id, degraded, reason FROM pgrerank.many_search(NULL, query_embedding =>"
        " (SELECT e FROM many WHERE id = 7), stages => '{dense}', top_k => 2000,"
        " diversity => 0.3, timeout => '400 ms'"
    )
    begun = time.monotonic()
    rows = db.execute(search + ")").fetchall()
    assert time.monotonic() - begun < 2
    assert len({key for key, _, _ in rows}) == 2000
    assert rows[0][:2] == (7, True)
    assert "deadline passed before all was chosen for diversity" in rows[0][2]
    with pytest.raises(psycopg.Error, match="chosen for diversity"):
        db.execute(search + ", strict => true)")
