"""What original and optimised model are compared on: queries, each with texts to order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from pgrerank import catalog
from pgrerank.errors import EvaluationError
from pgrerank.judgements import Judgements
from pgrerank.models import load_encoder

Connection = psycopg.Connection[Any]
Progress = Callable[[int, int], None]
GROUPS = 8
TEXTS = 20
"""Texts a query, where no reranker says how many its cross-encoder reads."""
_QUERY_WORDS = 8
_TEXT_WORDS = 100
_VOCABULARY = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or"
    " had an they which one you were all her she there would their we him been has when who will no"
    " more if out so up said what its about than into them can only other time new some could these"
    " two may first then do any like my now over such our man me even most made after also well"
    " pool connection server water engine market doctor city river bread music school winter light"
)


@dataclass(frozen=True)
class Group:
    """A query and texts to order for it; `keys` are the documents', where they are known."""

    query: str
    texts: Sequence[str]
    identifier: str = ""
    keys: Sequence[str] = ()


def reranker_of(connection: Connection, model: str, name: str | None) -> catalog.Reranker | None:
    """The reranker of that name, else the only one that has the model; None where none has it.

    Raises EvaluationError where several have it.
    """
    users = users_of(connection, model)
    if name is None and len(users) > 1:
        raise EvaluationError(
            f"model {model} is used by the rerankers {', '.join(users)}: say by --reranker whose"
            " documents to compare on"
        )
    chosen = name or (users[0] if users else None)
    return None if chosen is None else catalog.read_reranker(connection, chosen)


def users_of(connection: Connection, model: str) -> list[str]:
    """The names of the rerankers that have it as their cross-encoder."""
    rows = connection.execute(
        "SELECT name FROM pgrerank.rerankers WHERE cross_encoder_model = %s ORDER BY name", (model,)
    ).fetchall()
    return [name for (name,) in rows]


def of_judgements(
    connection: Connection, reranker: catalog.Reranker, judged: Judgements, on_progress: Progress
) -> list[Group]:
    """The documents that recall finds for each judged query, as many as the cross-encoder reads.

    Recall is that of a search, with both legs; no worker is needed. Raises EvaluationError where
    no relevant document is among them, so that no loss would show.
    """
    queries = list(judged.queries.items())
    embeddings = _embeddings(connection, reranker, [text for _, text in queries])
    groups = []
    for place, (identifier, query) in enumerate(queries):
        rows = _recall(connection, reranker, query, embeddings[place] if embeddings else None)
        groups.append(
            Group(query, [text for _, text in rows], identifier, [key for key, _ in rows])
        )
        on_progress(place + 1, len(queries))
    if not any(
        judged.qrels[group.identifier].get(key, 0) > 0 for group in groups for key in group.keys
    ):
        raise EvaluationError(
            f"for none of the {len(queries)} judged queries does recall of reranker {reranker.name}"
            " find a relevant document, so that no loss would show: check that the judgements are"
            " of its table's keys (pgrerank qrels load --check)"
        )
    return groups


def _embeddings(
    connection: Connection, reranker: catalog.Reranker, queries: Sequence[str]
) -> list[list[float]] | None:
    name = reranker.model("embedding")
    if name is None:
        return None
    encoder = load_encoder(catalog.read_model(connection, name))
    found = encoder.encode(queries, role="query", embeddings=True, tokens=False).embeddings
    assert found is not None
    vectors: list[list[float]] = found.tolist()
    return vectors


def _recall(
    connection: Connection,
    reranker: catalog.Reranker,
    query: str,
    embedding: list[float] | None,
) -> list[tuple[str, str]]:
    rows = catalog.search_with_texts(
        connection,
        reranker,
        {
            "query": query,
            "query_embedding": None if embedding is None else str(embedding),
            "top_k": reranker.settings["maxsim_top"],
            "stages": ["lexical"] if embedding is None else ["dense", "lexical"],
            "timeout": "1 min",
            "strict": True,
        },
        casts={"query_embedding": "vector", "timeout": "interval"},
    )
    return [(key, text) for key, _, text, _ in rows if text.strip()]


def of_documents(connection: Connection, reranker: catalog.Reranker) -> list[Group]:
    """Some of a reranker's documents, with the first words of one of them as each query.

    Raises EvaluationError where there are none.
    """
    size = min(TEXTS, int(reranker.settings["maxsim_top"]))
    rows = connection.execute(
        "SELECT content FROM pgrerank.texts(%s) WHERE content ~ '\\S' LIMIT %s",
        (reranker.name, GROUPS * size),
    ).fetchall()
    texts = [text for (text,) in rows]
    if not texts:
        raise EvaluationError(
            f"reranker {reranker.name} has no document with a text that this role may read, to"
            " compare the models on: add some first"
        )
    return [
        Group(" ".join(texts[start].split()[:_QUERY_WORDS]), texts[start : start + size])
        for start in range(0, len(texts), size)
    ]


def made_up() -> list[Group]:
    """English words at random, a hundred a text; a query's come from one of its texts."""
    draw = random.Random(1)  # noqa: S311
    vocabulary = _VOCABULARY.split()
    groups = []
    for _ in range(GROUPS):
        texts = [draw.choices(vocabulary, k=_TEXT_WORDS) for _ in range(TEXTS)]
        query = " ".join(texts[0][:_QUERY_WORDS])
        groups.append(Group(query, [" ".join(words) for words in texts]))
    return groups
