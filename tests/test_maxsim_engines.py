"""One contract for all MaxSim engines: NumPy, and the kernel by each instruction set there is."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgrerank.errors import TokensError
from pgrerank.tokens import DType, maxsim, pack, pack_parts, parse_header, unpack

EPS32 = 2.0**-24
FLOATS = st.floats(-100, 100, width=32)
INSTRUCTIONS = ("amx", "avx512", "avx2", "neon", "portable")
WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 130]))
COUNTS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 129]))


class NumPyEngine:
    """The worker's engine."""

    error = TokensError

    def score(self, query: bytes, documents: Sequence[bytes]) -> list[float]:
        return maxsim(query, documents).tolist()

    def query_bound(self, _query: np.ndarray, _document: np.ndarray, _dtype: DType) -> float:
        return 0.0


@dataclass
class NativeEngine:
    """The kernel, by the instruction set that its connection has set."""

    db: psycopg.Connection

    error = psycopg.errors.DataException

    def score(self, query: bytes, documents: Sequence[bytes]) -> list[float]:
        rows = self.db.execute(
            "SELECT pgrerank.maxsim(%b::bytea, d) FROM unnest(%b::bytea[]) WITH ORDINALITY u (d, i)"
            " ORDER BY i",
            (query, list(documents)),
        )
        return [score for (score,) in rows]

    def query_bound(self, query: np.ndarray, document: np.ndarray, dtype: DType) -> float:
        """Half a step of the query's 8 bits, each vector with its own scale, times the document."""
        if dtype is DType.FLOAT16:
            return 0.0
        steps = np.abs(query).max(axis=1) / 127 / 2
        return float(steps.sum() * np.abs(document).sum(axis=1).max()) * (1 + 1e-5)


Engine = NumPyEngine | NativeEngine


@pytest.fixture(scope="module")
def native_db(make_database, pgrerank_template) -> Iterator[psycopg.Connection]:
    with psycopg.connect(make_database(pgrerank_template), autocommit=True) as db:
        if not db.execute("SELECT pgrerank.has_native_kernel()").fetchone()[0]:
            pytest.skip("the server has no native kernel")
        yield db


@pytest.fixture(scope="module", params=["numpy", *INSTRUCTIONS])
def engine(request) -> Engine:
    if request.param == "numpy":
        return NumPyEngine()
    db = request.getfixturevalue("native_db")
    db.execute("SELECT pgrerank.maxsim_instructions()")  # loads the library and its setting
    try:
        db.execute(f"SET pgrerank.instructions = {request.param}")
    except psycopg.errors.InvalidParameterValue:
        pytest.skip(f"this machine can't run {request.param}")
    return NativeEngine(db)


@st.composite
def _matrices(draw: st.DrawFn, dims: int) -> np.ndarray:
    return draw(hnp.arrays(np.float32, (draw(COUNTS), dims), elements=FLOATS, fill=FLOATS))


@st.composite
def _searches(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    dims = draw(WIDTHS)
    return draw(_matrices(dims)), draw(st.lists(_matrices(dims), min_size=1, max_size=4))


def _reference(query: np.ndarray, document: np.ndarray) -> float:
    return (query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum()


def _float32_bound(query: np.ndarray, document: np.ndarray) -> float:
    """Rounding of dot products accumulated in float32 (Higham, 2002, 3.1), and of the answer."""
    products = np.abs(query).astype(np.float64) @ np.abs(document).astype(np.float64).T
    return float((query.shape[1] + 8) * EPS32 * products.max(axis=1).sum()) + 1e-30


@settings(max_examples=60)
@given(search=_searches(), dtypes=st.lists(st.sampled_from(DType), min_size=4, max_size=4))
def test_it_is_maxsim_of_the_unpacked_vectors_within_the_stated_bound(
    engine: Engine, search: tuple, dtypes: list[DType]
) -> None:
    packed_query = pack(search[0], DType.FLOAT16)
    blobs = [pack(d, dtype) for d, dtype in zip(search[1], dtypes, strict=False)]
    query = unpack(packed_query)
    for score, blob in zip(engine.score(packed_query, blobs), blobs, strict=True):
        document = unpack(blob)
        bound = engine.query_bound(query, document, parse_header(blob).dtype)
        wanted = _reference(query, document)
        assert abs(score - wanted) <= bound + _float32_bound(query, document)


def test_by_hand(engine: Engine) -> None:
    query = pack(np.array([[1.0, 0.0], [0.0, 2.0]]), "float16")
    near, far = np.array([[0.5, 0.0], [0.0, 0.25]]), np.array([[-1.0, -1.0]])
    assert engine.score(query, [pack(near, "float16"), pack(far, "float16")]) == [1.0, -3.0]
    assert engine.score(query, [pack(far, "int8")]) == pytest.approx([-3.0])
    assert engine.score(query, [pack(far, "bit")]) == pytest.approx([-3 / math.sqrt(2)])


@pytest.mark.parametrize("dtype", DType)
def test_vectors_of_zeros_score_zero(engine: Engine, dtype: DType) -> None:
    query = pack(np.zeros((2, 5)), "float16")
    assert engine.score(query, [pack(np.ones((3, 5)), dtype)]) == [0.0]
    assert engine.score(pack(np.ones((1, 5)), "float16"), [pack(np.zeros((3, 5)), "int8")]) == [0.0]


@pytest.mark.parametrize("dtype", DType)
def test_a_document_in_parts_scores_as_the_whole(engine: Engine, dtype: DType) -> None:
    generator = np.random.default_rng(5)
    document = generator.uniform(-1, 1, (50, 33))
    document[:, 0] = 1  # the largest magnitude in every part, hence one scale
    query = pack(generator.standard_normal((7, 33)), "float16")
    parts = pack_parts(document, dtype, most_bytes=len(pack(document[:7], dtype)))
    assert len(parts) > 1
    [whole, joined] = engine.score(query, [pack(document, dtype), b"".join(parts)])
    assert whole == pytest.approx(joined, rel=1e-6)


def test_a_query_may_have_any_dtype(engine: Engine) -> None:
    matrix = np.array([[0.5, -0.5, 0.5, 0.5]])
    for dtype in DType:
        assert engine.score(pack(matrix, dtype), [pack(matrix, "float16")]) == pytest.approx([1.0])


def _header(**changed: float | bytes) -> bytes:
    fields = {"magic": b"pgrt", "version": 1, "dtype": 2, "dims": 2, "count": 2, "scale": 1.0}
    return struct.pack("<4sBBHIf", *(fields | changed).values())


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "header of 16 bytes, not 0"),
        (_header()[:15], "header of 16 bytes, not 15"),
        (_header(magic=b"PGRT") + bytes(4), "magic"),
        (_header(version=2) + bytes(4), "version 1, not 2"),
        (_header(dtype=0) + bytes(4), "dtype"),
        (_header(dtype=4) + bytes(4), "dtype"),
        (_header(dims=0), "not 2 by 0"),
        (_header(count=0), "not 0 by 2"),
        (_header(), "20 bytes for 2 rows of 2 dimensions in int8, not 16"),
        (_header() + bytes(5), "header of 16 bytes, not 1"),
        (_header() + bytes(4) + _header(), "20 bytes .* not 16"),
        (_header(count=2**32 - 1, dims=65535) + bytes(4), "281470681677841 bytes"),
        (_header(scale=0.0) + bytes(4), "scale"),
        (_header(scale=-1.0) + bytes(4), "scale"),
        (_header(scale=math.nan) + bytes(4), "scale"),
        (_header(scale=math.inf) + bytes(4), "scale"),
        (_header(scale=3e38) + bytes(4), "scale"),
        (_header(dtype=1, scale=2.0) + bytes(8), "scale 1 with float16"),
        (_header() + bytes([1, 0x80, 1, 1]), "not -128"),
        (_header() + bytes(4) + _header() + bytes([1, 1, 1, 0x80]), "not -128"),
        (_header(dtype=1) + bytes([0, 0x7C, 0, 0, 0, 0, 0, 0]), "not NaN or infinity"),
        (_header(dtype=1) + bytes([0, 0, 0, 0, 1, 0xFC, 0, 0]), "not NaN or infinity"),
        (_header(dtype=3) + bytes([0b11, 0b111]), "no bit beyond dimension 2"),
    ],
)
def test_malformed_documents_and_queries_are_refused(
    engine: Engine, blob: bytes, message: str
) -> None:
    sound = pack(np.ones((1, 2)))
    with pytest.raises(engine.error, match=message):
        engine.score(sound, [sound, blob])
    with pytest.raises(engine.error, match=message):
        engine.score(blob, [sound])


def test_other_dimensions_than_the_querys_are_refused(engine: Engine) -> None:
    query = pack(np.ones((1, 3)))
    with pytest.raises(engine.error, match="expected 3 dimensions, not 4"):
        engine.score(query, [query, pack(np.ones((1, 4)), "bit")])
    with pytest.raises(engine.error, match="expected 3 dimensions, not 4"):
        engine.score(query, [query + pack(np.ones((1, 4)))])


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_a_score_beyond_float32_is_refused(engine: Engine, dtype: str) -> None:
    with pytest.raises(engine.error, match="beyond float32"):
        engine.score(pack(np.full((1, 2), 3e38)), [pack(np.full((1, 2), 6e4), dtype)])


@settings(max_examples=100)
@given(
    matrix=WIDTHS.flatmap(_matrices),
    dtype=st.sampled_from(DType),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    cut=st.integers(-3, 3),
)
def test_mutated_bytes_are_scored_or_refused_as_the_reader_does(
    engine: Engine, matrix: np.ndarray, dtype: DType, changes: list[tuple[int, int]], cut: int
) -> None:
    blob = bytearray(pack(matrix, dtype))
    for position, value in changes:
        blob[position % len(blob)] = value
    mutated = bytes(blob[:cut]) if cut < 0 else bytes(blob) + bytes(cut)
    try:
        values = unpack(mutated)
    except TokensError:
        with pytest.raises(engine.error):
            engine.score(pack(np.ones((1, matrix.shape[1]))), [mutated])
        return
    assert engine.score(pack(np.zeros((1, values.shape[1]))), [mutated]) == [0.0]
