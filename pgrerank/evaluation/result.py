"""The results of an evaluation, as they are written to `evaluation.json`."""

from __future__ import annotations

from typing import TypedDict

__all__ = [
    "Bin",
    "BlendFound",
    "DepthPoint",
    "EfPoint",
    "Evaluation",
    "Milliseconds",
    "Order",
    "PassagesFound",
    "QueryFound",
    "Recommendation",
    "Reliability",
    "Shown",
    "SignalsFound",
    "Slice",
    "Tuning",
    "tuning_of",
]


class Milliseconds(TypedDict):
    """Median and 95th percentile over the queries, in milliseconds."""

    p50: float
    p95: float


class Order(TypedDict):
    """The order after a stage, over all queries.

    `measures` are means by name; `stage_ms` is the stage alone, `total_ms` all up to it. `against`
    names the order that it is compared with by the first measure: `gain` in its mean, `p` two-sided
    by a paired randomisation test, `better` and `worse` count queries. They are None for the first.
    """

    name: str
    stage: str
    measures: dict[str, float]
    stage_ms: Milliseconds
    total_ms: Milliseconds
    against: str | None
    gain: float | None
    p: float | None
    better: int | None
    worse: int | None


class EfPoint(TypedDict):
    """Share of exact recall's candidates that HNSW finds with this `ef_search`."""

    ef_search: int
    recall: float
    ms: Milliseconds


class Bin(TypedDict):
    """Documents of a relevance from `low` to a tenth more.

    `relevance` is its mean over them, `relevant` the share of them that is relevant.
    """

    low: float
    documents: int
    relevance: float
    relevant: float


class Reliability(TypedDict):
    """How far relevance is right: of `documents` returned, `relevant` are.

    `ece` is the expected calibration error, `brier` the mean squared error; bins without documents
    are left out.
    """

    documents: int
    relevant: int
    ece: float
    brier: float
    bins: list[Bin]


class Slice(TypedDict):
    """The measures of the last order, over some of the queries."""

    name: str
    queries: int
    measures: dict[str, float]


class PassagesFound(TypedDict):
    """What searches find of documents that have several passages.

    Of `documents` among the first ten of all searches, `several` have several. One slice has the
    queries whose relevant documents all are one passage, another those with one of several; queries
    of whose relevant documents none is encoded are in neither. Of `judged` relevant documents found
    of which is known where the answer is, `within` are shown with a passage that is there: half of
    the one is in the other.
    """

    documents: int
    several: int
    slices: list[Slice]
    judged: int
    within: int


class DepthPoint(TypedDict):
    """Quality (the first measure) and a call's time, with so many documents for a stage."""

    size: int
    quality: float
    ms: float


class Recommendation(TypedDict):
    """A size of a stage that keeps nearly all of its gain: shares of gain and time, from 0 to 1.

    `gain` is over the present size, `p` two-sided by a paired randomisation test. For `early_exit`
    the shares are those of what reading the whole head gives and takes.
    """

    setting: str
    value: float
    gain_kept: float
    time_share: float
    gain: float
    p: float
    text: str


class BlendFound(TypedDict):
    """Weights of the stages' scores, and what they gain.

    `name` says whether they were found, or are the default ones, or those without one stage.
    `quality` is on queries that they were not found on, `present` with the weights in use; `p`
    compares the two.
    """

    name: str
    weights: dict[str, float]
    quality: float
    present: float
    p: float


class SignalsFound(TypedDict):
    """The signals with the weights found, 0 for those that gain no more than chance.

    `weights` are by name, with a number after all but the first of one. `quality` is on queries
    that they were not found on, `present` with the weights in use; `p` compares the two.
    """

    signals: dict[str, object]
    weights: dict[str, float]
    quality: float
    present: float
    p: float


class Tuning(TypedDict):
    """Which sizes, which blend and which weights of signals serve best.

    `depth` is by setting: `candidates` and `maxsim_top`. `blend` is None where there are too few
    queries to find weights on, as `warnings` then say, or one stage alone; `signals` where there
    are too few, or no signals.
    """

    depth: dict[str, list[DepthPoint]]
    recommendations: list[Recommendation]
    blend: BlendFound | None
    signals: SignalsFound | None
    warnings: list[str]


class Shown(TypedDict):
    """A document as a report shows it; `relevance` is None where it is not judged."""

    key: str
    relevance: int | None
    text: str


class QueryFound(TypedDict):
    """One query: the first measure by order's name, and the first documents of each order."""

    id: str
    query: str
    relevant: int
    quality: dict[str, float]
    top: dict[str, list[Shown]]


class Evaluation(TypedDict):
    """A reranker measured on one set of judgements.

    The first of `measures` is the one that orders are compared by. `reliability` is None where
    relevance is not calibrated, `passages` where no document has several, `tuning` where only the
    orders were measured. `qrels` names the set, `command` made it.
    """

    pgrerank: str
    reranker: str
    generation: int
    label: str
    qrels: str
    settings: dict[str, object]
    made_at: str
    command: str
    queries: int
    judgements: int
    degraded: int
    measures: list[str]
    orders: list[Order]
    hnsw: list[EfPoint]
    reliability: Reliability | None
    passages: PassagesFound | None
    tuning: Tuning | None
    warnings: list[str]
    per_query: list[QueryFound]


def tuning_of(evaluation: Evaluation) -> Tuning:
    """The tuning of an evaluation; an empty one where only the orders were measured."""
    return evaluation["tuning"] or Tuning(
        depth={}, recommendations=[], blend=None, signals=None, warnings=[]
    )
