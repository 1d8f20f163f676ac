"""Smaller token vectors: fewer of them by pooling, fewer dimensions by an orthogonal projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgrerank.models.spec import Role

__all__ = ["Reduction", "SecondMoment", "of_length_one"]

Matrix = NDArray[np.float32]

_POOLED_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Reduction:
    """How token vectors are made smaller before they are packed.

    `pool`: of a document's token vectors, one is kept for so many. `matrix`: an orthogonal
    projection, orthonormal rows, float32 [reduced dims, dims]; None leaves dimensions as they are.
    """

    pool: int = 1
    matrix: Matrix | None = None

    def apply_all(self, texts: Sequence[Matrix], role: Role) -> list[Matrix]:
        """Reduce the token vectors of each text."""
        return [self.apply(tokens, role) for tokens in texts]

    def apply(self, tokens: Matrix, role: Role) -> Matrix:
        """Reduce a text's token vectors, float32 [n, dims]; those of a query are never pooled.

        What a projection leaves of a vector gets its length back: else tokens that it serves badly
        could never be a maximum.
        """
        if role == "document" and self.pool > 1:
            tokens = _pooled(tokens, self.pool)
        if self.matrix is None:
            return tokens
        lengths = np.linalg.norm(tokens, axis=1, keepdims=True)
        return np.asarray(of_length_one(tokens @ self.matrix.T) * lengths, np.float32)


class SecondMoment:
    """Collects token vectors to fit a projection that keeps their inner products best.

    The rows of the best orthogonal projection are the leading eigenvectors of the vectors' second
    moment. It is uncentred, unlike a principal component analysis, which keeps distances from their
    mean and not inner products (Eckart and Young 1936, https://doi.org/10.1007/BF02288367).
    """

    def __init__(self, dims: int) -> None:
        self._sum = np.zeros((dims, dims))

    def add(self, tokens: Matrix) -> None:
        """Take in token vectors, float32 [n, dims]."""
        values = tokens.astype(np.float64)
        self._sum += values.T @ values

    def projection(self, dims: int) -> Matrix:
        """Give the projection to so many dimensions: orthonormal rows, float32 [dims, own dims]."""
        _, vectors = np.linalg.eigh(self._sum)
        return np.ascontiguousarray(vectors[:, ::-1][:, :dims].T, np.float32)


def _pooled(tokens: Matrix, factor: int) -> Matrix:
    """Merge similar token vectors: float32 [n, dims] to about [n / factor, dims].

    Ward clustering by cosine distance, each cluster's mean brought to length 1 (Clavié, Chaffin and
    Adams 2024, https://arxiv.org/abs/2409.14683), as sentence-transformers does it. That costs the
    square of n, so a long document is pooled in pieces of 512.
    """
    import torch
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    from pgrerank.models.device import one_thread

    pooling = HierarchicalTokenPooling(factor, num_protected_tokens=0)
    pieces = [
        tokens[start : start + _POOLED_AT_ONCE] for start in range(0, len(tokens), _POOLED_AT_ONCE)
    ]
    with one_thread():
        pooled = [pooling.pool_one(torch.from_numpy(piece.copy())).numpy() for piece in pieces]
    return np.asarray(np.concatenate(pooled), np.float32) if pooled else tokens


def of_length_one(vectors: Matrix) -> Matrix:
    """Bring vectors, float32 [..., dims], to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)
