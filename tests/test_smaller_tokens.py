"""Fewer and shorter token vectors, and bits before them: settings, worker and search together."""

from __future__ import annotations

import threading

import numpy as np
import psycopg
import pytest

from pgrerank.models import ModelSpec, load_encoder
from pgrerank.tokens import pack, parse_header, unpack
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

QUERY = "the connection pool is exhausted"
FILL = """
INSERT INTO documents (title, body)
SELECT 'number ' || i, (ARRAY['one', 'two', 'three', 'four', 'bread'])[i %% 5 + 1]
    || ' cat sleeps with ' || i || ' connections in pool ' || i * 7
FROM generate_series(1, %s) i
"""


@pytest.fixture
def filled(db, tiny_models) -> Source:
    """Three hundred documents and small models."""
    source = Source(db)
    db.execute(FILL, (297,))
    source.models(**tiny_models)
    return source


@pytest.fixture(scope="module")
def tokens_of(tiny_models):
    """Token vectors of one text by the tiny late-interaction model, float32."""
    encoder = load_encoder(
        ModelSpec("tokens", "late_interaction", "sentence_transformer", tiny_models["tokens"])
    )

    def encode(text: str, role: str) -> np.ndarray:
        return encoder.encode([text], role=role, embeddings=False, tokens=True).tokens[0]

    return encode


def stored(db: psycopg.Connection, generation: int = 1, tier: str = "tokens") -> dict[int, bytes]:
    parts = f"pgrerank.documents_{generation}_{tier}"
    rows = db.execute(f"SELECT key, string_agg(tokens, '' ORDER BY part) FROM {parts} GROUP BY 1")
    return dict(rows.fetchall())


def projection(db: psycopg.Connection, generation: int = 1) -> np.ndarray:
    [packed] = db.execute(
        "SELECT matrix FROM pgrerank.projections WHERE generation = %s", (generation,)
    ).fetchone()
    return unpack(packed)


def of_length_one(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def text_of(db: psycopg.Connection, key: int) -> str:
    [expression] = db.execute("SELECT text_expression FROM pgrerank.generations").fetchone()
    return db.execute(f"SELECT {expression} FROM documents WHERE id = %s", (key,)).fetchone()[0]


def maxsim_scores(db: psycopg.Connection, **arguments) -> dict[int, float]:
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return dict(
        db.execute(
            "SELECT id, maxsim_score FROM pgrerank.documents_search(%(query)s, top_k => 300,"
            f" candidates => 300, stages => '{{dense,maxsim}}', strict => true{named})",
            {"query": QUERY, **arguments},
        ).fetchall()
    )


@pytest.fixture(params=["kernel", "worker"])
def engine(request, db):
    """What scores: the search must answer alike by either."""
    has_kernel = db.execute("SELECT pgrerank.has_native_kernel()").fetchone()[0]
    if request.param == "kernel" and not has_kernel:
        pytest.skip("the server has no native kernel")
    if request.param == "worker" and has_kernel:
        db.execute("DROP EXTENSION pgrerank_native CASCADE")
    return request.param


@pytest.mark.usefixtures("engine")
def test_projected_tokens_score_as_their_reference_does(dsn, db, filled, tokens_of, tmp_path):
    filled.create(timeout="20 s", token_dims=12)
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        scores = maxsim_scores(db)
    matrix = projection(db)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(12), atol=2e-3)
    query = of_length_one(tokens_of(QUERY, "query") @ matrix.T)
    assert len(scores) == 300
    for key in list(scores)[::50]:
        document = of_length_one(tokens_of(text_of(db, key), "document") @ matrix.T)
        wanted = float((query @ document.T).max(axis=1).sum())
        # int8 steps of 1/127 on twelve dimensions, and float16 of query and projection
        assert scores[key] == pytest.approx(wanted, abs=0.03 * len(query))
        header = parse_header(stored(db)[key])
        assert (header.dims, header.count) == (12, len(document))


def test_the_projection_keeps_products_better_than_leaving_dimensions_out(
    dsn, db, filled, tokens_of, tmp_path
):
    filled.create(token_dims=16)
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0")
    matrix = projection(db)
    vectors = np.concatenate([tokens_of(text_of(db, key), "document") for key in range(10, 40)])
    products = vectors @ vectors.T
    projected = vectors @ matrix.T
    halved = vectors[:, :16]
    assert np.abs(projected @ projected.T - products).mean() < (
        0.5 * np.abs(halved @ halved.T - products).mean()
    )


def test_pooled_documents_have_fewer_tokens_and_queries_all_of_theirs(
    dsn, db, filled, tokens_of, tmp_path
):
    filled.create(timeout="20 s", token_pool=3, token_dims=20, token_precision="float16")
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        scores = maxsim_scores(db)
    query = of_length_one(tokens_of(QUERY, "query") @ projection(db).T)
    for key in (7, 70, 270):
        blob = stored(db)[key]
        whole = tokens_of(text_of(db, key), "document")
        assert parse_header(blob).count == max(1, len(whole) // 3)
        wanted = float((query @ unpack(blob).T).max(axis=1).sum())
        assert scores[key] == pytest.approx(wanted, abs=0.002 * len(query))


@pytest.mark.usefixtures("engine")
def test_bits_order_the_pool_and_full_vectors_its_best(dsn, db, filled, tmp_path):
    filled.create(timeout="20 s", maxsim_bit_top=40, candidates=200, maxsim_top=10)
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        rows = db.execute(
            "SELECT stage, maxsim_bit_score, maxsim_bit_rank, maxsim_score, maxsim_rank"
            " FROM pgrerank.documents_search(%s, top_k => 200, strict => true)",
            (QUERY,),
        ).fetchall()
        fewer = db.execute(
            "SELECT count(maxsim_score), count(*) FILTER (WHERE stage = 'maxsim_bit')"
            " FROM pgrerank.documents_search(%s, top_k => 200, maxsim_bit_top => 5,"
            " stages => '{dense,maxsim_bit,maxsim}')",
            (QUERY,),
        ).fetchone()
    assert [row[0] for row in rows] == (
        ["cross_encoder"] * 10 + ["maxsim"] * 30 + ["maxsim_bit"] * 160
    )
    assert fewer == (5, 195)
    assert sorted(row[2] for row in rows) == list(range(1, 201))
    assert {row[2] for row in rows if row[4] is not None} == set(range(1, 41))
    ordered = sorted(rows, key=lambda row: row[2])
    assert [row[1] for row in ordered] == sorted((row[1] for row in rows), reverse=True)
    assert {parse_header(blob).dtype for blob in stored(db, tier="bits").values()} == {"bit"}
    assert {parse_header(blob).dtype for blob in stored(db).values()} == {"int8"}


def test_two_workers_go_by_one_projection(dsn, db, filled, tokens_of, tmp_path):
    filled.create(token_dims=16, token_precision="float16")
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        worker(dsn, tmp_path / "a", "--no-serve"),
        worker(dsn, tmp_path / "b", "--no-serve"),
    ):
        wait_for(db, "pending = 0 AND encoded = source_rows AND failed = 0")
    matrix = projection(db)
    for key, blob in stored(db).items():
        if key % 10 == 0:
            wanted = of_length_one(tokens_of(text_of(db, key), "document") @ matrix.T)
            np.testing.assert_allclose(unpack(blob), wanted, atol=4e-3)


def test_the_first_projection_stands(dsn, db, source):
    source.create(token_dims=8)
    given = [bytes([number]) * 40 for number in range(4)]
    kept: list[bytes] = []
    barrier = threading.Barrier(4)

    def keep(matrix: bytes) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            barrier.wait()
            row = connection.execute(
                "SELECT pgrerank.keep_projection('documents', 1, %s, 3)", (matrix,)
            ).fetchone()
            kept.append(row[0])

    threads = [threading.Thread(target=keep, args=(matrix,)) for matrix in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 4
    assert len(set(kept)) == 1
    row = db.execute("SELECT projection FROM pgrerank.generations").fetchone()
    assert row == db.execute("SELECT md5(%s::bytea)", (kept[0],)).fetchone()
    gone = db.execute("SELECT pgrerank.keep_projection('gone', 1, '\\x00', 3)").fetchone()
    assert gone == (None,)


def test_search_goes_on_while_dimensions_change(dsn, db, filled, tmp_path):
    filled.create(timeout="20 s", token_dims=8)
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        db.execute("SELECT pgrerank.alter_reranker('documents', token_dims => 24, token_pool => 2)")
        answers = 0
        while db.execute("SELECT generation FROM pgrerank.rerankers").fetchone() == (1,):
            assert len(maxsim_scores(db)) == 300
            answers += 1
        assert answers > 0
        assert len(maxsim_scores(db)) == 300
    assert {parse_header(blob).dims for blob in stored(db, 2).values()} == {24}
    assert projection(db, 2).shape == (24, 32)
    assert db.execute("SELECT count(*) FROM pgrerank.projections").fetchone() == (2,)


def test_a_reranker_made_anew_has_a_projection_of_its_own(dsn, db, filled, tokens_of, tmp_path):
    filled.create(timeout="20 s", token_dims=8)
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        maxsim_scores(db)
        first = projection(db)
        db.execute("SELECT pgrerank.drop_reranker('documents')")
        db.execute("DELETE FROM documents WHERE id > 3")
        filled.create(timeout="20 s", token_dims=8, token_precision="float16")
        wait_for(db, "pending = 0 AND encoded = source_rows")
        scores = maxsim_scores(db)
    second = projection(db)
    assert not np.allclose(first, second, atol=1e-3)
    query = of_length_one(tokens_of(QUERY, "query") @ second.T)
    for key, blob in stored(db).items():
        wanted = float((query @ unpack(blob).T).max(axis=1).sum())
        assert scores[key] == pytest.approx(wanted, abs=0.002 * len(query))


def test_a_projection_fitted_on_few_documents_is_fitted_again_when_there_are_more(
    dsn, db, tiny_models, tmp_path
):
    source = Source(db)
    source.models(**tiny_models)
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    source.create(token_dims=8)
    assert notices == [
        'reranker "documents" has fewer than 256 documents to fit the projection to 8 dimensions on'
    ]
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0 AND encoded = 3")
        db.execute("SELECT pgrerank.alter_reranker('documents', candidates => 90)")
        assert db.execute("SELECT max(number) FROM pgrerank.generations").fetchone() == (1,)
        db.execute(FILL, (300,))
        db.execute("SELECT pgrerank.alter_reranker('documents', token_dims => 8)")
        wait_for(db, "generation = 2")
        fitted = db.execute("SELECT generation, documents FROM pgrerank.projections")
        assert fitted.fetchall() == [(1, 3), (2, 256)]
        db.execute("SELECT pgrerank.alter_reranker('documents', token_dims => 8)")
        assert db.execute("SELECT max(number) FROM pgrerank.generations").fetchone() == (2,)


def test_a_blank_source_needs_no_projection(dsn, db, tiny_models, tmp_path):
    source = Source(db)
    db.execute("UPDATE documents SET title = NULL, body = '  '")
    source.models(**tiny_models)
    source.create(token_dims=8)
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0 AND encoded = 3 AND failed = 0")
        db.execute("UPDATE documents SET body = 'a cat sleeps' WHERE id = 1")
        wait_for(db, "pending = 0 AND failed = 0")
    assert list(stored(db)) == [1]


def test_the_projection_is_not_for_everybody(dsn, db, source, make_role):
    source.create(token_dims=8)
    reader = make_role()
    db.execute(f"GRANT SELECT ON documents TO {reader}")
    db.execute(f"SET ROLE {reader}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("SELECT * FROM pgrerank.projections")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (b"", "not packed token vectors"),
        (b"pgrt", "not packed token vectors"),
        (b"x" * 40, "not packed token vectors"),
        (pack(np.eye(2, 32), "float16"), "query_tokens: expected 8 dimensions, not 32"),
    ],
)
def test_a_querys_own_token_vectors_must_be_of_the_stored_kind(db, source, tokens, message):
    source.create(token_dims=8)
    source.encode_by_hand()
    search = "SELECT * FROM pgrerank.documents_search(NULL, keys => '{1}', query_tokens => %b)"
    with pytest.raises(psycopg.errors.DataException, match=message):
        db.execute(search, (tokens,))
    assert db.execute(search, (pack(np.eye(2, 8), "float16"),)).fetchall()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_dims": 7}, "token_dims is 7, expected 8 to 32"),
        (
            {"token_dims": 33},
            "token_dims is 33, expected 8 to 32, the dimensions of model",
        ),
        ({"token_pool": 0}, "token_pool is '0', expected 1 to 16"),
        ({"token_pool": 17}, "token_pool is '17', expected 1 to 16"),
        ({"token_pool": None}, "token_pool is NULL, expected 1 to 16"),
        ({"maxsim_bit_top": 0}, "maxsim_bit_top is '0', expected 1 to 100000"),
        ({"maxsim_bit_top": 9, "token_precision": "bit"}, "would score the same bits twice"),
        ({"token_dims": 8, "late_interaction_model": None}, "has no late_interaction_model"),
        ({"maxsim_bit_top": 9, "late_interaction_model": None}, "has no late_interaction_model"),
    ],
)
def test_wrong_settings_are_named(db, source, settings, message):
    with pytest.raises(psycopg.Error) as error:
        source.create(**settings)
    assert message in str(error.value)
    assert db.execute("SELECT count(*) FROM pgrerank.rerankers").fetchone() == (0,)


def test_settings_are_changed_and_taken_back(db, source):
    source.create()

    def alter(**settings) -> tuple:
        names = ", ".join(f"{name} => {value}" for name, value in settings.items())
        db.execute(f"SELECT pgrerank.alter_reranker('documents', {names})")
        return db.execute(
            "SELECT number, token_dims, token_pool, token_bits FROM pgrerank.generations"
            " ORDER BY number DESC LIMIT 1"
        ).fetchone()

    assert alter(token_dims=16) == (2, 16, 1, False)
    assert alter(maxsim_bit_top=50) == (3, 16, 1, True)
    assert alter(maxsim_bit_top=20) == (3, 16, 1, True)
    assert alter(token_pool=2) == (4, 16, 2, True)
    assert alter(token_dims=0, maxsim_bit_top=0, token_pool=1) == (5, None, 1, False)
    assert alter(candidates=10) == (5, None, 1, False)
