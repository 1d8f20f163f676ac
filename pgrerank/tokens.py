"""The packed format of token vectors, and MaxSim over it in NumPy.

A document is one packed matrix, or several, one after another: then its token vectors are the rows
of all of them. A packed matrix is a header of 16 bytes, little-endian, and ``count`` rows without
padding::

    offset  0  magic    4 bytes  b"pgrt"
            4  version  uint8    1
            5  dtype    uint8    1 float16, 2 int8, 3 bit
            6  dims     uint16   1..65535
            8  count    uint32   1..4294967295, the rows
           12  scale    float32  finite, > 0

The worth of an element:

* float16: ``x``; scale is 1
* int8: ``q * scale`` with q in -127..127; scale is the largest magnitude in the matrix / 127
* bit: ``+scale`` if set, else ``-scale``; scale is 1/sqrt(dims). Bit i of byte j is dimension
  8j + i, and the unused high bits of a row's last byte are zero.

What packing costs, for a query vector q, a document vector d and its packed form d':

* float16: ``|q.d - q.d'| <= sum_i |q_i| (2^-11 |d_i| + 2^-25)``, half a unit in the last place
* int8: ``|q.d - q.d'| <= scale/2 * sum_i |q_i|``, half a step
* bit: ``|q.d - q.d'| <= sum_i |q_i| * ||d_i| - scale|``, as only the signs are kept

A maximum moves no more than its arguments do, so MaxSim moves by no more than the sum over the
query's vectors of the largest bound of any document vector.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import TokensError

__all__ = ["DType", "Header", "maxsim", "pack", "pack_parts", "parse_header", "unpack"]

MAGIC = b"pgrt"
VERSION = 1
MAX_DIMS = 2**16 - 1
MAX_COUNT = 2**32 - 1

_HEADER = struct.Struct("<4sBBHIf")
_STEPS = 127  # int8 levels on either side of zero; -128 is left out so that the range is symmetric
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)
_CHUNK_ELEMENTS = 1 << 20  # 4 MB of float32, measured fastest: it stays in the cache


class DType(StrEnum):
    """How an element is stored."""

    FLOAT16 = "float16"
    INT8 = "int8"
    BIT = "bit"


_CODES = {DType.FLOAT16: 1, DType.INT8: 2, DType.BIT: 3}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_ELEMENTS = {DType.FLOAT16: "<f2", DType.INT8: "i1", DType.BIT: "u1"}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first 16 bytes of a packed matrix say."""

    dtype: DType
    dims: int
    count: int
    scale: float

    @property
    def row_elements(self) -> int:
        """Elements stored for a row: its dimensions, or for bit the bytes which hold them."""
        return (self.dims + 7) // 8 if self.dtype is DType.BIT else self.dims

    @property
    def size(self) -> int:
        """Bytes of the whole packed matrix, header included."""
        width = np.dtype(_ELEMENTS[self.dtype]).itemsize
        return _HEADER.size + self.count * self.row_elements * width


def pack(matrix: NDArray[np.floating], dtype: DType | str = DType.INT8) -> bytes:
    """Pack token vectors of shape [count, dims]; one matrix always gives the same bytes.

    A matrix of zeros has the scale 1 in int8, and so has one whose scale would not be a normal
    float32 (no value beyond 1.5e-36): it becomes zeros.

    Raises TokensError for another shape, no rows, NaN, infinity, values the dtype can't hold.
    """
    [packed] = _packed(_checked_matrix(matrix), [0], DType(dtype))
    return packed


def pack_parts(
    matrix: NDArray[np.floating], dtype: DType | str = DType.INT8, most_bytes: int = 8000
) -> list[bytes]:
    """Pack token vectors of shape [count, dims] as matrices of at most ``most_bytes`` bytes each.

    By default each fits a page of Postgres together with its row's header and a key. All but the
    first have as many rows as fit, and at least one; the first has what is left over, for Postgres
    copies the first tuple of a group. Raises as :func:`pack` does.
    """
    values = _checked_matrix(matrix)
    row = Header(DType(dtype), values.shape[1], 1, 1.0).size - _HEADER.size
    rows = max(1, (most_bytes - _HEADER.size) // row)
    return _packed(
        values, [0, *range((len(values) - 1) % rows + 1, len(values), rows)], DType(dtype)
    )


def _packed(values: NDArray[np.float32], starts: list[int], dtype: DType) -> list[bytes]:
    """Pack the rows of a matrix as several, which start at these rows."""
    scales, rows = _PACKERS[dtype](values, starts)
    body, (count, dims) = rows.tobytes(), values.shape
    width = len(body) // count
    packed = []
    for scale, (start, end) in zip(scales.tolist(), pairwise([*starts, count]), strict=True):
        _check_scale(Header(dtype, dims, end - start, scale))
        header = _HEADER.pack(MAGIC, VERSION, _CODES[dtype], dims, end - start, scale)
        packed.append(header + body[start * width : end * width])
    return packed


def parse_header(blob: bytes | memoryview) -> Header:
    """Read and check the header of a matrix, and that ``blob`` is as long as it promises.

    More bytes may follow: the document's next matrix. Raises TokensError, naming the field, the
    value found and the value wanted.
    """
    if len(blob) < _HEADER.size:
        raise TokensError(
            f"packed tokens: expected a header of {_HEADER.size} bytes, not {len(blob)}"
        )
    magic, version, code, dims, count, scale = _HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise TokensError(f"packed tokens: expected magic {MAGIC!r}, not {magic!r}")
    if version != VERSION:
        raise TokensError(f"packed tokens: expected version {VERSION}, not {version}")
    if code not in _DTYPES:
        raise TokensError(f"packed tokens: expected a dtype of {sorted(_DTYPES)}, not {code}")
    if dims < 1 or count < 1:
        raise TokensError(f"packed tokens: expected rows and dimensions, not {count} by {dims}")
    header = Header(_DTYPES[code], dims, count, scale)
    _check_scale(header)
    if len(blob) < header.size:
        raise TokensError(
            f"packed tokens: expected {header.size} bytes for {count} rows of {dims} dimensions"
            f" in {header.dtype}, not {len(blob)}"
        )
    return header


def unpack(blob: bytes) -> NDArray[np.float32]:
    """Give the token vectors of packed matrices: float32 of shape [count, dims].

    Raises TokensError if any byte could not have come from :func:`pack`.
    """
    parts = []
    for header, body in _matrices(blob):
        values = np.empty((header.count, header.dims), np.float32)
        _read_rows(header.dtype, _stored_rows(header, body), values)
        values *= np.float32(header.scale)
        parts.append(values)
    if len({part.shape[1] for part in parts}) > 1:
        raise TokensError(
            f"packed tokens: expected matrices of {parts[0].shape[1]} dimensions throughout"
        )
    matrix: NDArray[np.float32] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return matrix


def maxsim(query: bytes | NDArray[np.floating], documents: Sequence[bytes]) -> NDArray[np.float32]:
    """Score packed documents against a query: float32 of shape [documents], higher is better.

    MaxSim (Khattab & Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized
    Late Interaction over BERT", SIGIR 2020) is the sum over the query's vectors of the largest dot
    product with any of the document's. A query without vectors scores 0. ``query`` is packed, or
    floats of shape [tokens, dims]; the documents may be of different dtypes.

    Products are float32, sums float64. Needs the memory of the packed documents once more, and
    4 MB (or one row) of float32.

    Raises TokensError, naming the document's index (from 0), if one is malformed, has other
    dimensions than the query, or a score that float32 can't hold.
    """
    vectors = unpack(query) if isinstance(query, bytes) else _checked_matrix(query, least=0)
    matrices = [
        _Matrix(index, header, body)
        for index, blob in enumerate(documents)
        for header, body in _document_matrices(blob, index, vectors)
    ]
    best = np.empty((len(matrices), len(vectors)), np.float64)
    for dtype in DType:
        places = [place for place, one in enumerate(matrices) if one.header.dtype is dtype]
        if places:
            chosen = [matrices[place] for place in places]
            scales = np.array([one.header.scale for one in chosen])
            best[places] = _maxima(vectors, chosen) * scales[:, np.newaxis]
    starts = [
        p for p, one in enumerate(matrices) if not p or matrices[p - 1].document != one.document
    ]
    if starts:
        best = np.maximum.reduceat(best, starts, axis=0)
    scores = best.sum(axis=1)
    beyond = np.flatnonzero(~(np.abs(scores) <= _FLOAT32_MAX))
    if len(beyond):
        raise TokensError(f"document {beyond[0]}: its score is beyond float32; normalise vectors")
    rounded: NDArray[np.float32] = scores.astype(np.float32)
    return rounded


class _Matrix(NamedTuple):
    """A matrix of the document with that index."""

    document: int
    header: Header
    body: memoryview


def _matrices(blob: bytes) -> Iterator[tuple[Header, memoryview]]:
    """Take a document apart: header and rows of each of its matrices."""
    rest = memoryview(blob)
    while True:
        header = parse_header(rest)
        end = header.size
        yield header, rest[_HEADER.size : end]
        rest = rest[end:]
        if not rest:
            return


def _maxima(query: NDArray[np.float32], matrices: list[_Matrix]) -> NDArray[np.float32]:
    """Find the largest product of each matrix with each query vector, leaving out the scale.

    The matrices, all of one dtype, are laid end to end and cut into chunks of bounded size
    wherever that falls: one product serves many short documents, a long one takes several.
    """
    ends = np.cumsum([one.header.count for one in matrices])
    starts = np.concatenate(([0], ends[:-1]))
    dtype = matrices[0].header.dtype
    stored = _stored_rows(matrices[0].header, b"".join([one.body for one in matrices]))
    rows = max(1, _CHUNK_ELEMENTS // query.shape[1])
    buffer = np.empty((min(rows, len(stored)), query.shape[1]), np.float32)
    best = np.full((len(matrices), len(query)), -np.inf, np.float32)
    for begin in range(0, len(stored), rows):
        chunk = stored[begin : begin + rows]
        values = buffer[: len(chunk)]
        try:
            _read_rows(dtype, chunk, values)
        except TokensError:
            _name_malformed(matrices)
            raise
        with np.errstate(over="ignore", invalid="ignore"):
            products = values @ query.T
        low = np.searchsorted(ends, begin, side="right")
        high = np.searchsorted(starts, begin + len(chunk))
        inside = np.maximum(starts[low:high] - begin, 0)
        here = best[low:high]
        np.maximum(here, np.maximum.reduceat(products, inside, axis=0), out=here)
    return best


def _document_matrices(
    blob: bytes, index: int, query: NDArray[np.float32]
) -> list[tuple[Header, memoryview]]:
    try:
        matrices = list(_matrices(blob))
    except TokensError as error:
        raise TokensError(f"document {index}: {error}") from None
    for header, _ in matrices:
        if header.dims != query.shape[1]:
            raise TokensError(
                f"document {index}: expected {query.shape[1]} dimensions, not {header.dims};"
                " encode query and documents with one model"
            )
    return matrices


def _name_malformed(matrices: list[_Matrix]) -> None:
    for index, header, body in matrices:
        values = np.empty((header.count, header.dims), np.float32)
        try:
            _read_rows(header.dtype, _stored_rows(header, body), values)
        except TokensError as error:
            raise TokensError(f"document {index}: {error}") from None


def _checked_matrix(matrix: NDArray[np.floating], least: int = 1) -> NDArray[np.float32]:
    found = np.asarray(matrix)
    if found.ndim != 2 or found.dtype.kind != "f":
        raise TokensError(
            "token vectors: expected floats of shape [count, dims],"
            f" not {found.dtype} of shape {list(found.shape)}"
        )
    count, dims = found.shape
    if not (least <= count <= MAX_COUNT and 1 <= dims <= MAX_DIMS):
        raise TokensError(
            f"token vectors: expected {least} to {MAX_COUNT} rows of 1 to {MAX_DIMS} dimensions,"
            f" not {count} rows of {dims}"
        )
    with np.errstate(over="ignore"):
        values = found.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise TokensError("token vectors: expected finite float32 values, not NaN or infinity")
    return values


def _check_scale(header: Header) -> None:
    dtype, scale = header.dtype, header.scale
    largest = scale * (_STEPS if dtype is DType.INT8 else 1)
    if not (scale > 0 and largest <= _FLOAT32_MAX):
        raise TokensError(f"packed tokens: expected a finite scale above zero, not {scale}")
    if dtype is DType.FLOAT16 and scale != 1:
        raise TokensError(f"packed tokens: expected scale 1 with float16, not {scale}")


Scales = NDArray[np.float32]


def _pack_float16(values: NDArray[np.float32], starts: list[int]) -> tuple[Scales, NDArray[Any]]:
    with np.errstate(over="ignore"):
        rows = values.astype(_ELEMENTS[DType.FLOAT16])
    if not np.isfinite(rows).all():
        raise TokensError("token vectors: expected no value beyond 65504; pack them as int8")
    return np.ones(len(starts), np.float32), rows


def _pack_int8(values: NDArray[np.float32], starts: list[int]) -> tuple[Scales, NDArray[Any]]:
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    scales = np.asarray(np.maximum.reduceat(largest, starts) / np.float32(_STEPS), np.float32)
    scales[scales < _FLOAT32_TINY] = 1
    rows = values / np.repeat(scales, np.diff([*starts, len(values)]))[:, np.newaxis]
    np.clip(np.rint(rows, out=rows), -_STEPS, _STEPS, out=rows)
    return scales, rows.astype(np.int8)


def _pack_bit(values: NDArray[np.float32], starts: list[int]) -> tuple[Scales, NDArray[Any]]:
    # Zero counts as negative, as in pgvector's binary_quantize.
    scales = np.full(len(starts), 1 / math.sqrt(values.shape[1]), np.float32)
    return scales, np.packbits(values > 0, axis=1, bitorder="little")


_PACKERS = {DType.FLOAT16: _pack_float16, DType.INT8: _pack_int8, DType.BIT: _pack_bit}


def _stored_rows(header: Header, body: bytes | memoryview) -> NDArray[Any]:
    return np.frombuffer(body, _ELEMENTS[header.dtype]).reshape(-1, header.row_elements)


def _read_rows(dtype: DType, stored: NDArray[Any], values: NDArray[np.float32]) -> None:
    """Write stored rows into ``values`` ([rows, dims]) without their scale, checking each."""
    if dtype is DType.BIT:
        dims = values.shape[1]
        if dims % 8 and (stored[:, -1] >> (dims % 8)).any():
            raise TokensError(f"packed tokens: expected no bit beyond dimension {dims}")
        signs = np.unpackbits(stored, axis=1, count=dims, bitorder="little").view(np.int8)
        values[...] = 2 * signs - 1
        return
    values[...] = stored
    if dtype is DType.INT8 and stored.min() < -_STEPS:
        raise TokensError(f"packed tokens: expected int8 of -127 to 127, not {stored.min()}")
    if dtype is DType.FLOAT16 and not np.isfinite(values).all():
        raise TokensError("packed tokens: expected finite float16, not NaN or infinity")
