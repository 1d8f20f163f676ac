"""How each kind of model is loaded for training, trained, and evaluated meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorRerankingEvaluator
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.evaluation import RerankingEvaluator
from torch import nn

from pgrerank.errors import TrainingError
from pgrerank.models import ModelSpec, loading
from pgrerank.models.options import Options


@dataclass(frozen=True)
class Recipe:
    """The classes of one kind, and defaults that did well on some hundred queries."""

    load: Callable[[ModelSpec], Any]
    trainer: Any
    arguments: Any
    evaluator: Any
    learning_rate: float
    batch_size: int


def _trainable(kind: Any, spec: ModelSpec) -> Any:
    """The model in float32, in which steps that are small beside a weight are not lost."""
    exact = replace(spec, options={"dtype": "float32"})
    return loading.load(kind, exact, Options(exact, frozenset({"dtype"})))


def _embedding(spec: ModelSpec) -> Any:
    return _trainable(SentenceTransformer, spec)


def _late_interaction(spec: ModelSpec) -> Any:
    """A late-interaction model; of an embedding model its token vectors, without a projection.

    sentence-transformers would add a projection of random weights, which a few hundred queries
    can't train.
    """
    if spec.loader == "multi_vector_encoder":
        return _trainable(MultiVectorEncoder, spec)
    base = _embedding(spec)
    if not isinstance(base[0], Transformer):
        raise TrainingError(
            f"model {spec.name}: its first module is a {type(base[0]).__name__}, which has no token"
            " vectors: start from a transformer"
        )
    modules = [base[0], MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=modules, device=str(base.device))


def _cross_encoder(spec: ModelSpec) -> Any:
    if spec.loader == "onnx":
        raise TrainingError(
            f"model {spec.name}: source {spec.source!r} is an ONNX graph, which can't be trained:"
            " give the checkpoint that it was exported from as --base"
        )
    return _trainable(CrossEncoder, spec)


RECIPES: Mapping[str, Recipe] = {
    "embedding": Recipe(
        _embedding,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        RerankingEvaluator,
        2e-5,
        16,
    ),
    "late_interaction": Recipe(
        _late_interaction,
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
        MultiVectorRerankingEvaluator,
        2e-5,
        16,
    ),
    "cross_encoder": Recipe(
        _cross_encoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        CrossEncoderRerankingEvaluator,
        2e-5,
        16,
    ),
}


def without_dropout(model: nn.Module) -> None:
    """Train without dropout: three times as fast on a CPU, and as good on a few hundred queries."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
