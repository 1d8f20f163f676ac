"""MaxSim in plain SQL over pgvector arrays, against a float64 reference."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

ELEMENTS = st.floats(-4, 4, width=32).map(lambda x: 0.0 if abs(x) < 1e-30 else x)


def matrices(dims: int) -> st.SearchStrategy:
    shape = st.tuples(st.integers(1, 9), st.just(dims))
    return shape.flatmap(lambda shape: arrays(np.float32, shape, elements=ELEMENTS))


def score(db, query, document) -> float | None:
    return db.execute(
        "SELECT pgrerank.maxsim(%s::text[]::vector[], %s::text[]::vector[])",
        ([str(row) for row in query], [str(row) for row in document]),
    ).fetchone()[0]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 6).flatmap(lambda dims: st.tuples(matrices(dims), matrices(dims))))
def test_it_is_the_sum_of_the_largest_products(db, pair):
    query, document = pair
    products = query.astype(np.float64) @ document.astype(np.float64).T
    found = score(db, query.tolist(), document.tolist())
    # pgvector sums in float32: a product errs by at most a rounding a term, 6e-8 of its magnitude.
    largest = float(np.abs(query).sum() * np.abs(document).max())
    assert found == pytest.approx(
        float(products.max(axis=1).sum()), abs=1e-6 * query.shape[1] * largest + 1e-30, rel=1e-6
    )


def test_no_vectors_no_score_and_unlike_dimensions_are_an_error(db):
    assert score(db, [], [[1, 2]]) is None
    assert score(db, [[1, 2]], []) is None
    with pytest.raises(psycopg.errors.DataException, match="different vector dimensions 2 and 3"):
        score(db, [[1, 2]], [[1, 2, 3]])
