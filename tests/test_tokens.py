"""The packed format and the NumPy engine, against float64 references and the bounds they state."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgrerank.errors import TokensError
from pgrerank.tokens import DType, maxsim, pack, pack_parts, parse_header, unpack

EPS32 = 2.0**-24
FLOATS = st.floats(-100, 100, width=32)


@st.composite
def _matrices(draw: st.DrawFn, dims: int | None = None) -> np.ndarray:
    shape = (draw(st.integers(1, 9)), dims or draw(st.integers(1, 40)))
    return draw(hnp.arrays(np.float32, shape, elements=FLOATS))


@st.composite
def _searches(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    dims = draw(st.integers(1, 40))
    return draw(_matrices(dims)), draw(st.lists(_matrices(dims), min_size=1, max_size=6))


def _reference(query: np.ndarray, document: np.ndarray) -> float:
    return (query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum()


def _element_bounds(document: np.ndarray, dtype: DType) -> np.ndarray:
    """How far a packed element may be from the original one; see the module's docstring."""
    exact = np.abs(document.astype(np.float64))
    scale = parse_header(pack(document, dtype)).scale
    return {
        DType.FLOAT16: 2.0**-11 * exact + 2.0**-25,
        DType.INT8: np.full(exact.shape, scale * (0.5 + 1e-5)),
        DType.BIT: np.abs(exact - scale) + EPS32,
    }[dtype]


def _float32_bound(query: np.ndarray, document: np.ndarray) -> float:
    """Rounding of dot products accumulated in float32 (Higham, 2002, 3.1), and of the answer."""
    products = np.abs(query).astype(np.float64) @ np.abs(document).astype(np.float64).T
    return float((query.shape[1] + 8) * EPS32 * products.max(axis=1).sum()) + 1e-30


@pytest.mark.parametrize("dtype", DType)
@given(matrix=_matrices())
def test_round_trip_within_the_bound_of_each_element(dtype: DType, matrix: np.ndarray) -> None:
    found = unpack(pack(matrix, dtype))
    assert found.dtype == np.float32
    assert found.shape == matrix.shape
    error = np.abs(found.astype(np.float64) - matrix)
    assert (error <= _element_bounds(matrix, dtype) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", DType)
@given(search=_searches())
def test_maxsim_within_the_bound_of_the_original_vectors(dtype: DType, search: tuple) -> None:
    query, documents = search
    found = maxsim(query, [pack(document, dtype) for document in documents])
    for score, document in zip(found, documents, strict=True):
        bound = (np.abs(query) @ _element_bounds(document, dtype).T).max(axis=1).sum()
        slack = _float32_bound(query, document) + _float32_bound(
            query, unpack(pack(document, dtype))
        )
        assert abs(float(score) - _reference(query, document)) <= bound * (1 + 1e-6) + slack


@pytest.mark.parametrize("dtype", DType)
def test_documents_that_span_chunks_score_as_they_do_alone(dtype: DType) -> None:
    generator = np.random.default_rng(7)
    lengths = [1, 3000, 2, 700, 9000, 1, 1, 5]  # a chunk holds 2730 rows of 384 dimensions
    blobs = [pack(generator.standard_normal((n, 384)), dtype) for n in lengths]
    query = generator.standard_normal((17, 384))
    alone = [_reference(query, unpack(blob)) for blob in blobs]
    np.testing.assert_allclose(maxsim(query, blobs), alone, rtol=1e-5)


def test_maxsim_without_documents_or_query_vectors() -> None:
    document = pack(np.ones((3, 4)))
    assert maxsim(np.ones((2, 4)), []).shape == (0,)
    assert maxsim(np.ones((0, 4)), [document, document]).tolist() == [0.0, 0.0]


def test_int8_keeps_zeros_and_uses_the_whole_range() -> None:
    assert parse_header(pack(np.zeros((2, 3)))).scale == 1
    assert not unpack(pack(np.zeros((2, 3)))).any()
    assert np.frombuffer(pack(np.array([[-2.0, 0.0, 1.0]])), np.int8, offset=16).tolist() == [
        -127,
        0,
        64,
    ]


def test_bit_keeps_signs_and_counts_zero_as_negative() -> None:
    matrix = np.array([[0.1, -3.0, 0.0, 5.0, -1.0, -1.0, -1.0, 2.0, 7.0]])
    blob = pack(matrix, "bit")
    assert blob[16:] == bytes([0b10001001, 0b00000001])
    assert unpack(blob).tolist() == [
        [np.float32(1 / 3) * s for s in (1, -1, -1, 1, -1, -1, -1, 1, 1)]
    ]


def test_header_is_laid_out_as_documented() -> None:
    blob = pack(np.full((2, 3), 1.27), DType.INT8)
    assert blob[:12] == b"pgrt" + bytes([1, 2, 3, 0, 2, 0, 0, 0])
    assert struct.unpack("<f", blob[12:16])[0] == pytest.approx(0.01)
    header = parse_header(blob)
    assert (header.dtype, header.dims, header.count, header.size) == (DType.INT8, 3, 2, len(blob))


@pytest.mark.parametrize(("dtype", "width"), [("float16", 768), ("int8", 384), ("bit", 48)])
@pytest.mark.parametrize("count", [10, 240, 2000])
def test_packed_size_is_the_raw_matrix_and_at_most_a_twentieth(
    dtype: str, width: int, count: int
) -> None:
    assert count * width < len(pack(np.ones((count, 384)), dtype)) <= 1.05 * count * width


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones(3), r"shape \[count, dims\], not float64 of shape \[3\]"),
        (np.ones((2, 3), np.int64), "not int64"),
        (np.ones((0, 3)), "not 0 rows of 3"),
        (np.ones((3, 0)), "not 3 rows of 0"),
        (np.ones((1, 65536)), "not 1 rows of 65536"),
        (np.array([[1.0, math.nan]]), "finite"),
        (np.array([[1.0, -math.inf]]), "finite"),
        (np.array([[1e39]]), "finite"),
    ],
)
@pytest.mark.parametrize("dtype", DType)
def test_what_cannot_be_packed(matrix: np.ndarray, message: str, dtype: DType) -> None:
    with pytest.raises(TokensError, match=message):
        pack(matrix, dtype)


def test_float16_refuses_what_it_would_turn_into_infinity() -> None:
    with pytest.raises(TokensError, match="65504"):
        pack(np.array([[70000.0]]), "float16")
    assert unpack(pack(np.array([[70000.0]]), "int8"))[0, 0] == pytest.approx(70000)


@settings(max_examples=300)
@given(
    matrix=_matrices(),
    dtype=st.sampled_from(DType),
    changes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=4),
    cut=st.integers(-3, 3),
)
def test_mutated_bytes_give_tokens_or_a_tokens_error(
    matrix: np.ndarray, dtype: DType, changes: list[tuple[int, int]], cut: int
) -> None:
    blob = bytearray(pack(matrix, dtype))
    for position, value in changes:
        blob[position % len(blob)] = value
    mutated = bytes(blob[:cut]) if cut < 0 else bytes(blob) + bytes(cut)
    try:
        values = unpack(mutated)
    except TokensError:
        with pytest.raises(TokensError, match="document 0"):
            maxsim(np.ones((1, matrix.shape[1])), [mutated])
        return
    assert np.isfinite(values).all()
    assert maxsim(np.zeros((1, values.shape[1])), [mutated]).tolist() == [0.0]


@given(st.binary(max_size=64))
def test_arbitrary_bytes_give_a_tokens_error(blob: bytes) -> None:
    with pytest.raises(TokensError):
        unpack(blob)


def test_an_error_names_the_document() -> None:
    documents = [pack(np.ones((1, 3))), pack(np.ones((1, 4)), "bit"), b"pgrt"]
    with pytest.raises(TokensError, match="document 1: expected 3 dimensions, not 4"):
        maxsim(np.ones((1, 3)), documents[:2])
    with pytest.raises(TokensError, match="document 1: packed tokens: expected a header"):
        maxsim(np.ones((1, 3)), documents[::2])


def test_parts_hold_all_rows_in_pieces_of_bounded_size() -> None:
    matrix = np.random.default_rng(0).uniform(-1, 1, (130, 128))
    for dtype, rows in (("float16", 31), ("int8", 62), ("bit", 499)):
        parts = pack_parts(matrix, dtype)
        assert all(len(part) <= 8000 for part in parts)
        counts = [parse_header(part).count for part in parts]
        assert counts[1:] == [rows] * (len(parts) - 1)
        assert 1 <= counts[0] <= rows
        np.testing.assert_allclose(unpack(b"".join(parts)), unpack(pack(matrix, dtype)), atol=1e-2)
    assert [parse_header(part).count for part in pack_parts(np.ones((2, 9000)))] == [1, 1]


def test_matrices_of_unlike_dimensions_are_no_document() -> None:
    with pytest.raises(TokensError, match="3 dimensions throughout"):
        unpack(pack(np.ones((1, 3))) + pack(np.ones((1, 4))))


def test_a_score_beyond_float32_is_an_error_that_names_the_document() -> None:
    huge = np.full((1, 2), 3e38)
    with pytest.raises(TokensError, match="document 1: its score is beyond float32"):
        maxsim(huge, [pack(np.zeros((1, 2))), pack(np.full((1, 2), 1e6))])


def test_maxsim_costs_few_python_calls_a_document_and_none_a_row() -> None:
    generator = np.random.default_rng(0)
    blobs = [pack(generator.standard_normal((240, 384))) for _ in range(4)] * 25
    query = generator.standard_normal((16, 384))
    assert _count_calls(lambda: maxsim(query, blobs)) < len(blobs) * 20


def _count_calls(work: Callable[[], object]) -> int:
    calls = 0

    def tracer(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(tracer)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_tokens_need_numpy_alone() -> None:
    code = (
        "import sys, pgrerank.tokens;"
        "heavy = {'torch', 'psycopg', 'sentence_transformers', 'rich'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
