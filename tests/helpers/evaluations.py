"""Evaluations as they are written down: three orders, six queries, one of them malicious."""

from __future__ import annotations

import copy
from typing import Any, cast

from pgrerank.evaluation.result import Evaluation, Order, QueryFound, Shown

NAMES = {
    "exact_recall": "dense, exact",
    "dense": "dense",
    "cross_encoder": "+ cross-encoder",
}
MALICIOUS = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
QUERIES = {
    "q1": ("why is my pool exhausted", (0.5, 0.5, 1.0)),
    "q2": ("接続プールが枯渇するのはなぜですか", (1.0, 1.0, 0.25)),
    "q3": (MALICIOUS, (0.9, 0.9, 0.1)),
    "q4": ("costs $5 or $10 in \\frac{1}{2} of cases", (0.0, 0.0, 0.1)),
    "q5": ("连接池耗尽的原因是什么 연결 풀", (0.3, 0.3, 0.9)),
    "q6": ("a" * 400, (0.8, 0.2, 0.2)),
}


def evaluation(**changed: Any) -> Evaluation:
    found: dict[str, Any] = {
        "pgrerank": "0.1.0",
        "reranker": "documents",
        "generation": 3,
        "label": "as it is",
        "qrels": "by hand",
        "settings": {"candidates": 100, "maxsim_top": 30, "blend": None},
        "made_at": "2026-01-02T03:04:05+00:00",
        "command": "pgrerank evaluate documents --qrels 'by hand'",
        "queries": len(QUERIES),
        "judgements": 17,
        "degraded": 2,
        "measures": ["nDCG@10", "RR@10"],
        "orders": orders(),
        "hnsw": [{"ef_search": size, "recall": 1 - 4 / size, "ms": spread(1)} for size in (10, 40)],
        "reliability": {
            "documents": 60,
            "relevant": 12,
            "ece": 0.0212,
            "brier": 0.1,
            "bins": [
                {"low": 0.0, "documents": 50, "relevance": 0.04, "relevant": 0.06},
                {"low": 0.7, "documents": 10, "relevance": 0.76, "relevant": 0.9},
            ],
        },
        "passages": {
            "documents": 40,
            "several": 9,
            "slices": [
                {"name": "one passage", "queries": 4, "measures": {"nDCG@10": 0.5, "RR@10": 0.4}},
                {"name": "several passages", "queries": 2, "measures": {"nDCG@10": 1, "RR@10": 1}},
            ],
            "judged": 3,
            "within": 2,
        },
        "tuning": {
            "depth": {
                "candidates": [
                    {"size": size, "quality": 0.4 + size / 4000, "ms": size / 3}
                    for size in (10, 20, 30, 50, 100, 200, 500, 1000)
                ],
                "maxsim_top": [{"size": s, "quality": 0.5, "ms": 9.0 + s} for s in (0, 10, 20)],
            },
            "recommendations": [
                {
                    "setting": "candidates",
                    "value": 200,
                    "gain_kept": 0.97,
                    "time_share": 0.2,
                    "gain": 0.02,
                    "p": 0.03,
                    "text": "candidates 200 keeps 97% of the gain",
                }
            ],
            "blend": {
                "name": "the blend found",
                "weights": {"dense": 0.25, "cross_encoder": 0.75},
                "quality": 0.61,
                "present": 0.55,
                "p": 0.04,
            },
            "signals": {
                "signals": {"votes": {"log": True, "weight": 0.2}},
                "weights": {"votes": 0.2},
                "quality": 0.63,
                "present": 0.61,
                "p": 0.03,
            },
            "warnings": [],
        },
        "warnings": ["2 of 6 searches were degraded: timeout <b>"],
        "per_query": [query(name) for name in QUERIES],
    }
    return cast("Evaluation", copy.deepcopy(found | changed))


def spread(median: float) -> dict[str, float]:
    return {"p50": median, "p95": 2 * median}


def orders() -> list[Order]:
    made = []
    for place, (stage, name) in enumerate(NAMES.items()):
        mean = sum(values[place] for _, values in QUERIES.values()) / len(QUERIES)
        order = {
            "name": name,
            "stage": stage,
            "measures": {"nDCG@10": mean, "RR@10": mean / 2},
            "stage_ms": spread(3.0 + place),
            "total_ms": spread(4.0 + 2 * place),
            **dict.fromkeys(("against", "gain", "p", "better", "worse")),
        }
        if place:
            order |= {"against": list(NAMES.values())[place - 1], "gain": -0.05, "p": 0.0004}
            order |= {"better": 2, "worse": 2}
        made.append(cast("Order", order))
    return made


def query(name: str) -> QueryFound:
    text, values = QUERIES[name]
    keys = [Shown(key=f"d{n}", relevance=None, text=f"{text} {n}") for n in range(4)]
    for shown, relevance in zip(keys, (2, 1, 0), strict=False):
        shown["relevance"] = relevance
    return QueryFound(
        id=name,
        query=text,
        relevant=2,
        quality=dict(zip(NAMES.values(), values, strict=True)),
        top={NAMES["dense"]: keys, NAMES["cross_encoder"]: keys[::-1], NAMES["exact_recall"]: []},
    )


def improved() -> Evaluation:
    """Another generation: all queries but one are a bit better; it lacks the last one."""
    other = evaluation(generation=4, label="調整 fine-tuned", settings={"candidates": 50})
    del other["per_query"][-1]
    for found in other["per_query"]:
        by = -0.2 if found["id"] == "q1" else 0.05
        found["quality"] = {name: value + by for name, value in found["quality"].items()}
    return other
