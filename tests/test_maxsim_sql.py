"""MaxSim over pgvector arrays, in plain SQL and by the kernel, against a float64 reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from psycopg.conninfo import make_conninfo

from pgrerank.install import schema

ELEMENTS = st.floats(-4, 4, width=16).map(lambda x: 0.0 if abs(x) < 1e-3 else x)


def matrices(dims: int) -> st.SearchStrategy:
    shape = st.tuples(st.integers(1, 19), st.just(dims))
    return shape.flatmap(lambda shape: arrays(np.float32, shape, elements=ELEMENTS))


class Scorer:
    def __init__(self, db: psycopg.Connection, type_: str) -> None:
        self.db = db
        self.type = type_

    def __call__(self, query, document) -> float | None:
        return self.db.execute(
            f"SELECT pgrerank.maxsim(%s::text[]::{self.type}[], %s::text[]::{self.type}[])",
            ([str(row) for row in query], [str(row) for row in document]),
        ).fetchone()[0]


@pytest.fixture(scope="module")
def without_kernel(make_database, make_role) -> Iterator[psycopg.Connection]:
    """A database whose schema was installed by a role that can't create the kernel's extension."""
    owner, dsn = make_role(), make_database()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
        admin.execute(f"GRANT CREATE ON DATABASE {admin.info.dbname} TO {owner}")
        admin.execute(f"SET ROLE {owner}")
        admin.execute("CREATE SCHEMA pgrerank")
        admin.execute("RESET ROLE")
        admin.execute("CREATE EXTENSION dblink SCHEMA pgrerank")
        admin.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {owner}")
    with psycopg.connect(make_conninfo(dsn, user=owner, password=owner), autocommit=True) as db:
        schema.install(db)
        yield db


@pytest.fixture(scope="module")
def with_kernel(make_database, pgrerank_template) -> Iterator[psycopg.Connection]:
    with psycopg.connect(make_database(pgrerank_template), autocommit=True) as db:
        if not db.execute("SELECT pgrerank.has_native_kernel()").fetchone()[0]:
            pytest.skip("the server has no native kernel")
        yield db


@pytest.fixture(scope="module", params=["sql", "native vector", "native halfvec"])
def score(request) -> Scorer:
    db = request.getfixturevalue("without_kernel" if request.param == "sql" else "with_kernel")
    return Scorer(db, "halfvec" if "halfvec" in request.param else "vector")


@settings(max_examples=60)
@given(st.integers(1, 20).flatmap(lambda dims: st.tuples(matrices(dims), matrices(dims))))
def test_it_is_the_sum_of_the_largest_products(score, pair):
    query, document = pair
    products = query.astype(np.float64) @ document.astype(np.float64).T
    found = score(query.tolist(), document.tolist())
    # Sums are float32: a product errs by at most a rounding a term, 6e-8 of its magnitude.
    largest = float(np.abs(query).sum() * np.abs(document).max())
    assert found == pytest.approx(
        float(products.max(axis=1).sum()), abs=1e-6 * query.shape[1] * largest + 1e-30, rel=1e-6
    )


def test_no_vectors_no_score(score):
    assert score([], [[1, 2]]) is None
    assert score([[1, 2]], []) is None


def test_unlike_dimensions_are_an_error(score):
    with pytest.raises(
        psycopg.errors.DataException, match=r"dimensions 2 and 3|2 dimensions, not 3"
    ):
        score([[1, 2]], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ("ARRAY['[1]'::vector, NULL]", "token vector 2 is NULL"),
        ("ARRAY[ARRAY['[1]'::vector]]", "1 dimension, not 2"),
        ("ARRAY['[1]'::vector, '[1,2]']", "expected 1 dimensions, not 2"),
    ],
)
def test_the_kernel_refuses_what_is_no_list_of_vectors(with_kernel, array, message):
    for call in (f"ARRAY['[1]'::vector], {array}", f"{array}, ARRAY['[1]'::vector]"):
        with pytest.raises(psycopg.Error, match=message):
            with_kernel.execute(f"SELECT pgrerank.maxsim({call})")


def test_what_uses_the_function_stays_when_the_kernel_comes(
    server_dsn, without_kernel, with_kernel
):
    language = (
        "SELECT lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang"
        " WHERE p.oid = 'pgrerank.maxsim(vector[],vector[])'::regprocedure"
    )
    with psycopg.connect(
        make_conninfo(server_dsn, dbname=without_kernel.info.dbname), autocommit=True
    ) as admin:
        admin.execute(
            "CREATE VIEW scored AS"
            " SELECT pgrerank.maxsim(ARRAY['[1,2]'::vector], ARRAY['[3,4]'::vector])"
        )
        for wanted in ("sql", "c"):
            assert admin.execute(language).fetchone()[0] == wanted
            assert admin.execute("SELECT * FROM scored").fetchone()[0] == 11
            schema.install(admin)
        admin.execute("DROP EXTENSION pgrerank_native CASCADE")
        schema.install(admin)
        assert admin.execute(language).fetchone()[0] == "c"
