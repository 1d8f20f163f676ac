"""Logged searches asked again with other settings: how the answers change, and what they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from pgrerank.catalog import call_statement, read_reranker
from pgrerank.errors import EvaluationError
from pgrerank.evaluation.measures import measure_queries
from pgrerank.evaluation.orders import percentiles
from pgrerank.evaluation.overlap import overlap, rank_biased_overlap
from pgrerank.evaluation.result import Milliseconds
from pgrerank.evaluation.significance import Comparison, compare
from pgrerank.judgements import Judgements, Qrels
from pgrerank.judgements.lines import normal
from pgrerank.stages import STAGES

__all__ = ["Answer", "Asked", "Replay", "Search", "Times", "logged", "replay"]

_PARTS = ("encode_query", *STAGES, "total")
Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Answer:
    """The keys that a search gave, best first, and the milliseconds by stage."""

    keys: Sequence[str]
    degraded: bool
    times: Mapping[str, float]


@dataclass(frozen=True)
class Search:
    """A logged search, with what it gave."""

    id: int
    query: str
    arguments: Mapping[str, Any]
    then: Answer


@dataclass(frozen=True)
class Asked:
    """A logged search asked again."""

    search: Search
    now: Answer

    @property
    def then(self) -> Answer:
        """The answer that was logged."""
        return self.search.then

    @property
    def overlap(self) -> float:
        """Share of the documents that both answers have."""
        return overlap(self.then.keys, self.now.keys)

    @property
    def rank_biased_overlap(self) -> float:
        """How alike both answers are, their first ranks above all."""
        return rank_biased_overlap(self.then.keys, self.now.keys)

    @property
    def same_first(self) -> bool:
        """Whether both begin with the same document, or are both empty."""
        return self.then.keys[:1] == self.now.keys[:1]


class Times(NamedTuple):
    """What a stage took when the searches were logged, and what it takes now."""

    then: Milliseconds
    now: Milliseconds


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    `failed` counts searches that ended in an error now, by its kind; they are in nothing else.
    `measured` has the measures of both answers, by name, where there were judgements.
    """

    asked: Sequence[Asked]
    failed: Counter[str] = field(default_factory=Counter)
    measured: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def overlap(self) -> float:
        """Mean share of documents that both answers have."""
        return _mean([one.overlap for one in self.asked])

    @property
    def rank_biased_overlap(self) -> float:
        """Mean of how alike the answers are, their first ranks above all."""
        return _mean([one.rank_biased_overlap for one in self.asked])

    @property
    def same_first(self) -> float:
        """Share of the searches whose first document stayed."""
        return _mean([float(one.same_first) for one in self.asked])

    @property
    def times(self) -> dict[str, Times]:
        """Times by stage in the order in which they run, `total` last; zeros if it did not run."""
        times = {}
        for stage in _PARTS:
            then = [one.then.times[stage] for one in self.asked if stage in one.then.times]
            now = [one.now.times[stage] for one in self.asked if stage in one.now.times]
            if then or now:
                times[stage] = Times(percentiles(then), percentiles(now))
        return times

    def most_changed(self, count: int) -> list[Asked]:
        """The searches that changed most, the most first; none that stayed as they were."""
        changed = [one for one in self.asked if one.then.keys != one.now.keys]
        return sorted(changed, key=lambda one: one.rank_biased_overlap)[:count]


def logged(
    connection: Connection, reranker: str, *, since: str = "7 days", limit: int = 200
) -> list[Search]:
    """The newest logged searches of a reranker, newest first.

    `since` is an interval of Postgres's. Raises EvaluationError where there are none, and
    psycopg.Error for a reranker that does not exist and a role that may not read the log.
    """
    sample = read_reranker(connection, reranker).settings["log_sample"]
    rows = connection.execute(
        "SELECT id, query, arguments, keys, degraded, times FROM pgrerank.searches"
        " WHERE reranker = %s AND searched_at >= now() - %s::interval"
        " ORDER BY searched_at DESC, id DESC LIMIT %s",
        (reranker, since, limit),
    ).fetchall()
    if not rows:
        remedy = (
            f"log_sample is 0: pgrerank alter {reranker} --log-sample 0.1 switches the log on"
            if sample == 0
            else f"log_sample is {sample:g}: wait for more, or look further back"
        )
        raise EvaluationError(
            f"reranker {reranker} has no search of the last {since} in its log. {remedy}. Roles"
            " that search need a right, too: GRANT INSERT ON pgrerank.searches TO app"
        )
    return [
        Search(number, query, arguments, Answer(keys, degraded, times))
        for number, query, arguments, keys, degraded, times in rows
    ]


def replay(
    connection: Connection,
    reranker: str,
    searches: Sequence[Search],
    settings: Mapping[str, Any],
    *,
    judgements: Judgements | None = None,
    measures: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Replay:
    """Ask logged searches again, each with its own filter, top_k and options.

    `settings` are arguments of pgrerank.explain_search that take the place of a search's own; None
    leaves them. They run with the rights of the connection's role. Where there are judgements,
    a judged query's newest search is measured, found by its text whatever case and spaces. Raises
    EvaluationError where no search is judged, or all end in an error.
    """
    judged = {} if judgements is None else _judged(searches, judgements)
    wanted = {name: value for name, value in settings.items() if value is not None}
    again, failed = [], Counter[str]()
    reason = ""
    for done, search in enumerate(searches, 1):
        try:
            again.append(_ask(connection, reranker, search, wanted))
        except psycopg.Error as error:
            failed[type(error).__name__] += 1
            reason = error.diag.message_primary or str(error)
        on_progress(done, len(searches))
    if not again:
        raise EvaluationError(
            f"reranker {reranker}: none of {len(searches)} logged searches can be asked again:"
            f" {reason}"
        )
    return Replay(again, failed, _measured(again, judged, measures))


def _ask(
    connection: Connection, reranker: str, search: Search, settings: Mapping[str, Any]
) -> Asked:
    arguments = {"reranker": reranker, "query": search.query, "alignments": False}
    statement, values = call_statement(
        "explain_search",
        # An answer with nothing in it is one to compare.
        {"strict": False, **search.arguments, **settings, **arguments},
        select="key, degraded, times",
    )
    with connection.transaction():
        rows = connection.execute(statement + sql.SQL(" ORDER BY rank"), values).fetchall()
    times = rows[0][2] if rows else {}
    keys = [key for key, _, _ in rows]
    return Asked(search, Answer(keys, any(degraded for _, degraded, _ in rows), times))


def _judged(searches: Sequence[Search], judgements: Judgements) -> Qrels:
    """Pick judgements by the id of the newest search of each judged query."""
    known = {normal(text): query for query, text in judgements.queries.items()}
    newest: dict[str, Search] = {}
    for search in searches:
        query = known.get(normal(search.query))
        if query is not None and (query not in newest or search.id > newest[query].id):
            newest[query] = search
    if not newest:
        raise EvaluationError(
            f"none of {len(searches)} logged searches has the text of one of the"
            f" {len(judgements.queries)} judged queries: replay without judgements, or judge some"
        )
    return {str(search.id): judgements.qrels[query] for query, search in newest.items()}


def _measured(
    asked: Sequence[Asked], judged: Qrels, measures: Sequence[str]
) -> dict[str, Comparison]:
    answers = {str(one.search.id): one for one in asked}
    qrels = {number: documents for number, documents in judged.items() if number in answers}
    if not qrels:
        return {}
    then = {number: answers[number].then.keys for number in qrels}
    now = {number: answers[number].now.keys for number in qrels}
    before, after = (measure_queries(qrels, run, measures) for run in (then, now))
    return {name: compare(before[name], after[name]) for name in measures}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
