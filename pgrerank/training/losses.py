"""Losses by kind of model and name; docs/explanation/fine-tuning.md has the formulas.

Losses are sentence-transformers' own, but for `bce` of a late-interaction model, which it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.multi_vector_encoder.losses import (
    MultiVectorDistillKLDivLoss,
    MultiVectorMultipleNegativesRankingLoss,
)
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores_pairwise
from sentence_transformers.sentence_transformer.losses import (
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

Form = Literal["pairs", "groups", "scored_groups"]
"""What a loss reads: (query, document, label); (query, positive, negatives…); these with scores."""


@dataclass(frozen=True)
class Loss:
    """How to make a loss: from the model, and the share of positives among the pairs."""

    form: Form
    make: Callable[[Any, float], nn.Module]


class Logit(nn.Module):
    """`scale · similarity + bias`, both learned: from a bounded similarity to a log-odds.

    The bias is set from the first batch, so that the mean logit is the log-odds of a positive:
    with a bias that is far off, the first steps move all similarities at once and spoil the model.
    """

    bias: nn.Parameter
    scale: nn.Parameter
    is_initialised: Tensor

    def __init__(self, scale: float, positives: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.prior = math.log(positives / (1 - positives))
        self.register_buffer("is_initialised", torch.tensor(False))

    def forward(self, similarity: Tensor) -> Tensor:
        """Logits of the similarities' shape."""
        if not self.is_initialised:
            with torch.no_grad():
                self.bias.fill_(self.prior - (self.scale * similarity).mean())
                self.is_initialised.fill_(True)
        return self.scale * similarity + self.bias


class MaxSimBinaryCrossEntropyLoss(nn.Module):
    """Binary cross-entropy of (query, document) pairs, whose logit comes from their mean MaxSim.

    MaxSim is divided by the query's tokens, so that a bias fits queries of every length.
    """

    def __init__(self, model: nn.Module, logit: Logit) -> None:
        super().__init__()
        self.model = model
        self.logit = logit
        self.bce = nn.BCEWithLogitsLoss()

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Mean loss over the batch; labels are of shape [pairs], from 0 to 1."""
        query, document = (dict(features) for features in sentence_features)
        queries = self.model(query, task="query")
        documents = self.model(document, task="document")
        similarity = colbert_scores_pairwise(
            queries["token_embeddings"],
            documents["token_embeddings"],
            queries_mask=queries["attention_mask"].bool(),
            documents_mask=documents["attention_mask"].bool(),
            length_normalize=True,
        )
        loss: Tensor = self.bce(self.logit(similarity), labels.float().view(-1))
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The configuration, as the model card shows it."""
        return {"scale": self.logit.scale.item(), "bias": self.logit.bias.item()}


def _embedding_bce(model: Any, positives: float) -> nn.Module:
    return CosineSimilarityLoss(
        model,
        loss_fct=nn.BCEWithLogitsLoss(),
        cos_score_transformation=Logit(20.0, positives),
    )


def _cross_encoder_bce(model: Any, positives: float) -> nn.Module:
    return BinaryCrossEntropyLoss(model, pos_weight=torch.tensor((1 - positives) / positives))


LOSSES: Mapping[str, Mapping[str, Loss]] = {
    "embedding": {
        "contrastive": Loss("groups", lambda model, _: MultipleNegativesRankingLoss(model)),
        "bce": Loss("pairs", _embedding_bce),
    },
    "late_interaction": {
        "contrastive": Loss(
            "groups", lambda model, _: MultiVectorMultipleNegativesRankingLoss(model)
        ),
        "bce": Loss(
            "pairs",
            lambda model, positives: MaxSimBinaryCrossEntropyLoss(model, Logit(20.0, positives)),
        ),
        "distillation": Loss("scored_groups", lambda model, _: MultiVectorDistillKLDivLoss(model)),
    },
    "cross_encoder": {"bce": Loss("pairs", _cross_encoder_bce)},
}
"""By kind; the first is the default, as it did best (docs/explanation/fine-tuning.md)."""
