"""What endpoints are sent, by the names that the options of a model give them.

The formats are those that the providers publish: TEI (huggingface.github.io/text-embeddings-
inference), Cohere's v2 (docs.cohere.com/reference), Jina (api.jina.ai/docs), Voyage
(docs.voyageai.com/reference), OpenAI (platform.openai.com/docs/api-reference/embeddings), vLLM
(docs.vllm.ai, OpenAI-compatible server).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgrerank.models.http import answers
from pgrerank.models.spec import Kind, Role


@dataclass(frozen=True)
class Dialect:
    """One provider's format for one kind of model.

    ``texts`` names the field with the texts, ``top`` the one with how many results are wanted,
    ``dims`` the one with the dimensions; ``role`` names a field, and what it says of a query and of
    a document. ``batch`` is how many texts a request may have; ``bytes_of_text`` what the answer to
    one may take. ``gives_probabilities`` says that scores are from 0 to 1. ``template`` is how the
    provider has an instruction and a query written in one text, if it takes instructions.
    """

    texts: str
    answer: type[Any]
    batch: int
    bytes_of_text: int
    top: str | None = None
    dims: str | None = None
    role: tuple[str, str, str] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    gives_probabilities: bool = False
    template: str | None = None

    def body(
        self,
        texts: Sequence[str],
        *,
        model: str | None,
        query: str | None = None,
        role: Role = "document",
        dims: int | None = None,
    ) -> dict[str, Any]:
        """The request for some texts, as JSON has it."""
        made: dict[str, Any] = {self.texts: list(texts), **self.fixed}
        if model is not None:
            made["model"] = model
        if query is not None:
            made["query"] = query
        if self.top is not None:
            made[self.top] = len(texts)
        if self.dims is not None and dims is not None:
            made[self.dims] = dims
        if self.role is not None:
            name, of_query, of_document = self.role
            made[name] = of_query if role == "query" else of_document
        return made


_SCORE, _VECTOR, _VECTORS = 500, 2**17, 2**25
_ON_QUERY = "{instruction}\n{query}"


def _rerank(top: str, answer: type[Any], **others: Any) -> Dialect:
    return Dialect(
        **{"texts": "documents", "batch": 1000, "gives_probabilities": True}  # type: ignore[arg-type]
        | {"top": top, "answer": answer, "bytes_of_text": _SCORE}
        | others
    )


def _embed(batch: int, **others: Any) -> Dialect:
    return Dialect(
        **{"texts": "input", "answer": answers.Embeddings, "dims": "dimensions"}  # type: ignore[arg-type]
        | {"batch": batch, "bytes_of_text": _VECTOR}
        | others
    )


DIALECTS: Mapping[Kind, Mapping[str, Dialect]] = {
    "cross_encoder": {
        "tei": Dialect(
            texts="texts",
            answer=answers.Ranks,
            batch=32,
            bytes_of_text=_SCORE,
            fixed={"raw_scores": True, "return_text": False, "truncate": True},
        ),
        "cohere": _rerank("top_n", answers.Results),
        "jina": _rerank("top_n", answers.Results, fixed={"return_documents": False}),
        "voyage": _rerank(
            "top_k",
            answers.Data,
            fixed={"return_documents": False, "truncation": True},
            template=_ON_QUERY,
        ),
        "vllm": _rerank("top_n", answers.Results, fixed={"truncate_prompt_tokens": -1}),
    },
    "embedding": {
        "openai": _embed(256, fixed={"encoding_format": "float"}),
        "tei": Dialect(
            texts="inputs",
            answer=answers.Rows,
            batch=32,
            bytes_of_text=_VECTOR,
            fixed={"normalize": True, "truncate": True},
        ),
        "cohere": Dialect(
            texts="texts",
            answer=answers.ByType,
            batch=96,
            bytes_of_text=_VECTOR,
            dims="output_dimension",
            role=("input_type", "search_query", "search_document"),
            fixed={"embedding_types": ["float"], "truncate": "END"},
        ),
        "jina": _embed(
            256, role=("task", "retrieval.query", "retrieval.passage"), fixed={"truncate": True}
        ),
        "voyage": _embed(
            128,
            dims="output_dimension",
            role=("input_type", "query", "document"),
            fixed={"truncation": True},
        ),
        "vllm": _embed(256, fixed={"encoding_format": "float", "truncate_prompt_tokens": -1}),
    },
    "late_interaction": {
        "jina": Dialect(
            texts="input",
            answer=answers.MultiVectors,
            batch=8,
            bytes_of_text=_VECTORS,
            dims="dimensions",
            role=("input_type", "query", "document"),
            fixed={"embedding_type": "float"},
        ),
        "vllm": Dialect(
            texts="input",
            answer=answers.Pooled,
            batch=8,
            bytes_of_text=_VECTORS,
            fixed={
                "task": "token_embed",
                "encoding_format": "float",
                "truncate_prompt_tokens": -1,
            },
        ),
    },
}
"""The dialects by kind and name."""
