"""Encoders and rerankers: texts in, vectors and scores out. Knows no database.

Importing this does not import PyTorch; loading a model does, if its loader needs it.
"""

from pgrerank.models.spec import (
    Encoded,
    Encoder,
    Kind,
    ListwiseJudge,
    Loader,
    ModelSpec,
    ReadableTokens,
    Reranker,
    Role,
)
from pgrerank.models.store import ModelStore, load_encoder, load_judge, load_reranker

__all__ = [
    "Encoded",
    "Encoder",
    "Kind",
    "ListwiseJudge",
    "Loader",
    "ModelSpec",
    "ModelStore",
    "ReadableTokens",
    "Reranker",
    "Role",
    "load_encoder",
    "load_judge",
    "load_reranker",
]
