"""Rerankers declared beside SQLAlchemy models, created with their tables, searched in queries.

documents = Reranker("documents", Document, text=Document.body, embedding_model="minilm")

hits = search(Document, "why is my pool exhausted", top_k=5)
select(Document, hits.score).join(hits, hits.key == Document.id).order_by(hits.rank)
"""

from pgrerank.sqlalchemy.ddl import (
    AlterReranker,
    CreateReranker,
    DropModel,
    DropReranker,
    RegisterModel,
)
from pgrerank.sqlalchemy.declaration import Model, Reranker, rerankers
from pgrerank.sqlalchemy.query import Search, search

__all__ = [
    "AlterReranker",
    "CreateReranker",
    "DropModel",
    "DropReranker",
    "Model",
    "RegisterModel",
    "Reranker",
    "Search",
    "rerankers",
    "search",
]
