"""Requests and answers, in the shapes that others' clients send and read.

TEI is Hugging Face's Text Embeddings Inference. Fields that these clients send and that change
nothing here are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

MOST_TEXTS = 10_000
"""Texts in one request."""


def _without_surrogates(text: str) -> str:
    """Refuse half a character, which JSON can spell and no answer could repeat."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_without_surrogates)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
Query = Annotated[Text, Field(min_length=1)]
Role = Literal["query", "document"]


class TeiRerank(BaseModel):
    """TEI's request to rerank; `model` may be left out where there is one cross-encoder."""

    query: Query
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False
    model: str | None = None


class TeiRank(BaseModel):
    """A text's place in the request, and its score."""

    index: int
    score: float
    text: str | None = None


class TextObject(BaseModel):
    """A document that is an object, as some clients send it."""

    text: Text


class Rerank(BaseModel):
    """Cohere's and Jina's request to rerank."""

    model: str
    query: Query
    documents: Annotated[list[Text | TextObject], Field(min_length=1, max_length=MOST_TEXTS)]
    top_n: Annotated[int | None, Field(ge=1)] = None
    return_documents: bool = False

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class Result(BaseModel):
    """A document's place in the request, and its relevance from 0 to 1."""

    index: int
    relevance_score: float
    document: TextObject | None = None


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class Reranked(BaseModel):
    """Documents by relevance, the best first."""

    id: str
    model: str
    results: list[Result]
    meta: dict[str, Any]


class Embed(BaseModel):
    """TEI's request to embed; `prompt_name` says what the texts are."""

    inputs: Text | Texts
    prompt_name: Role = "document"
    model: str | None = None


class EmbeddingsRequest(BaseModel):
    """OpenAI's request to embed; `input_type`, which OpenAI has not, says what the texts are."""

    model: str
    input: Text | Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1)] = None
    input_type: Role = "document"


class Embedding(BaseModel):
    """A text's embedding: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """The embeddings of texts, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A registered model; `created` is not known, and 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["pgrerank"] = "pgrerank"
    kind: str


class ModelList(BaseModel):
    """The registered models that this endpoint serves."""

    object: Literal["list"] = "list"
    data: list[Model]
