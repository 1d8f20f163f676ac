"""What NAME_search takes and returns, by name, with SQL's types; the database declares both."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pgrerank.stages import columns as stage_columns

__all__ = ["ARGUMENTS", "COLUMNS", "key_columns"]

COLUMNS = {
    "score": "real",
    "rank": "integer",
    "stage": "text",
    "degraded": "boolean",
    "reason": "text",
    "cross_encoder_model": "text",
    "signals_score": "real",
    "relevance": "real",
    "passage": "text",
    "passage_start": "integer",
    "passage_end": "integer",
    "passages": "jsonb",
    "highlights": "jsonb",
    **{name: "real" if kind is float else "integer" for name, kind in stage_columns().items()},
}
"""What it returns beside the key."""

ARGUMENTS = {
    "query": "text",
    "top_k": "integer",
    "filter": "jsonb",
    "candidates": "integer",
    "maxsim_bit_top": "integer",
    "maxsim_top": "integer",
    "early_exit": "double precision",
    "instruction": "text",
    "listwise_top": "integer",
    "signals": "jsonb",
    "group_by": "text",
    "per_group": "integer",
    "diversity": "double precision",
    "duplicate_threshold": "double precision",
    "min_relevance": "double precision",
    "cross_encoder_passages": "integer",
    "passages": "integer",
    "highlights": "boolean",
    "stages": "text[]",
    "key_scores": "double precision[]",
    "query_embedding": "vector",
    "query_tokens": "bytea",
    "recall": "text",
    "timeout": "interval",
    "blend": "jsonb",
    "generation": "integer",
    "strict": "boolean",
}
"""What it takes, but for `keys` and `after`, whose type is that of arrays of the source's key."""


def key_columns(names: Sequence[str]) -> list[str]:
    """The names that a key's columns have among those of a search."""
    taken = {*ARGUMENTS, "key", "keys", "after", *COLUMNS}
    if len(names) == 1:
        return [name if name not in taken else "key" for name in names]
    return [
        name if name not in taken and not re.fullmatch(r"key_[0-9]+", name) else f"key_{place}"
        for place, name in enumerate(names, 1)
    ]
